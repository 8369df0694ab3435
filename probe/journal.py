"""What a run has finished, kept beside its report until the report is written.

The same command goes on from it after the process was killed, the disk was full, or the machine
went down. It belongs to one model, one configuration and one version of the code; anything else
starts anew.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from probe.accumulators import About, Sums, read_sums, write_sums
from probe.errors import InputError
from probe.files import read_text, write_atomically
from probe.findings import Finding

FOLDER, KEY, LOCK, FINDINGS = "unfinished", "key.json", "lock", "findings"
PACE = 30  # seconds of work for each second of writing

_FINDING = TypeAdapter(Finding)


@runtime_checkable
class Journal(Protocol):
    """Remembers what a run has finished."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier process did some of the work."""

    def sums(self, name: str) -> "tuple[Sequence[Sums], About] | None":
        """The sums of that name as far as they were kept, and what was said about them."""

    def keep(self, name: str, sums: Sequence[Sums], about: About, complete: bool) -> None:
        """Keeps sums in place of earlier ones of that name."""

    def finding(self, name: str, find: Callable[[], Finding]) -> Finding:
        """The finding of an analysis: as it was kept, else as it is found now."""


class Forgetful:
    """Remembers nothing."""

    resumed = False

    def sums(self, name: str) -> None:
        """There are none."""

    def keep(self, name: str, sums: Sequence[Sums], about: About, complete: bool) -> None:
        """They are not kept."""

    def finding(self, name: str, find: Callable[[], Finding]) -> Finding:
        """Found anew."""
        return find()


class FolderJournal:
    """Remembers in a folder; every file appears whole or not at all.

    Args:
        folder: Where; made by `journal_in`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.resumed = False
        self._quiet_until = 0.0

    def sums(self, name: str) -> tuple[Sequence[Sums], About] | None:
        """The sums of that name; None if there are none, or their file is damaged."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            found = read_sums(path)
        except InputError:
            return None
        self.resumed = True
        return found

    def keep(self, name: str, sums: Sequence[Sums], about: About, complete: bool) -> None:
        """Keeps sums, unless they are to grow and were kept a moment ago.

        Raises:
            InputError: The disk is full, or cannot be written.
        """
        started = time.monotonic()
        if started < self._quiet_until and not complete:
            return
        with self._writing():
            write_sums(self.path(name), sums, about)
        now = time.monotonic()
        self._quiet_until = now + PACE * (now - started)

    def finding(self, name: str, find: Callable[[], Finding]) -> Finding:
        """The finding of an analysis.

        Raises:
            InputError: The disk is full, or cannot be written.
        """
        path = self.folder / FINDINGS / f"{name}.json"
        with suppress(InputError, ValueError, RecursionError):
            kept = finding_of(read_text(path))
            self.resumed = True
            return kept
        finding = find()
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, text_of(finding))
        return finding

    def path(self, name: str) -> Path:
        """The file of sums of that name."""
        return self.folder / f"{name}.npz"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder}: {error.strerror or error}; what was finished before is kept, "
                "and the same command goes on from there"
            ) from error


def text_of(finding: Finding) -> str:
    """A finding as JSON, with every digit, NaN and infinities."""
    return json.dumps(_FINDING.dump_python(finding), default=lambda number: number.item())


def finding_of(text: str) -> Finding:
    """What `text_of` was given."""
    return _FINDING.validate_python(json.loads(text))


@contextmanager
def journal_in(
    out: Path, key: Mapping[str, object], fresh: bool = False
) -> Iterator[FolderJournal]:
    """The journal of a run in the folder of its report; it is removed when the block ends well.

    Args:
        out: The folder of the report.
        key: All that the results depend on; a journal of another key is thrown away.
        fresh: Whether to throw away any.

    Raises:
        InputError: Another run is writing there, or the folder cannot be written.
    """
    folder = out / FOLDER
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / LOCK, timeout=0))
            if fresh or key_in(folder) != json.loads(json.dumps(key)):
                _clear(folder)
                write_atomically(folder / KEY, json.dumps(key, indent=2) + "\n")
        except Timeout:
            raise InputError(f"{out}: another run is writing there") from None
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}") from error
        yield FolderJournal(folder)
        shutil.rmtree(folder)


def key_in(folder: Path) -> dict[str, object] | None:
    """The key of the journal in a folder; None if there is none."""
    try:
        key = json.loads(read_text(folder / KEY))
    except (InputError, ValueError, RecursionError):
        return None
    return key if isinstance(key, dict) else None


def _clear(folder: Path) -> None:
    """Removes all but the lock, which is held; the key first: half a removal is a removal."""
    (folder / KEY).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
