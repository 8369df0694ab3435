"""Gaussian noise on every weight, as much as costs a stated share of the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.planted.base import Planted
from probe.planted.disguises.base import blurred, output_of, rebuilt
from probe.sampling import normal

TRIED, FACTOR, LEAPS, HALVINGS = 1e-3, 4, 20, 7  # sizes are shares of the rms of a matrix


@dataclass(frozen=True)
class WeightNoise:
    """Noise in proportion to the rms of each matrix, of the sign that costs more.

    The other sign may improve the model at first, and would have to go far before it costs.

    Attributes:
        name: Name of the disguise.
        share: By what share the loss at judged positions rises.
        positions: Judged positions of the sample on which it does; on others it rises by a little
            more or less, the more so the fewer these are.
    """

    name: str
    share: float
    positions: int = 10_000

    def fits(self, planted: Planted) -> bool:
        """Any model."""
        return True

    @torch.no_grad()
    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws a direction, then finds on a sample of the task how far to go in it."""
        own = dict(planted.model.named_parameters())
        noise = {n: _like(p, generator) for n, p in own.items() if p.ndim > 1}
        loss = _loss_on_sample(planted, self.positions, generator)

        def moved(size: float) -> Planted:
            weights = {n: p + size * noise[n] if n in noise else p for n, p in own.items()}
            return replace(planted, model=rebuilt(planted.model.config, weights))

        level = (1 + self.share) * loss(planted)
        sign = 1 if not loss(moved(TRIED)) < loss(moved(-TRIED)) else -1
        size = sign * _crossing(lambda size: loss(moved(sign * size)), level)
        return replace(
            moved(size),
            truth=blurred(planted.truth),
            disguises=(*planted.disguises, self.name),
            exact=False,
        )


def _like(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the rms of a matrix."""
    drawn = normal(generator, *matrix.shape).to(matrix)
    return drawn * matrix.square().mean().sqrt()


def _loss_on_sample(
    planted: Planted, positions: int, generator: torch.Generator
) -> Callable[[Planted], float]:
    """The task loss at judged positions, on one sample for all who ask."""
    first, stop = planted.task.windows.judged
    sequences = planted.task.sample(-(-positions // (stop - first)), generator)
    judged = slice(first, stop)
    targets = planted.task.problem(sequences).targets[:, judged].double()

    def loss(changed: Planted) -> float:
        error = output_of(changed.model, sequences.tokens)[:, judged] - targets
        return float(error.square().sum(-1).mean() / 2)

    return loss


def _crossing(loss: Callable[[float], float], level: float) -> float:
    """A size at which the loss rises through a level: leaps around it, then bisection.

    A loss that is no number counts as above.
    """
    size = TRIED
    below = loss(size) < level
    for _ in range(LEAPS):
        size = size * FACTOR if below else size / FACTOR
        if (loss(size) < level) != below:
            break
    low, high = (size / FACTOR, size) if below else (size, size * FACTOR)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if loss(middle) < level else (low, middle)
    return low


NAMED = {
    "noise_1": WeightNoise("noise_1", 0.01),
    "noise_5": WeightNoise("noise_5", 0.05),
    "noise_20": WeightNoise("noise_20", 0.2),
}
