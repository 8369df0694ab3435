"""A fixed mixture of the last two tokens, by an MLP."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.frame import Frame
from probe.planted.scales import between
from probe.planted.slots import Layer, Slots, linear
from probe.solvers.base import Posed
from probe.solvers.two_lag_copy import TwoLagCopy
from probe.tasks.base import Task
from probe.tasks.teachers import Fixed


@dataclass(frozen=True)
class Mixed:
    """y = last v_t + before v_{t-1}."""

    last: float
    before: float

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Its predictions."""
        weights = torch.tensor([self.last, self.before], dtype=torch.float64)
        return TwoLagCopy().columns(posed) @ weights

    def read(self, slots: Slots) -> Float[Tensor, "d_model d"]:
        """Reads the mixture from the stream."""
        return slots.read("x", self.last) + slots.read("prev", self.before)


def draw_mixed(generator: torch.Generator) -> Mixed:
    """Two weights of either sign, neither of them small."""
    sizes = [between(generator, 0.3, 1.0) for _ in range(2)]
    signs = torch.randint(2, (2,), generator=generator) * 2 - 1
    return Mixed(*(size * float(sign) for size, sign in zip(sizes, signs, strict=True)))


@dataclass(frozen=True)
class PlantedCopy:
    """Weights of 0.3 to 1 with random signs."""

    name: str = "two_lag_copy"
    learns: bool = False

    def fits(self, task: Task) -> bool:
        """Linear dynamics."""
        return frame.fits(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the two weights."""
        mixed = draw_mixed(generator)
        shared = Frame.of(task)
        layer = Layer(hidden=(linear(mixed.read(shared.slots), shared.slots.write("y")),))
        name = f"two-lag copy {mixed.last:.2f}, {mixed.before:.2f}"
        # With one teacher the state before is a map of the state, and so is any mixture of the two.
        also = ("context_free",) if isinstance(task.teacher, Fixed) else ()
        truth = Truth("copy", self.name, None, also)
        return Planted(name, shared.build((layer,)), task, truth, mixed)


NAMED = {"two_lag_copy": PlantedCopy()}
