"""The states f(G) q that a solver may keep in the stream, and which of them the next block acts on.

A block that takes a step of an iterative solver adds C g(G) q to the prediction, where g is what
is left of the query times a step size. So the growth of the model's own read-out over one block
tells the state before it, up to a factor, whatever the algorithm.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.causal.transfer import HATS, SPACING
from probe.problem import Spectrum
from probe.response import STRIDE, gcv_solve, hats, second_differences

RIDGES = 13
REACHED = 1e-4  # of the energy at the most frequent knot
STEPS, SIZES = (1, 2, 3, 4, 6), (0.5, 1.0)  # sizes in units of 1 / mu_top


@runtime_checkable
class SolverState(Protocol):
    """A state f(G) q that a layer may hold; `constant` is what was chosen of it."""

    @property
    def constant(self) -> float:
        """A number that tells the state from others of its kind."""

    def residual(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """What is left of a direction with eigenvalue mu."""


@dataclass(frozen=True)
class RidgeResidual:
    """The residual of ridge regression, lambda (G + lambda)^-1 q."""

    constant: float

    def residual(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Lambda / (mu + lambda)."""
        return self.constant / (mu + self.constant)

    def __str__(self) -> str:
        return f"the residual of ridge regression with lambda {self.constant:.2g}"


@dataclass(frozen=True)
class GradientResidual:
    """The residual of gradient steps of one size, (1 - eta G)^steps q."""

    constant: float
    steps: int

    def residual(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """(1 - eta mu)^steps."""
        return (1 - self.constant * mu) ** self.steps

    def __str__(self) -> str:
        return f"the residual of {self.steps} gradient steps of size {self.constant:.2g}"


@dataclass(frozen=True)
class ActedOn:
    """What the next block that adds to the prediction acts on, as a curve over 31 knots.

    Attributes:
        knots: The knots.
        curve: The residual at the knots, 1 where it is largest.
        r2: How well C g(G) q explains the growth of the read-out.
        share: Energy of that growth, as a share of that of the block that adds most.
    """

    knots: tuple[float, ...]
    curve: tuple[float, ...]
    r2: float
    share: float

    @property
    def constant(self) -> float:
        """The smallest knot at which no more than half is left; NaN if there is none."""
        return next((mu for mu, left in zip(self.knots, self.curve, strict=True) if left <= 0.5),
                    math.nan)  # fmt: skip

    def residual(self, mu: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Linear between the knots, over log mu."""
        knots = torch.tensor(self.knots, dtype=torch.float64)
        return hats(mu, knots).double() @ torch.tensor(self.curve, dtype=torch.float64)

    def __str__(self) -> str:
        words = "what the next block acts on"
        if math.isnan(self.constant):
            return words
        return f"{words}, half of which is left at eigenvalue {self.constant:.2g}"


def known_states(knots: tuple[float, ...], mu_top: float) -> tuple[SolverState, ...]:
    """Ridge over the range of the eigenvalues, and a few gradient steps.

    Args:
        knots: Knots of the response.
        mu_top: The 99 % quantile of the eigenvalues.
    """
    low, high = (math.log10(knots[i]) for i in (STRIDE - 1, -1))
    ridges = torch.logspace(low, high, RIDGES, dtype=torch.float64).tolist()
    steps = [GradientResidual(size / mu_top, steps) for steps in STEPS for size in SIZES]
    return (*(RidgeResidual(ridge) for ridge in ridges), *steps)


def step_knots(knots: tuple[float, ...]) -> Float[Tensor, " hats"]:
    """The 31 knots of g."""
    return torch.tensor(knots[STRIDE - 1 :: SPACING], dtype=torch.float64)


def filtered_queries(
    spectrum: Spectrum, t: int, knots: Float[Tensor, " hats"]
) -> Float[Tensor, "batch d_k hats"]:
    """hat_i(G_t) q_t at one position."""
    spread = spectrum.query[:, t, :, None] * hats(spectrum.mu[:, t], knots).double()
    return spectrum.basis[:, t].double() @ spread


def acted_on(
    gram: Float[Tensor, "hats hats"],
    cross: Float[Tensor, "hats layers"],
    energy: Float[Tensor, " layers"],
    rows: int,
    knots: Float[Tensor, " hats"],
) -> tuple[ActedOn, ...]:
    """For each block the curve g of its growth, scaled to 1 where it is largest.

    Args:
        gram: Products of the columns C hat_i(G) q.
        cross: Their products with the growth of the read-out over each block.
        energy: Summed squares of the growth.
        rows: How many numbers each sums over.
        knots: The knots of the hats.
    """
    rough = second_differences(HATS)
    found = []
    for product, squares in zip(cross.unbind(1), energy, strict=True):
        curve = gcv_solve(gram, product[:, None], squares, rough, rows).coefficients[:, 0]
        left = squares - 2 * curve @ product + curve @ gram @ curve
        r2 = float(1 - left / squares.clamp(min=torch.finfo(squares.dtype).tiny))
        scaled = curve / curve[_largest(curve, gram)]
        share = float(squares / energy.max().clamp(min=torch.finfo(energy.dtype).tiny))
        found.append(ActedOn(tuple(knots.tolist()), tuple(scaled.tolist()), r2, share))
    return tuple(found)


def _largest(curve: Float[Tensor, " hats"], gram: Float[Tensor, "hats hats"]) -> int:
    """Where |g| is largest, among knots that the data reach."""
    reached = gram.diagonal() > REACHED * gram.diagonal().max()
    return int(torch.where(reached, curve.abs(), 0.0).argmax())
