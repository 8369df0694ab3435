"""A kernel smoother: one softmax head on (k_j, q_t); position 0, which holds no pair, is hidden."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import SoftmaxAttention
from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.frame import Frame, standard_clock
from probe.planted.scales import scales_of, whole
from probe.planted.slots import Layer
from probe.solvers.base import Posed
from probe.solvers.kernel_smoother import BETAS, offered
from probe.tasks.base import Task

LEAST, MOST = 1.0, 60.0  # beta |q|^2: less is nearly a mean, more is past float32's rounding


@dataclass(frozen=True)
class Smoother:
    """Averages with weights exp(beta k_j . q_t).

    Attributes:
        beta: Inverse bandwidth.
    """

    beta: float

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Zero while no pair is offered."""
        problem = posed.problem
        scores = self.beta * problem.queries.double() @ problem.keys.double().mT
        weights = scores.masked_fill(~offered(problem), -torch.inf).softmax(-1)
        return weights.nan_to_num() @ problem.values.double()


@dataclass(frozen=True)
class PlantedSmoother:
    """One head with a bandwidth from the grid of the solver."""

    name: str = "kernel_smoother"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics."""
        return frame.fits(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the bandwidth."""
        scales = scales_of(task, generator)
        open_ = [beta for beta in BETAS if beta * scales.largest_query <= MOST] or [BETAS[0]]
        sharp = [beta for beta in open_ if beta * scales.query >= LEAST] or [open_[-1]]
        beta = sharp[whole(generator, 0, len(sharp) - 1)]
        return plant_smoother(task, f"kernel smoother beta {beta:g}", beta, self.name)


def plant_smoother(task: Task, name: str, beta: float, family: str) -> Planted:
    """A model of one softmax head."""
    shared = Frame.of(task, clock=standard_clock(task.length))
    layer = Layer(SoftmaxAttention, (shared.smoother("r", "y", beta),))
    truth = Truth("kernel", family, None)
    return Planted(name, shared.build((layer,)), task, truth, Smoother(beta))


NAMED = {"kernel_smoother": PlantedSmoother()}
