"""A finite pool of known teachers: recognise which one made the sequence, then apply it.

A linear head of width 1 adds up the squares of one component of s_t - W_i s_{t-1}: it scores its
own value by itself. Summed over components these are the squared residuals S_i of every teacher.
Hidden units then hold what S_i exceeds any other S_j by, and close the gate of W_i s_t with it.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu

from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.frame import Frame, standard_clock
from probe.planted.scales import scales_of
from probe.planted.slots import Head, Hidden, Layer, gated
from probe.solvers.base import Posed
from probe.tasks.base import Task
from probe.tasks.teachers import Pool

CLOSING = 100.0  # what an excess of 1, in units of the sharpness, takes from a gate
SHARPNESS = 30.0  # excess of one typical |s|^2


@dataclass(frozen=True)
class Recognised:
    """y = W_i q with the W_i of least squared residuals so far; soft while two are close.

    Attributes:
        matrices: The known teachers.
        sharpness: Scale of an excess, per squared residual.
    """

    matrices: Float[Tensor, "pool d_v d_k"] = field(repr=False)
    sharpness: float

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Its predictions."""
        problem = posed.problem
        keys, values = problem.keys.double(), problem.values.double()
        residuals = values - torch.einsum("mvk,btk->mbtv", self.matrices, keys)
        scores = residuals.square().sum(-1).cumsum(-1)
        excess = self.sharpness * (scores[:, None] - scores)
        gates = -CLOSING * gelu(excess, approximate="tanh").sum(1)[..., None]
        moved = torch.einsum("mvk,btk->mbtv", self.matrices, problem.queries.double())
        passed = gelu(moved + gates, approximate="tanh") - gelu(gates - moved, approximate="tanh")
        return passed.sum(0)


@dataclass(frozen=True)
class PlantedLookup:
    """Its constants are the task's own teachers."""

    name: str = "lookup"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics with a finite pool of teachers."""
        return frame.fits(task) and isinstance(task.teacher, Pool)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Sets the sharpness by the size of the states."""
        if not isinstance(task.teacher, Pool):
            raise TypeError(f"{task.name} has no finite pool of teachers")
        matrices = task.teacher.matrices.double()
        sharpness = SHARPNESS / scales_of(task, generator).query
        extras = {"scores": len(matrices), "gates": len(matrices)}
        shared = Frame.of(task, extras, standard_clock(task.length))
        return Planted(
            name=f"lookup among {len(matrices)}",
            model=shared.build(_layers(shared, matrices, sharpness)),
            task=task,
            truth=Truth("lookup", "pool_lookup", None),
            solver=Recognised(matrices, sharpness),
        )


def _layers(
    shared: Frame, matrices: Float[Tensor, "pool d d"], sharpness: float
) -> tuple[Layer, ...]:
    """Scores and gates, then the passing."""
    read, write = shared.slots.read, shared.slots.write
    heads = tuple(
        Head(read("one"), residual, residual, write("scores")[index, None])
        for index, matrix in enumerate(matrices)
        for residual in (read("x") - read("prev", matrix.mT)).mT.unsqueeze(-1)
    )
    gates, scores = write("gates"), read("scores")
    excess = sharpness * (scores[:, :, None] - scores[:, None, :]).flatten(1)
    closing = -CLOSING * gates.repeat_interleave(len(matrices), 0)
    passing = tuple(
        gated(read("x", matrix.mT), read("gates")[:, index, None], write("y"))
        for index, matrix in enumerate(matrices)
    )
    return Layer(heads=heads, hidden=(Hidden(excess, closing),)), Layer(hidden=passing)


NAMED = {"lookup": PlantedLookup()}
