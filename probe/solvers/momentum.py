"""The heavy ball: p_{k+1} = p_k + eta (q - G p_k) + beta (p_k - p_{k-1}), from rest at zero.

Polyak 1964, "Some methods of speeding up the convergence of iteration methods", eq. 9. beta = 0 is
gradient descent; the residual after two steps or more has complex roots where beta is large.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral

STEPS = (2, 3, 4, 5, 6)
MOST_ETA, MOST_BETA, POINTS = 1.9, 0.95, 15  # of the grid; eta in units of the step bound
REFINEMENTS = 8
HALVINGS = torch.tensor([0.0, *(0.5**power for power in range(8))], dtype=torch.float64)


def shrinkage(
    mu: Float[Tensor, "*#batch"],
    steps: int,
    eta: float | Float[Tensor, "*#batch"],
    beta: float | Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Mu f(mu) after `steps` steps of size eta that repeat the share beta of the last one."""
    solved = last = torch.zeros_like(mu)
    for _ in range(steps):
        last = eta * mu * (1 - solved) + beta * last
        solved = solved + last
    return solved


@dataclass(frozen=True)
class Momentum:
    """k >= 2 steps (the first is plain descent) with two constants, in the range that converges."""

    name: str = "momentum"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """Two constants for each number of steps."""
        return tuple(self._fit(spectral, steps) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int) -> Fitted:
        """The best point of a grid, then Gauss-Newton steps from there."""
        best = _least(spectral, *_grid(tuple(spectral.mu.tolist()), spectral.step_bound, steps))
        for _ in range(REFINEMENTS):
            points = best + HALVINGS[:, None] * _step(spectral, steps, best)
            best = _least(spectral, points, _curves(spectral.mu, steps, points))
        eta, beta = best.tolist()
        curve = shrinkage(spectral.mu, steps, eta, beta)
        constants = {"steps": steps, "eta": eta, "beta": beta}
        return Fitted(self.name, constants, curve, degree=steps, free=2)


@lru_cache(maxsize=32)
def _grid(knots: tuple[float, ...], step_bound: float, steps: int) -> tuple[Tensor, Tensor]:
    """The points where the search begins and their curves, which all fits on these knots share."""
    shares = torch.linspace(0.02, 1.0, POINTS, dtype=torch.float64)
    points = torch.cartesian_prod(shares * MOST_ETA * step_bound, shares * MOST_BETA)
    return points, _curves(torch.tensor(knots, dtype=torch.float64), steps, points)


def _curves(mu: Tensor, steps: int, points: Tensor) -> Tensor:
    return shrinkage(mu, steps, points[:, :1], points[:, 1:])


def _least(spectral: Spectral, points: Tensor, curves: Tensor) -> Tensor:
    """The point (eta, beta) of least error among those whose steps converge."""
    eta, beta = points.unbind(-1)
    # A rare eigenvalue past 2 (1 + beta) / eta must not decide the score of the test split.
    usable = (eta > 0) & (beta > 0) & (beta < 1) & (eta < (1 + beta) * spectral.step_bound)
    errors = spectral.errors.error(curves).nan_to_num(torch.inf)
    return points[int(torch.where(usable, errors, torch.inf).argmin())]


def _step(spectral: Spectral, steps: int, point: Tensor) -> Tensor:
    """Least squares on the curve's slopes, by differences, in both constants."""
    nudges = torch.diag(1e-5 * point)
    here, *there = _curves(spectral.mu, steps, torch.cat([point[None], point + nudges]))
    slopes = (torch.stack(there) - here) / nudges.diagonal()[:, None]
    errors = spectral.errors
    pull = slopes @ (errors.cross - errors.gram @ here)
    return torch.linalg.pinv(slopes @ errors.gram @ slopes.mT, hermitian=True) @ pull


NAMED = {"momentum": Momentum()}
