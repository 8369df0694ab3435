"""Which sequences a run draws, and how they are shared out.

Sequences come in shards, each with its own random stream; consecutive shards make a lease, which
one worker takes as a whole. Sums are added shard by shard within a lease, then lease by lease, so
that the bits of a result do not depend on who measured what, in which order, or in what batches.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from probe.errors import InputError
from probe.sampling import generator_for
from probe.statistics import BLOCKS
from probe.tasks.base import Sequences, Task

FOLDS = 4
SHARD = 256
LEASES = 64  # of a split at most: as many workers can share it, and as many accumulators are kept
LEAST_SEQUENCES = 4 * BLOCKS  # two of each block to fit and two to test
PILOT, FIT, TEST = 1, 2, 3  # no zeros: the seeding ignores zeros at the end of a path
NAMES = {FIT: "fit", TEST: "test"}


class Shard(NamedTuple):
    """Sequences that are drawn together: how many of the split come before, and their number."""

    start: int
    size: int


@dataclass(frozen=True)
class Lease:
    """Consecutive shards that one worker takes; their sums travel as one.

    Attributes:
        split: FIT or TEST.
        index: Its place among the leases of the split.
        first: The place of its first shard among the shards of the split.
        shards: Its shards.
    """

    split: int
    index: int
    first: int
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """Number of sequences."""
        return sum(shard.size for shard in self.shards)


@dataclass(frozen=True)
class Plan:
    """How many sequences, from which seed; in batches of what size, by whom, and where.

    Models run on the device; moments and fits stay on the CPU, in float64.

    Raises:
        InputError: Too few sequences for a fit, a test and their intervals.
    """

    task: Task
    sequences: int
    seed: int
    batch_size: int = SHARD
    workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Half of the sequences fit, half test; every block needs at least two of each."""
        least = LEAST_SEQUENCES
        if self.sequences < least:
            raise InputError(
                f"--sequences {self.sequences}: too few; half of them fit and half test, "
                f"and {least} are the least from which intervals can be stated"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: must lie between 0 and 2^32 - 1")
        if self.batch_size < 1 or self.workers < 1:
            raise InputError("batch size and workers must be at least 1")

    def shards(self, split: int) -> tuple[Shard, ...]:
        """The shards of a split; at least FOLDS, at most SHARD long."""
        count = self.sequences - self.sequences // 2 if split == FIT else self.sequences // 2
        edges = _edges(count, max(FOLDS, -(-count // SHARD)))
        return tuple(Shard(first, after - first) for first, after in pairwise(edges))

    def leases(self, split: int) -> tuple[Lease, ...]:
        """The shards of a split in leases; at least FOLDS, at most LEASES."""
        shards = self.shards(split)
        edges = _edges(len(shards), min(len(shards), LEASES))
        return tuple(Lease(split, i, a, shards[a:b]) for i, (a, b) in enumerate(pairwise(edges)))

    def draw(self, split: int, shard: int, count: int) -> Sequences:
        """The sequences of one shard."""
        return self.task.sample(count, generator_for(self.seed, split, shard))


def _edges(count: int, parts: int) -> list[int]:
    """Where equal parts begin and end."""
    return [count * i // parts for i in range(parts + 1)]
