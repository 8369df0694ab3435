"""Ridge regression by one mesa layer; von Oswald et al. 2023, section 4."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import MesaAttention
from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered
from probe.planted.frame import Frame
from probe.planted.scales import Scales, log_between, scales_of
from probe.planted.slots import Layer
from probe.tasks.base import Task


@dataclass(frozen=True)
class LeastSquares:
    """f(mu) = 1 / (mu + lambda).

    Attributes:
        penalty: lambda.
    """

    penalty: float

    def __call__(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """At every eigenvalue."""
        return 1 / (mu + self.penalty)


def draw_penalty(scales: Scales, generator: torch.Generator) -> float:
    """1e-3 to 1e-1 of a typical smallest eigenvalue; never what float32 tokens cannot resolve."""
    resolved = torch.finfo(torch.float32).eps * scales.top
    return max(log_between(generator, 1e-3, 1e-1) * scales.low, 10 * resolved)


def mesa_layer(shared: Frame, penalty: float, query: str = "r", into: str = "y") -> Layer:
    """Adds C (G + lambda)^-1 query to a slot."""
    return Layer(MesaAttention, (shared.head(query, "x", into),), ridge=penalty)


@dataclass(frozen=True)
class PlantedRidge:
    """One mesa layer whose penalty lies well below the eigenvalues."""

    name: str = "ridge"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Linear dynamics or regression."""
        return frame.poses_pairs(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws lambda."""
        penalty = draw_penalty(scales_of(task, generator), generator)
        shared = Frame.of(task)
        return Planted(
            name=f"ridge lambda {penalty:.3g}",
            model=shared.build((mesa_layer(shared, penalty),)),
            task=task,
            truth=Truth("least_squares", self.name, None),
            solver=Filtered(LeastSquares(penalty)),
            states=shared.states([LeastSquares(penalty)]),
        )


NAMED = {"ridge": PlantedRidge()}
