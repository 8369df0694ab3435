"""Keeps a worker, hands it cases, and kills it when one does not end."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fuzzing.cases import Case
from fuzzing.judge import IDLE, SECONDS
from fuzzing.seeds import Seed
from fuzzing.worker import READY, Ended, Run, serve

_FORK = multiprocessing.get_context("fork")  # what is imported need not be imported again
_TICKS = os.sysconf("SC_CLK_TCK")


class Supervisor:
    """A warm worker; after a death there is a new one.

    Args:
        run: Runs a command in the worker, as `probe.cli.main` does.
        seeds: By name.
        place: Holds their folders.
        seconds: CPU seconds of one case.
        idle: Seconds of the clock in which a case may do nothing at all.
    """

    def __init__(
        self,
        run: Run,
        seeds: Mapping[str, Seed],
        place: Path,
        seconds: float = SECONDS,
        idle: float = IDLE,
    ):
        self.run, self.seeds, self.place, self.seconds = run, dict(seeds), place, seconds
        self.idle = idle
        self.own = Path(tempfile.mkdtemp(prefix="fuzzing-"))
        self._start()

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        shutil.rmtree(self.own, ignore_errors=True)

    def outcome(self, case: Case) -> Ended:
        """Runs a case to its end, or to the end of its time."""
        try:
            self.pipe.send(case)
            assert self.pipe.recv() == READY
            return self._wait()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.process.join()
            code = self.process.exitcode
            self.restart()
            return Ended(None, f"died ({code})", 0.0)

    def _wait(self) -> Ended:
        before = spent = self._spent()
        moved = time.monotonic()
        while not self.pipe.poll(0.2):
            now = self._spent()
            if now > spent:
                spent, moved = now, time.monotonic()
            if spent - before > self.seconds or time.monotonic() - moved > self.idle:
                self.restart()
                return Ended(None, "hang", self.seconds)
        ended: Ended = self.pipe.recv()
        return ended

    def _spent(self) -> float:
        """CPU seconds of the worker so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _start(self) -> None:
        self.pipe, theirs = _FORK.Pipe()
        room = Path(tempfile.mkdtemp(dir=self.own))
        arguments: tuple[Any, ...] = (theirs, self.run, self.seeds, self.place, room)
        self.process = _FORK.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def restart(self) -> None:
        """Another worker in the place of the old one."""
        self._stop()
        self.pipe.close()
        self._start()

    def _stop(self) -> None:
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
