"""Files that are what they should be when they are read, and appear whole when they are written."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from probe.errors import InputError

LARGEST_TEXT = 2**26  # bytes of a description, a table or a result


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """What the file system does not allow inside, writing included, becomes one line.

    Args:
        place: Named where the system names no file.

    Raises:
        InputError: A file or folder cannot be opened, read or searched.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        raise InputError(f"{where}: {error.strerror or error}") from None


def require_file(path: Path, largest: int | None = None) -> None:
    """Refuses what can be opened but has no end, such as pipes and devices, and what is too large.

    Raises:
        InputError: No regular file, or one of more than `largest` bytes.
    """
    with reading(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a file")
    if largest is not None and found.st_size > largest:
        raise InputError(f"{path}: larger than {largest} bytes")


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The content of a text file.

    Raises:
        InputError: No regular file, too large, not readable, or no UTF-8.
    """
    require_file(path, largest)
    try:
        with reading(path):
            return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 ({error.reason} at byte {error.start})") from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes beside the target, then renames; a reader never sees half a file."""
    with writing_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of the target when it is whole.

    It has one name for each target: what a killed process left is overwritten by the next.
    """
    beside = path.with_name(f".{path.name}.unfinished")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
