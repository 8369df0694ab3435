"""The files of a report: names that are safe, tables as CSV, and writing all of them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from probe.errors import InputError
from probe.files import write_atomically
from probe.findings import Figure, Table

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
PLACES = {"tables": ".csv", "figures": ".svg"}


def check_names(tables: Iterable[Table], figures: Iterable[Figure]) -> None:
    """Refuses names that are no file names of their own.

    Raises:
        ValueError: Two are the same, or one is not plain.
    """
    for kind, things in (("tables", tables), ("figures", figures)):
        counts = Counter(thing.name for thing in things)
        wrong = [name for name, count in counts.items() if count > 1 or not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"names of {kind} must be unique and plain: {', '.join(wrong)}")


def csv_text(table: Table) -> str:
    """A table as the bytes of its file."""
    return table.frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A report's folder with its places, for as long as files are written there.

    Raises:
        InputError: The folder, or a file in it, cannot be written.
    """
    try:
        for place in PLACES:
            (out / place).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write the report to {out}: {error.strerror}") from error


def write_files(files: Mapping[str, str], out: Path) -> None:
    """Writes files by their path in a folder, in order; each appears whole or not at all."""
    for name, text in files.items():
        write_atomically(out / name, text)
