"""Gradient descent on the in-context least-squares loss, from zero, with one step size.

k steps give f(mu) = (1 - (1 - eta mu)^k) / mu; von Oswald et al. 2022, proposition 1.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral, zoom

STEPS = (1, 2, 3, 4, 5, 6, 8, 16)


def shrinkage(
    mu: Float[Tensor, "*batch"], steps: int, eta: float | Tensor
) -> Float[Tensor, "*batch2"]:
    """Mu f(mu) after `steps` steps of size eta."""
    return 1 - (1 - eta * mu) ** steps


@dataclass(frozen=True)
class GradientDescent:
    """k steps with a shared step size; more than one only below 2 / q99(mu), or it diverges."""

    name: str = "gradient_descent"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """One constant for each number of steps."""
        return tuple(self._fit(spectral, steps) for steps in STEPS)

    def _fit(self, spectral: Spectral, steps: int) -> Fitted:
        mu, bound = spectral.mu, spectral.step_bound * (1 if steps > 1 else 4)
        eta = zoom(spectral.errors, lambda e: shrinkage(mu, steps, e), 1e-4 * bound, bound)
        curve = shrinkage(mu, steps, eta)
        return Fitted(self.name, {"steps": steps, "eta": eta}, curve, degree=steps, free=1)


NAMED = {"gradient_descent": GradientDescent()}
