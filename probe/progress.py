"""Progress and tables on the terminal: a bar where there is one, sparse plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

QUARTERS = 4
PHASE = 1000  # units of a phase


@contextmanager
def reporting(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (done, total)."""
    with training(title) as update:
        yield lambda done, total: update(done, total, None)


@contextmanager
def training(title: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """Yields a function to call with (done, total, loss)."""
    if sys.stderr.isatty():
        yield from _bar(title)
    else:
        yield _plain(title)


def _bar(title: str) -> Iterator[Callable[[int, int, float | None], None]]:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task(title)

        def update(done: int, total: int, loss: float | None) -> None:
            shown = title if loss is None else f"{title}, loss {loss:.3f}"
            progress.update(line, completed=done, total=total, description=shown)

        yield update


def _plain(title: str) -> Callable[[int, int, float | None], None]:
    """One line at each quarter."""
    told = -1

    def update(done: int, total: int, loss: float | None) -> None:
        nonlocal told
        quarter = QUARTERS * done // max(total, 1)
        if quarter > told:
            told = quarter
            shown = "" if loss is None else f", loss {loss:.3f}"
            print(f"{title}: {done}/{total}{shown}", file=sys.stderr, flush=True)

    return update


@dataclass
class Phases:
    """One count of progress over several runs, each of which counts for itself.

    Attributes:
        tell: Told of (done, in all).
        phases: How many there are; a run that takes longer than others counts for several.
        done: How many have begun.
    """

    tell: Callable[[int, int], None]
    phases: int
    done: int = field(default=0)

    def next(self, phases: int = 1) -> Callable[[int, int], None]:
        """Progress of the next run."""
        before, self.done = self.done, self.done + phases
        return lambda done, total: self.tell(
            before * PHASE + phases * PHASE * done // total, self.phases * PHASE
        )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
