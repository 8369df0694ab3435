"""What the machine can do at best, and how work on it is timed."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch
from threadpoolctl import threadpool_limits

REPEATS = 5
SIZE = 2048  # of the matrices of a product
TRIAD = 2**26  # float32 numbers of each of three arrays: no cache holds them

Row = dict[str, object]


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of all cores together."""

    wall: float
    cpu: float


def once(work: Callable[[], object]) -> Took:
    """The time of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def middle(times: list[Took]) -> Took:
    """Medians."""
    return Took(median(t.wall for t in times), median(t.cpu for t in times))


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int = REPEATS
) -> dict[str, Took]:
    """Median times of runs that take turns, after one round that is not counted."""
    times: dict[str, list[Took]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took = once(run)
            if repeat:
                times[name].append(took)
    return {name: middle(taken) for name, taken in times.items()}


def faster(name: str, ours: Took, peer: str, theirs: Took, **more: object) -> Row:
    """A line whose ratio says how many times faster we are."""
    return _row(name, ours, peer, theirs, theirs.wall / ours.wall, more)


def slower(name: str, ours: Took, peer: str, theirs: Took, **more: object) -> Row:
    """A line whose ratio is our time over that of a floor, which cannot be undercut by much."""
    said = f"{peer} (ratio: ours over peer)"
    return _row(name, ours, said, theirs, ours.wall / theirs.wall, more)


def _row(
    name: str, ours: Took, peer: str, theirs: Took, ratio: float, more: Mapping[str, object]
) -> Row:
    seconds = {"ours_s": ours.wall, "peer_s": theirs.wall}
    cores = {"ours_cpu_s": ours.cpu, "peer_cpu_s": theirs.cpu}
    return {"name": name, "peer": peer, "ratio": ratio, **seconds, **cores, **more}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This number of threads inside, in torch and in every BLAS."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> tuple[int, ...]:
    """One, and where there are more cores two."""
    return (1, 2) if (os.cpu_count() or 1) > 1 else (1,)


def product(dtype: torch.dtype = torch.float32, size: int = SIZE) -> Callable[[], object]:
    """A large product of 2 size^3 operations."""
    matrix = torch.ones(size, size, dtype=dtype)
    return lambda: matrix @ matrix


@cache
def gemm_rate() -> float:
    """Billions of float32 operations per second of a large product, on the threads in force."""
    return 2 * SIZE**3 / interleaved({"": product()})[""].wall / 1e9


def rates() -> dict[str, dict[str, float]]:
    """Rates by number of threads: products in Gflop/s, a + s b into c in GB/s (12 bytes each)."""
    a, b = torch.ones(TRIAD), torch.ones(TRIAD)
    c = torch.empty(TRIAD)
    runs = {
        "GEMM float32, Gflop/s": (product(), 2 * SIZE**3),
        "GEMM float64, Gflop/s": (product(torch.float64), 2 * SIZE**3),
        "memory, GB/s": (lambda: torch.add(a, b, alpha=3.0, out=c), 12 * TRIAD),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for count in thread_counts():
        with threads(count):
            took = interleaved({name: run for name, (run, _) in runs.items()})
        for name, (_, amount) in runs.items():
            found[name][str(count)] = amount / took[name].wall / 1e9
    return found


def described() -> dict[str, object]:
    """Processor, cores and versions."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """As Linux names it; other systems tell less."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
