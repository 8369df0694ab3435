"""GD++: gradient steps on residuals that the context tokens carry, and inputs sharpened on the way.

A context token carries a_j, at first its key, and rho_j, at first its value; a query token carries
a and y. Each layer, in attention without a mask, does y += eta sum_j rho_j (a_j . a),
rho_j -= eta sum_i rho_i (a_i . a_j) and a -= gamma sum_i a_i (a_i . a) on all tokens (von Oswald
et al. 2022, GD++). As all are functions of G, with a = A x and rho = v - C S x:
S <- S + eta (1 - mu S) A^2, A <- A (1 - gamma mu A^2), and the prediction is C S(G) q.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import BidirectionalAttention
from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered
from probe.planted.frame import Frame
from probe.planted.scales import between, scales_of
from probe.planted.slots import Head, Layer, Slots
from probe.tasks.base import Task
from probe.tasks.regression import InContextRegression


@dataclass(frozen=True)
class SharpenedSteps:
    """f(mu) of the layers from `layer` on, for a query that is sharpened by none before.

    Attributes:
        etas: eta of each layer.
        gammas: gamma of each layer.
        layer: The layers before this one are left out.
    """

    etas: tuple[float, ...]
    gammas: tuple[float, ...]
    layer: int = 0

    def __call__(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Runs the recursion; the context passes all layers, the query those from `layer` on."""
        f, solved = torch.zeros_like(mu), torch.zeros_like(mu)
        inputs, query = torch.ones_like(mu), torch.ones_like(mu)
        for layer, (eta, gamma) in enumerate(zip(self.etas, self.gammas, strict=True)):
            step = eta * (1 - mu * solved) * inputs
            sharper = 1 - gamma * mu * inputs**2
            if layer >= self.layer:
                f, query = f + step * query, query * sharper
            solved, inputs = solved + step * inputs, inputs * sharper
        return f

    @property
    def degree(self) -> int:
        """Degree of mu f(mu): 1, 4, 13, .. for 1, 2, 3, .. layers."""
        solved, inputs = 0, 0
        for _ in self.etas:
            solved, inputs = solved + 2 * inputs + 1, 3 * inputs + 1
        return solved


@dataclass(frozen=True)
class PlantedSharpenedDescent:
    """Two layers, a polynomial of degree 4, whose steps are too large to pass for ridge."""

    name: str = "gradient_descent_pp"
    learns: bool = True

    def fits(self, task: Task) -> bool:
        """Regression, whose query tokens all see one whole context."""
        return isinstance(task, InContextRegression)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws the constants of both layers; the second step is sized for the sharpened inputs."""
        top = scales_of(task, generator).top
        gamma = between(generator, 0.6, 0.9)
        mu = torch.linspace(0, 1, 256, dtype=torch.float64)
        sharpened = float((mu * (1 - gamma * mu) ** 2).max())
        sizes = between(generator, 0.8, 1.4), between(generator, 1.1, 1.5) / sharpened
        curve = SharpenedSteps(tuple(size / top for size in sizes), (gamma / top,) * 2)
        frame = Frame.of(task)
        return Planted(
            name=f"gd++-2 etas {curve.etas[0]:.3g}, {curve.etas[1]:.3g} gamma {gamma / top:.3g}",
            model=frame.build(_layers(frame.slots, curve)),
            task=task,
            truth=Truth("first_order", "polynomial", curve.degree),
            solver=Filtered(curve),
            states=frame.states(
                [SharpenedSteps(curve.etas, curve.gammas, layer) for layer in range(2)]
            ),
        )


def _layers(slots: Slots, curve: SharpenedSteps) -> list[Layer]:
    """Context tokens hold a in the key's slot and rho in the value's, queries a in that of r."""
    read, write = slots.read, slots.write

    def head(query: str, value: str, into: str, scale: float) -> Head:
        return Head(read(query), read("prev"), read(value), write(into, scale))

    return [
        Layer(
            BidirectionalAttention,
            (
                head("r", "x", "y", eta),
                head("prev", "x", "x", -eta),
                head("r", "prev", "r", -gamma),
                head("prev", "prev", "prev", -gamma),
            ),
        )
        for eta, gamma in zip(curve.etas, curve.gammas, strict=True)
    ]


NAMED = {"gradient_descent_pp": PlantedSharpenedDescent()}
