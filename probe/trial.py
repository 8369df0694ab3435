"""A short trial of a run: what each of its steps takes, so that the whole can be told.

Both splits are swept with few shards: the first ones warm up, a small and a large one for each
worker tell how memory grows with the length of a shard. Jobs are stopped as soon as they have told
of a small share of their work.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise

from probe.analysis import Asked, Bench, Job, Setting
from probe.checkpoints.base import Subject
from probe.memory import peak_bytes, restart_peak
from probe.plan import FIT, FOLDS, TEST, Plan, Shard
from probe.stages import Results
from probe.sweeps import swept

WARM, SMALL, LARGE = 16, 32, 96  # sequences of a trial's shards
SHARE = 0.05  # of its work that a job has to tell of


@dataclass(frozen=True)
class Step:
    """Wall time of something, and the most memory that the process held in it."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Pace:
    """What a group of shards takes, one for each worker, by how long its shards are."""

    small: Step
    large: Step

    def step(self, length: int) -> Step:
        """Of shards of `length` sequences.

        Memory grows along the line through both. Longer shards take time in proportion: the line
        would miss what does not fit into caches any more.
        """
        part = (length - SMALL) / (LARGE - SMALL)
        growth = max(self.large.memory - self.small.memory, 0)
        seconds = self.large.seconds * length / LARGE
        if length < LARGE:
            between = self.small.seconds + part * (self.large.seconds - self.small.seconds)
            seconds = max(between, seconds)
        return Step(seconds, round(self.small.memory + part * growth))


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        results: What the stages measured on the few sequences.
        first: The first shards of the run, with all that happens only once.
        fit: A group of shards of the fit split.
        learning: What stages learn from their sums.
        test: A group of shards of the test split.
        nudged: A sequence of a turned teacher; nothing where there is none.
    """

    results: Results = field(repr=False)
    first: Step
    fit: Pace
    learning: Step
    test: Pace
    nudged: float


@dataclass(frozen=True)
class Tried(Plan):
    """A plan with shards of the trial in place of its own: each length once for each worker."""

    @classmethod
    def of(cls, plan: Plan) -> "Tried":
        """The same plan, tried."""
        return cls(**{one.name: getattr(plan, one.name) for one in fields(plan)})

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the groups; enough of them to fill all folds."""
        warm = max(1, -(-FOLDS // self.workers) - 2)
        return (WARM,) * warm + (SMALL, LARGE)

    def shards(self, split: int) -> tuple[Shard, ...]:
        """As many in each split."""
        lengths = [length for length in self.lengths for _ in range(self.workers)]
        edges = accumulate(lengths, initial=0)
        return tuple(Shard(first, after - first) for first, after in pairwise(edges))


class Watch:
    """Takes time and peak memory from one mark to the next."""

    def __init__(self) -> None:
        restart_peak()
        self._since = time.perf_counter()

    def mark(self) -> Step:
        """What has passed since the last mark."""
        step = Step(time.perf_counter() - self._since, peak_bytes())
        restart_peak()
        self._since = time.perf_counter()
        return step


def try_sweep(subject: Subject, plan: Plan, setting: Setting, asked: Asked) -> Trial:
    """Sweeps few sequences and learns once, as a whole run does."""
    tried = Tried.of(plan)
    shards, groups = len(tried.shards(FIT)), len(tried.lengths)
    watch, steps, told = Watch(), [], 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        told += 1
        if told % plan.workers == 0 or told > 2 * shards:
            steps.append(watch.mark())

    measured = swept(subject, tried, setting, asked, tell)
    fit, test, after = steps[:groups], steps[groups : 2 * groups], steps[2 * groups :]
    # Learning comes before the first shards of the test, which take about as long as small ones.
    learning = Step(max(test[0].seconds - test[-2].seconds, 0.0), test[0].memory)
    drawn = sum(shard.size for shard in tried.shards(FIT) + tried.shards(TEST))
    nudged = sum(step.seconds for step in after) / drawn
    return Trial(measured.results, fit[0], Pace(*fit[-2:]), learning, Pace(*test[-2:]), nudged)


class _Enough(Exception):
    """A job has told of so much of its work that the rest can be told."""


def try_job(job: Job, bench: Callable[[Callable[[int, int], None]], Bench]) -> Step:
    """What a job takes, from the first part of its work that it tells of.

    A job that tells of nothing before it ends is run to its end.

    Args:
        job: The job.
        bench: Makes its bench from who is to be told of progress.
    """
    watch, shares = Watch(), []

    def tell(done: int, total: int) -> None:
        shares.append(done / max(total, 1))
        if len(shares) > 1 and SHARE <= shares[-1] < 1:
            raise _Enough

    try:
        job.run(bench(tell))
    except _Enough:
        step = watch.mark()
        return Step(step.seconds / shares[-1], step.memory)
    return watch.mark()
