"""Chebyshev iteration: the residual polynomial that is smallest on an interval of eigenvalues.

1 - mu f(mu) = T_k((high + low - 2 mu) / (high - low)) / T_k((high + low) / (high - low));
Golub and Van Loan, Matrix Computations, section 11.2.8.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral

STEPS = tuple(range(2, 9))
LOW_SHARES = torch.logspace(-4, -0.05, 24, dtype=torch.float64)
HIGHS = torch.logspace(-0.5, 0.65, 24, dtype=torch.float64)


def polynomial(degree: int, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The Chebyshev polynomial T_degree by its recurrence, which also holds outside [-1, 1]."""
    before, now = torch.ones_like(x), x
    for _ in range(degree - 1):
        before, now = now, 2 * x * now - before
    return now


def shrinkage(
    mu: Float[Tensor, "..."], steps: int, low: float | Tensor, high: float | Tensor
) -> Float[Tensor, "..."]:
    """Mu f(mu) after `steps` steps tuned to eigenvalues in [low, high]."""
    centre = torch.as_tensor((high + low) / (high - low), dtype=torch.float64)
    return 1 - polynomial(steps, centre - 2 * mu / (high - low)) / polynomial(steps, centre)


def nodes(steps: int, low: float, high: float) -> Float[Tensor, " steps"]:
    """Roots of the residual polynomial: the inverse step sizes of Richardson's iteration."""
    angle = (torch.arange(steps, dtype=torch.float64) + 0.5) * torch.pi / steps
    return (high + low) / 2 + (high - low) / 2 * angle.cos()


@dataclass(frozen=True)
class Chebyshev:
    """k >= 2 steps (one step is gradient descent), tuned to an interval of two constants."""

    name: str = "chebyshev"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """Two constants for each number of steps, from a grid."""
        return tuple(self._fit(spectral, steps) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int) -> Fitted:
        knots = tuple(spectral.mu.tolist())
        lows, highs, curves = _candidates(knots, spectral.step_bound, steps)
        best = int(spectral.errors.error(curves).nan_to_num(torch.inf).argmin())
        constants = {"steps": steps, "low": float(lows[best]), "high": float(highs[best])}
        return Fitted(self.name, constants, curves[best], degree=steps, free=2)


@lru_cache(maxsize=32)
def _candidates(
    knots: tuple[float, ...], step_bound: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends and curve of every interval of the grid, which all fits on these knots share."""
    top = 2 / step_bound
    highs = (HIGHS * top)[:, None].expand(-1, len(LOW_SHARES)).flatten()
    lows = (HIGHS * top)[:, None].mul(LOW_SHARES).flatten()
    mu = torch.tensor(knots, dtype=torch.float64)
    return lows, highs, shrinkage(mu, steps, lows[:, None], highs[:, None])


NAMED = {"chebyshev": Chebyshev()}
