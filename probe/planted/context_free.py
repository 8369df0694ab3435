"""A fixed map of the query: the memorised teacher where the task has one, or a random map."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.frame import Frame
from probe.planted.scales import between
from probe.planted.slots import Layer, linear
from probe.solvers.base import Posed
from probe.tasks.base import Task
from probe.tasks.teachers import Fixed, Orthogonal


@dataclass(frozen=True)
class FixedMap:
    """y = P q."""

    matrix: Float[Tensor, "d_v d_k"] = field(repr=False)

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Its predictions."""
        return posed.problem.queries.double() @ self.matrix.mT


@dataclass(frozen=True)
class PlantedMap:
    """P is the teacher, or 0.5 to 1 times a random orthogonal matrix."""

    name: str = "context_free"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics."""
        return frame.fits(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws P where the task does not give it."""
        law = task.teacher if isinstance(task.teacher, Fixed) else Orthogonal()
        given = isinstance(law, Fixed)
        matrix = law.draw(1, task.width_out, generator)[0]
        matrix = matrix if given else matrix * between(generator, 0.5, 1.0)
        shared = Frame.of(task)
        layer = Layer(hidden=(linear(shared.slots.read("r", matrix.mT), shared.slots.write("y")),))
        name = "memorised teacher" if given else "random map"
        truth = Truth("context_free", "memorised_map", None)
        return Planted(name, shared.build((layer,)), task, truth, FixedMap(matrix))


NAMED = {"context_free": PlantedMap()}
