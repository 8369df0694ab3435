"""When a curve over checkpoints rises, and when it falls fastest: with intervals.

A change is seen only between two checkpoints, so its place in each resample is the bracket of the
two. An interval unites the brackets of 95 % of the resamples: it is never narrower than one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.statistics import BLOCKS, Interval, resample_weights

TAIL = 0.025

Range = tuple[float | int, float | int]


@dataclass(frozen=True)
class Course:
    """A statistic over the checkpoints of a series, and its paired resamples.

    Attributes:
        steps: Training steps, ascending.
        value: The statistic at each of them.
        draws: The same in each resample of the blocks of sequences; a draw takes the same blocks
            at every step.
    """

    steps: Float[Tensor, " steps"]
    value: Float[Tensor, " steps"]
    draws: Float[Tensor, "draws steps"]

    @classmethod
    def of(
        cls,
        steps: Sequence[int],
        statistics: Sequence[Callable[[Float[Tensor, "draws blocks"]], Float[Tensor, " draws"]]],
    ) -> "Course":
        """Asks the statistic of each step, from weights of the blocks.

        Raises:
            ValueError: Fewer than two steps, or steps that do not ascend.
        """
        if len(steps) < 2 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"steps must ascend, and be two at least: {list(steps)}")
        whole = torch.ones(1, BLOCKS, dtype=torch.float64)
        return cls(
            torch.tensor(steps, dtype=torch.float64),
            torch.stack([statistic(whole)[0] for statistic in statistics]),
            torch.stack([statistic(resample_weights()) for statistic in statistics], -1),
        )

    @cached_property
    def intervals(self) -> tuple[Interval, ...]:
        """The statistic at each step with its 95 % percentile interval."""
        ends = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
        lo, hi = torch.quantile(self.draws, ends, dim=0).tolist()
        return tuple(map(Interval, self.value.tolist(), lo, hi))


@dataclass(frozen=True)
class Rises:
    """The curve rises within the series.

    Attributes:
        step: Where it passes the level, on a straight line between two checkpoints.
        lo: A checkpoint before the rise, at 95 %.
        hi: A checkpoint after it; infinite where resamples do not reach the level.
        level: Half of the curve's peak, and at least the margin.
        lasts: Whether the last checkpoint still lies above the level.
    """

    step: float
    lo: float
    hi: float
    level: float
    lasts: bool


@dataclass(frozen=True)
class Present:
    """The curve is above the level at the first checkpoint: it rose before, or with no training.

    Attributes:
        step: The first checkpoint.
        level: Half of the curve's peak, and at least the margin.
        lasts: Whether the last checkpoint still lies above the level.
    """

    step: float
    level: float
    lasts: bool


@dataclass(frozen=True)
class Absent:
    """The curve never passes the margin beyond doubt.

    Attributes:
        step: Where it is highest.
        peak: How high it is there.
    """

    step: float
    peak: Interval


Onset = Rises | Present | Absent


def find_onset(course: Course, margin: float) -> Onset:
    """Where the curve first reaches half of its peak, if its peak lies above the margin.

    Args:
        course: The curve, with nothing at zero.
        margin: What it must exceed, with the lower end of its interval, to have risen at all.
    """
    top = int(course.value.argmax())
    if course.intervals[top].lo <= margin:
        return Absent(float(course.steps[top]), course.intervals[top])
    level = max(float(course.value[top]) / 2, margin)
    above = course.value >= level
    lasts, first = bool(above[-1]), int(above.int().argmax())
    if first == 0:
        return Present(float(course.steps[0]), level, lasts)
    lo, hi = _brackets(course, margin)
    before, after = course.value[first - 1 : first + 1].tolist()
    share = (level - before) / (after - before)
    start, stop = course.steps[first - 1 : first + 1].tolist()
    return Rises(start + share * (stop - start), min(lo, start), max(hi, stop), level, lasts)


def _brackets(course: Course, margin: float) -> tuple[float, float]:
    """Outer ends of the brackets that hold the first passage in 95 % of the resamples."""
    levels = (course.draws.max(1, keepdim=True).values / 2).clamp(min=margin)
    above: Bool[Tensor, "draws steps"] = course.draws >= levels
    first = above.int().argmax(1)
    never = torch.full((len(above),), torch.inf, dtype=torch.float64)
    after = torch.where(above.any(1), course.steps[first], never)
    before = torch.where(above.any(1), course.steps[(first - 1).clamp(min=0)], course.steps[-1])
    return _outer(before, after)


def _outer(before: Float[Tensor, " draws"], after: Float[Tensor, " draws"]) -> tuple[float, float]:
    lo = torch.quantile(before, TAIL, interpolation="lower")
    hi = torch.quantile(after, 1 - TAIL, interpolation="higher")
    return float(lo), float(hi)


@dataclass(frozen=True)
class Fall:
    """The pair of neighbouring checkpoints between which a curve falls fastest per step.

    Attributes:
        start: The first of the pair.
        stop: The second.
        lo: The first of the earliest pair, at 95 %.
        hi: The second of the latest pair.
    """

    start: float
    stop: float
    lo: float
    hi: float


def steepest_fall(course: Course) -> Fall | None:
    """Where the curve falls fastest; None if it falls nowhere beyond doubt."""
    length = course.steps.diff()
    rate, rates = -course.value.diff() / length, -course.draws.diff(dim=1) / length
    at, places = int(rate.argmax()), rates.argmax(1)
    if float(torch.quantile(rates[:, at], TAIL)) <= 0:
        return None
    lo, hi = _outer(course.steps[places], course.steps[places + 1])
    start, stop = course.steps[at : at + 2].tolist()
    return Fall(start, stop, min(lo, start), max(hi, stop))


def share_of_fall(course: Course, start: float | int, stop: float | int) -> Interval:
    """How much of the fall from the first to the last checkpoint lies between two of them.

    Args:
        course: The curve.
        start: A step of the course.
        stop: A later step of it.

    Returns:
        NaN where the curve does not fall.
    """
    steps = course.steps.tolist()
    a, b = steps.index(start), steps.index(stop)

    def share(curves: Float[Tensor, "draws steps"]) -> Float[Tensor, " draws"]:
        whole = curves[:, 0] - curves[:, -1]
        return torch.where(whole > 0, (curves[:, a] - curves[:, b]) / whole, torch.nan)

    ends = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    lo, hi = torch.nanquantile(share(course.draws), ends).tolist()
    return Interval(float(share(course.value[None])[0]), lo, hi)


def overlap(first: Range, second: Range) -> bool:
    """Whether two intervals of steps have more than an end in common."""
    return max(first[0], second[0]) < min(first[1], second[1])
