"""Richardson's iteration: gradient steps of different sizes, k = 2..5 layers."""

from dataclasses import dataclass

import torch

from probe.planted import frame
from probe.planted.base import Planted
from probe.planted.descent import plant_descent
from probe.planted.scales import log_between, scales_of, whole
from probe.tasks.base import Task


@dataclass(frozen=True)
class PlantedRichardson:
    """Steps log-uniform from 0.2 to 1.8 over the 99 % quantile of the largest eigenvalue."""

    name: str = "richardson"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Linear dynamics or regression."""
        return frame.poses_pairs(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the number of steps and the size of each."""
        top, steps = scales_of(task, generator).top, whole(generator, 2, 5)
        etas = tuple(log_between(generator, 0.2, 1.8) / top for _ in range(steps))
        words = ", ".join(f"{eta:.3g}" for eta in etas)
        return plant_descent(task, f"richardson-{steps} etas {words}", etas, "polynomial")


NAMED = {"richardson": PlantedRichardson()}
