"""What solvers share: how they are fitted to a predictor, and the three shapes they come in.

Let y be what a model predicts. A *spectral* family predicts C f(G) q and is a curve of shrinkage
mu f(mu) over the eigenvalues. A *column* family looks at the tokens and offers a few ready
predictions. A *map* family predicts L P q with a trained matrix P. The error of any spectral or
column solver is a quadratic form in its weights over shared columns, so that one Gram matrix of
those columns fits and scores them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe import registry, solvers
from probe.problem import InContextProblem, PrefixMoments, Spectrum


@dataclass(frozen=True)
class Quadratic:
    """The summed squared error of a weighted sum of columns: w^T gram w - 2 w^T cross + energy."""

    gram: Float[Tensor, "columns columns"]
    cross: Float[Tensor, " columns"]
    energy: float

    def error(self, weights: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
        """The error of each weight vector."""
        return ((weights @ self.gram) * weights).sum(-1) - 2 * weights @ self.cross + self.energy

    def part(self, columns: slice) -> "Quadratic":
        """The form for some of the columns."""
        return Quadratic(self.gram[columns, columns], self.cross[columns], self.energy)


@dataclass(frozen=True)
class Fitted:
    """A member of a family with its constants, fitted on the fit split.

    Attributes:
        family: Name of the family.
        constants: The fitted constants and the chosen number of steps.
        weights: Weights over the columns of the family: knots of mu, or its own columns.
        degree: Degree of f as a polynomial in mu, plus one; None if it is not a polynomial.
        free: How many constants were fitted.
        error: Its error on the fit split, as a share of what there is to explain.
    """

    family: str
    constants: Mapping[str, float | int]
    weights: Float[Tensor, " columns"] = field(repr=False)
    degree: int | None
    free: int
    error: float = float("nan")


@runtime_checkable
class Posed(Protocol):
    """A problem with what follows from it."""

    @property
    def problem(self) -> InContextProblem:
        """The pairs, queries and targets."""

    @property
    def moments(self) -> PrefixMoments:
        """G_t and C_t."""

    @property
    def spectrum(self) -> Spectrum:
        """The problem in the eigenbases of G_t."""


@dataclass(frozen=True)
class Spectral:
    """What a spectral family needs to be fitted.

    Attributes:
        errors: The error of any shrinkage curve, given at the knots.
        mu: The knots.
        step_bound: 2 / q99 of the largest eigenvalue: the largest step that does not diverge.
        rows: How many predicted numbers the errors sum over.
    """

    errors: Quadratic
    mu: Float[Tensor, " knots"]
    step_bound: float
    rows: int


@runtime_checkable
class SpectralFamily(Protocol):
    """A family of shrinkage curves."""

    name: str
    is_null: bool

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """The best curve for each number of steps, simplest first."""


@runtime_checkable
class ColumnFamily(Protocol):
    """A family that offers ready predictions."""

    name: str
    is_null: bool
    width: int

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """The predictions."""

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """The best weighting of the columns that the family allows."""


@runtime_checkable
class MapFamily(Protocol):
    """A family y = L_t P q_t with a matrix P that is the same for all sequences."""

    name: str
    is_null: bool

    def left(self, posed: Posed) -> Float[Tensor, "#batch #time d_v rows"]:
        """L_t; one for all where it is the same everywhere."""


Family = SpectralFamily | ColumnFamily | MapFamily


@cache
def families() -> Mapping[str, Family]:
    """All families, by name."""
    return MappingProxyType(registry.discover(solvers))


def zoom(
    errors: Quadratic,
    curve: "Curve",
    low: float,
    high: float,
    rounds: int = 4,
    points: int = 33,
) -> float:
    """The constant in [low, high] of least error: a log-spaced grid, refined at its best point."""
    for _ in range(rounds):
        grid = torch.logspace(_log10(low), _log10(high), points, dtype=torch.float64)
        best = int(errors.error(curve(grid[:, None])).nan_to_num(torch.inf).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
        value = float(grid[best])
    return value


@runtime_checkable
class Curve(Protocol):
    """Shrinkage at the knots from a constant of shape (points, 1)."""

    def __call__(self, constant: Float[Tensor, "points 1"]) -> Float[Tensor, "points knots"]:
        """One curve per constant."""


def _log10(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log10())
