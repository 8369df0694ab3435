"""The heavy ball: p_{k+1} = p_k + eta r_k + beta (p_k - p_{k-1}) with r = q - G p, y = C p.

The last steps dy = C (p_k - p_{k-1}) and dr = -G (p_k - p_{k-1}) have slots of their own.
Attention adds eta C r and -eta G r to them; the MLP adds them to y and r and shrinks them by beta.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted import frame
from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered
from probe.planted.frame import Frame, pair_widths
from probe.planted.scales import between, scales_of, whole
from probe.planted.slots import Layer, linear
from probe.tasks.base import Task


@dataclass(frozen=True)
class HeavyBall:
    """f(mu) after steps of the heavy ball from rest.

    Attributes:
        steps: How many.
        eta: Step size.
        beta: Share of the last step that is repeated.
    """

    steps: int
    eta: float
    beta: float

    def __call__(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Runs the recursion at every eigenvalue."""
        f, last = torch.zeros_like(mu), torch.zeros_like(mu)
        for _ in range(self.steps):
            last = self.eta * (1 - mu * f) + self.beta * last
            f = f + last
        return f


@dataclass(frozen=True)
class PlantedMomentum:
    """k = 2..6 steps of 0.3 to 1.6 over the 99 % quantile of the largest eigenvalue."""

    name: str = "momentum"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Linear dynamics or regression."""
        return frame.poses_pairs(task)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the number of steps, their size and beta."""
        eta = between(generator, 0.3, 1.6) / scales_of(task, generator).top
        steps, beta = whole(generator, 2, 6), between(generator, 0.2, 0.6)
        shared = self._frame(task)
        return Planted(
            name=f"momentum-{steps} eta {eta:.3g} beta {beta:.2g}",
            model=shared.build((_layer(shared, eta, beta),) * steps),
            task=task,
            truth=Truth("first_order", self.name, steps),
            solver=Filtered(HeavyBall(steps, eta, beta)),
            states=shared.states([HeavyBall(steps - at, eta, beta) for at in range(steps)]),
        )

    def _frame(self, task: Task) -> Frame:
        values, keys = pair_widths(task)
        return Frame.of(task, extras={"dy": values, "dr": keys})


def _layer(shared: Frame, eta: float, beta: float) -> Layer:
    read, write = shared.slots.read, shared.slots.write
    heads = (shared.head("r", "x", "dy", eta), shared.head("r", "prev", "dr", -eta))
    moves = tuple(
        linear(read(step), write(into) + write(step, beta - 1))
        for step, into in (("dy", "y"), ("dr", "r"))
    )
    return Layer(heads=heads, hidden=moves)


NAMED = {"momentum": PlantedMomentum()}
