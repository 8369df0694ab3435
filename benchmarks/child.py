"""One piece of work in a process of its own: its seconds, and the most memory that it held.

`python -m benchmarks.child MODULE:FUNCTION [ARGUMENT]...` calls the function, which prepares, and
then what it returns, which is measured: without the interpreter's start, and without the peak of
the preparation, which Linux lets a process forget. What that call returns comes back as JSON.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# glibc would raise this limit as blocks are freed, and then hold freed blocks between small ones:
# a peak of its habits, twice that of what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


@dataclass(frozen=True)
class Usage:
    """What the work took.

    Attributes:
        wall: Seconds by the clock.
        cpu: Seconds of all cores.
        before: Bytes held before it.
        peak: Bytes held at most while it ran.
        result: What it returned.
    """

    wall: float
    cpu: float
    before: int
    peak: int
    result: Any = None


def run(target: str, *arguments: object) -> Usage:
    """Usage of `MODULE:FUNCTION` with these arguments.

    Raises:
        RuntimeError: The child failed.
    """
    command = [sys.executable, "-m", "benchmarks.child", target, *map(str, arguments)]
    settings = {**os.environ, **ALLOCATOR}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{target} {arguments}: {done.stderr[-2000:]}")
    return Usage(**json.loads(done.stdout.splitlines()[-1]))


def _held(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _cores() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(target: str, *arguments: str) -> None:
    """Prints the usage as the last line."""
    module, function = target.split(":")
    work = getattr(importlib.import_module(module), function)(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, wall, cpu = _held("VmRSS"), time.perf_counter(), _cores()
    result = work()
    used = Usage(time.perf_counter() - wall, _cores() - cpu, before, _held("VmHWM"), result)
    print("\n" + json.dumps(asdict(used)))


if __name__ == "__main__":
    main(*sys.argv[1:])
