"""Chebyshev iteration: gradient steps whose sizes are best for an interval of eigenvalues."""

from dataclasses import dataclass

import torch

from probe.planted import frame
from probe.planted.base import Planted
from probe.planted.descent import plant_descent
from probe.planted.scales import between, log_between, scales_of, whole
from probe.solvers.chebyshev import nodes
from probe.tasks.base import Task


@dataclass(frozen=True)
class PlantedChebyshev:
    """k = 2..6 steps; the interval ends past the largest eigenvalue and starts at a share of it.

    An interval that ended earlier would diverge on rare sequences, whose errors drown all others.
    """

    name: str = "chebyshev"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Linear dynamics or regression."""
        return frame.poses_pairs(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the number of steps and the interval."""
        steps = whole(generator, 2, 6)
        high = between(generator, 1.0, 1.3) * scales_of(task, generator).peak
        low = log_between(generator, 0.02, 0.3) * high
        etas = tuple((1 / nodes(steps, low, high)).tolist())
        name = f"chebyshev-{steps} on {low:.3g}..{high:.3g}"
        return plant_descent(task, name, etas, self.name)


NAMED = {"chebyshev": PlantedChebyshev()}
