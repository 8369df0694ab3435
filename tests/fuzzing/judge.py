"""What is wrong with how a case ended."""

import re

from fuzzing.worker import Ended

SECONDS = 10.0  # of CPU
IDLE = 20.0  # seconds of the clock without any work: the machine may be busy with other things
PEAK = 1024.0  # MiB beyond what the process held before
GROWTH = 64.0  # MiB that a process may hold at the end beyond what it held after its warm-up
_PROGRESS = re.compile(r"(?!mesaprobe: ).{1,200}: \d+/\d+(, loss [-+.\w]+)?")
_MEMORY = re.compile(
    r"MemoryError|allocate memory|not enough memory|Unable to allocate|ENOMEM", re.I
)


def wrong_with(ended: Ended) -> str | None:
    """One word or two; None where a file was read, or refused as it should be."""
    if ended.code is None:
        return ended.err
    if _MEMORY.search(ended.err):
        return "memory"
    if "Traceback" in ended.err or ended.code not in (0, 2):
        return "traceback"
    if ended.seconds > SECONDS:
        return "slow"
    if ended.peak > PEAK:
        return "peak of memory"
    lines = [line for line in ended.err.splitlines() if not _PROGRESS.fullmatch(line)]
    if ended.code == 2 and not (len(lines) == 1 and lines[0].startswith("mesaprobe: ")):
        return "not one line"
    if not all(line.isprintable() and len(line) < 3_000 for line in lines):
        return "no printable line"
    return None
