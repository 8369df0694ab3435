"""Gradient descent with one step size, k = 1..6 layers."""

from dataclasses import dataclass

import torch

from probe.planted import frame
from probe.planted.base import Planted
from probe.planted.descent import plant_descent
from probe.planted.scales import between, scales_of, whole
from probe.tasks.base import Task


@dataclass(frozen=True)
class PlantedDescent:
    """Steps of 0.3 to 1.6 over the 99 % quantile of the largest eigenvalue."""

    name: str = "gradient_descent"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Linear dynamics or regression."""
        return frame.poses_pairs(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the number of steps and their size."""
        top = scales_of(task, generator).top
        steps, eta = whole(generator, 1, 6), between(generator, 0.3, 1.6) / top
        return plant_descent(task, f"gd-{steps} eta {eta:.3g}", (eta,) * steps, self.name)


NAMED = {"gradient_descent": PlantedDescent()}
