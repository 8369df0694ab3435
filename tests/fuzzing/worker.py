"""A forked process that runs one case after the other, and what it tells of each."""

import ctypes
import gc
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fuzzing.seeds import Seed

Run = Callable[[list[str]], None]
ROOM = 2 << 30  # bytes that a worker may take beyond those that it was forked with
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        code: Exit code; None where the process was killed or died.
        err: What stood on stderr, or why the process is gone.
        seconds: CPU seconds of the command.
        peak: MiB that the process held at most, beyond those that it held before; 0 where an
            earlier case has needed more.
        resident: MiB of its own that it holds afterwards.
    """

    code: int | None
    err: str
    seconds: float
    peak: float = 0.0
    resident: float = 0.0


READY = "ready"


def serve(pipe: Connection, run: Run, seeds: dict[str, Seed], place: Path, own: Path) -> None:
    """Runs cases until there are none: sends READY before the command begins, and how it ended."""
    gc.freeze()  # what stood before the fork need not be looked through after each case
    _confine()
    err = os.open(own / "err", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(err, 2)
    os.dup2(os.open(own / "out", os.O_RDWR | os.O_CREAT | os.O_APPEND), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    for number in range(2**62):
        case = pipe.recv()
        if case is None:
            return
        folder = own / str(number)
        case.prepare(place, folder)
        os.chdir(own)
        pipe.send(READY)
        pipe.send(_ended(run, seeds[case.seed].commands[case.command].at(folder), err))
        _remove(folder)
        os.truncate(own / "out", 0)


def _ended(run: Run, arguments: list[str], err: int) -> Ended:
    os.lseek(err, 0, os.SEEK_SET)
    os.ftruncate(err, 0)
    before, highest, started = _mebibytes("VmRSS"), _mebibytes("VmHWM"), time.process_time()
    code = 0
    try:
        run(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        code = 1
        traceback.print_exc()
    seconds = time.process_time() - started
    sys.stdout.flush()
    sys.stderr.flush()
    peak = _mebibytes("VmHWM") - before if _mebibytes("VmHWM") > highest else 0.0
    said = os.pread(err, 100_000, 0).decode(errors="replace")
    return Ended(code, said, seconds, peak, _resident())


def _resident() -> float:
    """What is held after all that can be given back has been."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _mebibytes("RssAnon")


def _mebibytes(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _confine() -> None:
    """No more memory than ROOM, and no right to read what is forbidden, even for root."""
    size = int(_mebibytes("VmData")) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (size + ROOM, size + ROOM))
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header, none) != 0:
        raise OSError("capabilities cannot be given up")


def _remove(folder: Path) -> None:
    """Also what the case has forbidden."""
    for path in (folder, *(p for p, _, _ in os.walk(folder))):
        Path(path).chmod(0o700)
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not (below := Path(path, name)).is_symlink():
                below.chmod(0o700)
    shutil.rmtree(folder)
