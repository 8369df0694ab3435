"""Gradient descent from zero with one step size per step: 1 - mu f(mu) = prod_i (1 - eta_i mu)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers import chebyshev
from probe.solvers.base import Fitted, Quadratic, Spectral

STEPS = (2, 3, 4, 6)
SWEEPS = 60


def shrinkage(
    mu: Float[Tensor, " knots"], etas: Float[Tensor, " steps"]
) -> Float[Tensor, " knots"]:
    """mu f(mu) after one step of each size."""
    return 1 - (1 - etas[:, None] * mu).prod(0)


@dataclass(frozen=True)
class StepwiseDescent:
    """k steps, each with its own size; a polynomial whose residual has real roots only."""

    name: str = "stepwise_descent"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """k constants for k steps."""
        starts = {
            int(fit.constants["steps"]): fit for fit in chebyshev.Chebyshev().fit_curve(spectral)
        }
        return tuple(self._fit(spectral, steps, starts[steps]) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int, start: Fitted) -> Fitted:
        etas = 1 / chebyshev.nodes(steps, start.constants["low"], start.constants["high"])
        for _ in range(SWEEPS):
            etas = _improve(spectral.errors, spectral.mu, etas)
        constants = {f"eta_{i + 1}": float(eta) for i, eta in enumerate(etas.sort().values)}
        curve = shrinkage(spectral.mu, etas)
        return Fitted(self.name, {"steps": steps, **constants}, curve, degree=steps, free=steps)


def _improve(errors: Quadratic, mu: Tensor, etas: Tensor) -> Tensor:
    """One sweep over the steps; given the others, the error is a parabola in each step size."""
    etas = etas.clone()
    for i in range(len(etas)):
        others = (1 - torch.cat([etas[:i], etas[i + 1 :]])[:, None] * mu).prod(0)
        fixed, slope = 1 - others, mu * others
        pull = slope @ (errors.cross - errors.gram @ fixed)
        etas[i] = pull / (slope @ errors.gram @ slope)
    return etas


NAMED = {"stepwise_descent": StepwiseDescent()}
