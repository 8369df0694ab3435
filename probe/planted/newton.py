"""Newton's iteration on the context's own tokens: attention without a mask, k + 1 layers.

Every context token carries z = M x beside its key x, with M = c I at the start. A Newton step
M <- 2 M - M G M is z <- 2 z - sum_i x_i (z_i . z): attention writes the sum, the MLP does the rest.
Query tokens follow with y += sum_j v_j (z_j . r) and r -= sum_j x_j (z_j . r). The first layer has
M = c I and leaves r = (I - c G) q and y = c C q; each later layer squares what is left, so that
k of them give y = C M_k q with I - G M_k = (I - c G)^(2^k); Fu et al. 2023, eq. 8.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import BidirectionalAttention
from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered
from probe.planted.frame import Frame
from probe.planted.scales import between, scales_of, whole
from probe.planted.slots import Head, Layer, Slots, linear
from probe.tasks.base import Task
from probe.tasks.regression import InContextRegression


@dataclass(frozen=True)
class NewtonSteps:
    """f(mu) of the layers from `layer` on; all of them make M_k itself.

    Attributes:
        start: c.
        steps: k.
        layer: The layers before this one are left out.
    """

    start: float
    steps: int
    layer: int = 0

    def __call__(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Adds up what the layers do to a residual that is 1 before the first of them."""
        f, residual = torch.zeros_like(mu), torch.ones_like(mu)
        for inverse in self._inverses(mu)[self.layer :]:
            f = f + inverse * residual
            residual = residual * (1 - mu * inverse)
        return f

    def _inverses(self, mu: Tensor) -> list[Tensor]:
        """M of each layer: M_0 in the first two, then one Newton step more in each."""
        inverses = [torch.full_like(mu, self.start)]
        for _ in range(self.steps - 1):
            inverses.append(2 * inverses[-1] - mu * inverses[-1] ** 2)
        return [inverses[0], *inverses]


@dataclass(frozen=True)
class PlantedNewton:
    """8 or 9 steps: on spectra like these a polynomial of degree 8 imitates fewer within 0.02."""

    name: str = "newton"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Regression, whose query tokens all see one whole context."""
        return isinstance(task, InContextRegression)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the number of steps and a start that converges."""
        top = scales_of(task, generator).top
        steps, start = whole(generator, 8, 9), between(generator, 0.8, 1.2) / top
        frame = _frame(task, start)
        layers = range(steps + 1)
        curves = [NewtonSteps(start, steps, layer) for layer in layers]
        return Planted(
            name=f"newton-{steps} start {start:.3g}",
            model=frame.build([_layer(frame.slots, 0 < layer < steps) for layer in layers]),
            task=task,
            truth=Truth("least_squares", "newton", None),
            solver=Filtered(curves[0]),
            states=frame.states(curves),
        )


def _frame(task: Task, start: float) -> Frame:
    """The slots z and e beside the common ones; z is the key times `start`."""
    frame = Frame.of(task, dict.fromkeys(("z", "e"), task.width_out))
    key = frame.embed @ frame.slots.read("prev")
    return replace(frame, embed=frame.embed + key @ frame.slots.write("z", start))


def _layer(slots: Slots, improves: bool) -> Layer:
    """A step of y and r; where `improves`, also one of M."""
    read, write = slots.read, slots.write
    heads = (
        Head(read("r"), read("z"), read("x"), write("y")),
        Head(read("r"), read("z"), read("prev"), write("r", -1.0)),
    )
    if not improves:
        return Layer(BidirectionalAttention, heads)
    square = Head(read("z"), read("z"), read("prev"), write("e", -1.0))
    hidden = (linear(read("z") + read("e"), write("z")), linear(read("e"), write("e", -1.0)))
    return Layer(BidirectionalAttention, (*heads, square), hidden)


NAMED = {"newton": PlantedNewton()}
