"""Gradient descent from zero with one step size per step: 1 - mu f(mu) = prod_i (1 - eta_i mu)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probe.solvers import chebyshev
from probe.solvers.base import Fitted, Spectral

STEPS = (2, 3, 4, 5, 6)
SWEEPS = 25


def shrinkage(
    mu: Float[Tensor, " knots"], etas: Float[Tensor, " steps"]
) -> Float[Tensor, " knots"]:
    """Mu f(mu) after one step of each size."""
    return 1 - (1 - etas[:, None] * mu).prod(0)


@dataclass(frozen=True)
class StepwiseDescent:
    """k steps, each with its own size; a polynomial whose residual has real roots only."""

    name: str = "stepwise_descent"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """K constants for k steps."""
        starts = {
            int(fit.constants["steps"]): fit for fit in chebyshev.Chebyshev().fit_curve(spectral)
        }
        return tuple(self._fit(spectral, steps, starts[steps]) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int, start: Fitted) -> Fitted:
        nodes = chebyshev.nodes(steps, start.constants["low"], start.constants["high"])
        sizes = 1 / nodes.numpy()
        errors = spectral.errors
        for _ in range(SWEEPS):  # in numpy, whose small products are several times faster
            _improve(errors.gram.numpy(), errors.cross.numpy(), spectral.mu.numpy(), sizes)
        etas = torch.from_numpy(sizes)
        constants = {f"eta_{i + 1}": float(eta) for i, eta in enumerate(etas.sort().values)}
        curve = shrinkage(spectral.mu, etas)
        return Fitted(self.name, {"steps": steps, **constants}, curve, degree=steps, free=steps)


def _improve(
    gram: NDArray[np.float64],
    cross: NDArray[np.float64],
    mu: NDArray[np.float64],
    etas: NDArray[np.float64],
) -> None:
    """One sweep over the steps; given the others, the error is a parabola in each step size."""
    factors = 1 - etas[:, None] * mu
    for i in range(len(etas)):
        factors[i] = 1
        others = factors.prod(0)
        fixed, slope = 1 - others, mu * others
        curved = gram @ slope
        etas[i] = (slope @ cross - curved @ fixed) / (slope @ curved)
        factors[i] = 1 - etas[i] * mu


NAMED = {"stepwise_descent": StepwiseDescent()}
