"""A run in parts that know nothing of each other: each measures its leases into files.

Two rounds are needed, since the test half of the sequences is scored with what was learned on all
of the fit half: parts, merge, the same parts again, merge again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.accumulators import read_sums, write_sums
from probe.engines.base import Engine, Gathered, Order, Work
from probe.errors import InputError
from probe.journal import FOLDER
from probe.plan import FIT, LEASES, NAMES, Lease, Plan
from probe.sweep import MAIN, kept_as


class Waiting(Exception):
    """Nothing is wrong, but others have to do their part first; the message says what."""


@dataclass(frozen=True)
class Part:
    """Measures one part of the leases, and keeps their sums in a folder.

    Attributes:
        engine: Who measures.
        out: The part's own folder.
        number: Which part, from 1.
        of: How many there are.
        progress: Called with (leases done, leases of this part).
    """

    engine: Engine
    out: Path
    number: int
    of: int
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def name(self) -> str:
        """See `Engine`."""
        return f"part {self.number} of {self.of}, {self.engine.name}"

    def workers(self, plan: Plan) -> int:
        """See `Engine`."""
        return self.engine.workers(plan)

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """Yields nothing, since other parts have the rest.

        Raises:
            Waiting: This part is done.
            InputError: There are more parts than leases, or the disk is full.
        """
        yield from ()
        if self.of > len(leases):
            raise InputError(
                f"--shard {self.number}/{self.of}: these sequences come in {len(leases)} parts at "
                f"most (in {LEASES} where there are many)"
            )
        mine = [lease for lease in leases if part_of(lease, len(leases), self.of) == self.number]
        left = [lease for lease in mine if not _file(self.out, lease).exists()]
        for lease, gathered in zip(left, self.engine.gather(work, left, order), strict=True):
            path = _file(self.out, lease)
            about = {"clipped": gathered.clipped, "batch_size": gathered.batch_size}
            try:
                path.parent.mkdir(exist_ok=True)
                write_sums(path, gathered.sums, about)
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from error
            self.progress(len(mine) - len(left) + left.index(lease) + 1, len(mine))
        half = NAMES[leases[0].split]
        raise Waiting(
            f"Part {self.number} of {self.of} of the {half} half is done: {self.out}. "
            "When all are, `mesaprobe merge` puts them together."
        )


@dataclass(frozen=True)
class Merged:
    """Reads what the parts have measured.

    Attributes:
        engine: Who measures what the parts did not: shorter sweeps beside the main one.
        out: The folder of the whole run.
        parts: The folder of each part, in order.
    """

    engine: Engine
    out: Path
    parts: tuple[Path, ...]

    @property
    def name(self) -> str:
        """See `Engine`."""
        return f"{len(self.parts)} parts, merged"

    def workers(self, plan: Plan) -> int:
        """See `Engine`."""
        return len(self.parts)

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """See `Engine`.

        Raises:
            Waiting: The parts have to measure the test half, now that the fit half is merged.
            InputError: A part has not finished.
        """
        if work.name != MAIN:
            yield from self.engine.gather(work, leases, order)
            return
        split, count = leases[0].split, len(work.worker.plan.leases(leases[0].split))
        files = [
            _file(self.parts[part_of(lease, count, len(self.parts)) - 1], lease) for lease in leases
        ]
        if split != FIT and not any(file.exists() for file in files):
            self._hand_over()
        for file in files:
            if not file.exists():
                raise InputError(f"{file}: missing; this part has not finished its {NAMES[split]}")
        for file in files:
            sums, about = read_sums(file)
            if len(sums) != len(order.keys) or about.keys() != {"clipped", "batch_size"}:
                raise InputError(f"{file}: not the sums of this run")
            yield Gathered(sums, about["clipped"], int(about["batch_size"]))

    def _hand_over(self) -> None:
        name = f"{kept_as(MAIN, FIT)}.npz"
        for part in self.parts:
            shutil.copyfile(self.out / FOLDER / name, part / FOLDER / name)
        raise Waiting(
            "The fit half is merged. Run the commands of the parts again for the test half, "
            "then merge again."
        )


def part_of(lease: Lease, leases: int, parts: int) -> int:
    """The number of the part that measures a lease, from 1; parts are consecutive leases."""
    return lease.index * parts // leases + 1


def _file(out: Path, lease: Lease) -> Path:
    return out / FOLDER / "leases" / f"{NAMES[lease.split]}-{lease.index:02d}.npz"
