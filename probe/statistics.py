"""Intervals and tests of paired quantities, over blocks of whole sequences."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit
from torch import Tensor

from probe.sampling import generator_for

BLOCKS = 64
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % bootstrap interval."""

    value: float
    lo: float
    hi: float


@lru_cache
def resample_weights(draws: int = DRAWS, blocks: int = BLOCKS) -> Float[Tensor, "draws blocks"]:
    """How often each block is drawn in each resample; the same numbers in every run."""
    drawn = torch.randint(blocks, (draws, blocks), generator=generator_for(0, draws, blocks))
    counts = torch.zeros(draws, blocks, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


Statistic = Callable[[Float[Tensor, "draws blocks"]], Float[Tensor, " draws"]]


def bootstrap_interval(statistic: Statistic) -> Interval:
    """Percentile interval of a statistic that is computed from weights of blocks.

    Args:
        statistic: From weights of shape (draws, BLOCKS) to one value per draw. It is asked once
            with all weights 1, for the value, and once with the resamples.
    """
    value = statistic(_ONCE)[0]
    return Interval(float(value), *_ends(statistic(resample_weights()).numpy()))


_ONCE = torch.ones(1, BLOCKS, dtype=torch.float64)


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5 % and the 97.5 % quantile; NaN where a draw is."""
    if np.isnan(draws).any():
        return math.nan, math.nan
    places = [0.025 * (len(draws) - 1), 0.975 * (len(draws) - 1)]
    pairs = [(int(place), min(int(place) + 1, len(draws) - 1)) for place in places]
    ordered = np.partition(draws, sorted({index for pair in pairs for index in pair}))
    ends = [(float(ordered[a]), float(ordered[b])) for a, b in pairs]
    lo, hi = (
        low + (place - int(place)) * (high - low)
        for place, (low, high) in zip(places, ends, strict=True)
    )
    return lo, hi


def share_explained(error: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"]) -> Interval:
    """1 - sum(error) / sum(energy), uncentred R^2, with its interval."""
    return bootstrap_interval(lambda weights: 1 - (weights @ error) / (weights @ energy))


def mean_per_sequence(total: Float[Tensor, " blocks"], count: Float[Tensor, " blocks"]) -> Interval:
    """sum(total) / sum(count) with its interval."""
    return bootstrap_interval(lambda weights: (weights @ total) / (weights @ count))


@dataclass(frozen=True)
class MarginTest:
    """One-sided p-values of a paired ratio sum(total) / sum(energy) against a margin.

    Attributes:
        below: Against "the ratio is at least the margin"; small where it lies below.
        above: Against "the ratio is at most the margin"; small where it lies above.
    """

    below: float
    above: float


def against_margin(
    total: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"], margin: float
) -> MarginTest:
    """Student's t over blocks, with as many degrees of freedom as blocks less one.

    A ratio of means equals the margin where total - margin * energy has mean zero (Fieller 1954),
    so no expansion is needed. A predictor that diverges on one rare sequence would widen the
    spread until its own excess hides in it; so each side is tested with what lies far out on that
    side drawn in to the fence, which moves the mean towards the margin and weakens the claim.
    Without any spread between blocks the sign decides; where the numbers are not finite nothing
    is shown.
    """
    gap = total - margin * energy
    return MarginTest(below=_below_zero(gap), above=_below_zero(-gap))


def _below_zero(gap: Float[Tensor, " blocks"]) -> float:
    """P-value of a mean below zero."""
    gap = gap.clamp(min=fences(gap)[0])
    t = float(gap.mean() * len(gap) ** 0.5 / gap.std())
    return float(stdtr(len(gap) - 1, t)) if t == t else 1.0


def fences(values: Float[Tensor, " blocks"]) -> tuple[float, float]:
    """Three interquartile ranges past the quartiles: beyond, values are far out (Tukey 1977)."""
    low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype)).tolist()
    return low - 3 * (high - low), high + 3 * (high - low)


def equivalence_p(
    total: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"], margin: float
) -> float:
    """Two one-sided tests (Schuirmann 1987): against a ratio that leaves [-margin, margin]."""
    upper, lower = against_margin(total, energy, margin), against_margin(total, energy, -margin)
    return max(upper.below, lower.above)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values adjusted so that any false rejection is as rare as the level (Holm 1979)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return tuple(adjusted.tolist())


def standard_error(total: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"]) -> float:
    """Of the ratio sum(total) / sum(energy), to first order in its parts."""
    return _error_of_mean(total - total.sum() / energy.sum() * energy, energy)


def _error_of_mean(residual: Tensor, energy: Tensor) -> float:
    return float(residual.std() / len(residual) ** 0.5 / energy.mean())


def minimum_detectable(total: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"]) -> float:
    """The ratio that a two-sided paired t-test at 5 % tells from zero with power 80 %.

    As in that test, what lies far out is drawn in to the fences first; a block of the middle
    stands for the ratio, which one that is far out would carry along.
    """
    residual = total - (total / energy).median() * energy
    low, high = fences(residual)
    return detectable_in_errors(len(total)) * _error_of_mean(residual.clamp(low, high), energy)


@lru_cache
def detectable_in_errors(blocks: int = BLOCKS, level: float = 0.05, power: float = 0.8) -> float:
    """How many standard errors that is; the far tail's share of the power is below 1e-6."""
    critical = stdtrit(blocks - 1, 1 - level / 2)
    return float(nctdtrinc(blocks - 1, 1 - power, critical))
