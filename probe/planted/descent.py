"""Gradient steps from zero as layers: y += eta C r, r -= eta G r, with r = q at the start.

k layers leave r = prod_i (1 - eta_i G) q and y = C f(G) q with 1 - mu f(mu) = prod_i
(1 - eta_i mu); von Oswald et al. 2022, proposition 1, and 2023, section 3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted.base import Planted, Truth
from probe.planted.frame import Frame
from probe.planted.slots import Layer
from probe.solvers.base import Posed
from probe.tasks.base import Task


@dataclass(frozen=True)
class Filtered:
    """The solver C f(G) q.

    Attributes:
        f: The response, which must also hold where mu is 0.
    """

    f: Callable[[Tensor], Tensor]

    def __call__(self, posed: Posed) -> Float[Tensor, "batch time d_v"]:
        """Its predictions, from all eigenvalues: a model knows no rank cut-off."""
        basis, coordinates = posed.spectrum.basis, posed.spectrum.query
        mu = (basis * (posed.moments.gram @ basis)).sum(-2).clamp(min=0)
        query = torch.einsum("btki,bti->btk", basis, self.f(mu) * coordinates)
        return torch.einsum("btvk,btk->btv", posed.moments.cross, query)


@dataclass(frozen=True)
class Steps:
    """f(mu) after gradient steps from zero.

    Attributes:
        etas: The step sizes, first to last.
    """

    etas: tuple[float, ...]

    def __call__(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Adds up the steps."""
        f, residual = torch.zeros_like(mu), torch.ones_like(mu)
        for eta in self.etas:
            f = f + eta * residual
            residual = residual - eta * mu * residual
        return f


def descent_layers(frame: Frame, etas: tuple[float, ...], into: str = "y") -> tuple[Layer, ...]:
    """One layer per step, which adds to the slot `into`."""
    return tuple(
        Layer(heads=(frame.head("r", "x", into, eta), frame.head("r", "prev", "r", -eta)))
        for eta in etas
    )


def plant_descent(task: Task, name: str, etas: tuple[float, ...], family: str) -> Planted:
    """A model of gradient steps of these sizes; `family` is what a detector should call it."""
    frame = Frame.of(task)
    return Planted(
        name=name,
        model=frame.build(descent_layers(frame, etas)),
        task=task,
        truth=Truth("first_order", family, len(etas)),
        solver=Filtered(Steps(etas)),
        states=frame.states([Steps(etas[layer:]) for layer in range(len(etas))]),
    )
