"""The mean of the values so far: a softmax head that looks at all pairs alike."""

from dataclasses import dataclass

import torch

from probe.planted import frame
from probe.planted.base import Planted
from probe.planted.kernel_smoother import plant_smoother
from probe.tasks.base import Task


@dataclass(frozen=True)
class PlantedMean:
    """A kernel smoother without a preference; it has no constants."""

    name: str = "mean"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics."""
        return frame.fits(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Always the same."""
        return plant_smoother(task, "mean", 0.0, self.name)


NAMED = {"mean": PlantedMean()}
