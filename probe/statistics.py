"""Intervals for paired quantities: everything is resampled by blocks of whole sequences."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
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
    value = statistic(torch.ones(1, BLOCKS, dtype=torch.float64))[0]
    draws = statistic(resample_weights())
    lo, hi = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(float(value), float(lo), float(hi))


def share_explained(error: Float[Tensor, " blocks"], energy: Float[Tensor, " blocks"]) -> Interval:
    """1 - sum(error) / sum(energy), uncentred R^2, with its interval."""
    return bootstrap_interval(lambda weights: 1 - (weights @ error) / (weights @ energy))


def mean_per_sequence(total: Float[Tensor, " blocks"], count: Float[Tensor, " blocks"]) -> Interval:
    """sum(total) / sum(count) with its interval."""
    return bootstrap_interval(lambda weights: (weights @ total) / (weights @ count))
