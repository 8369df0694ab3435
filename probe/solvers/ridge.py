"""Ridge regression at every prefix: f(mu) = 1 / (mu + lambda); what a mesa-layer computes."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral, zoom


def shrinkage(mu: Float[Tensor, "*batch"], penalty: float | Tensor) -> Float[Tensor, "*batch2"]:
    """Mu f(mu) at a penalty lambda."""
    return mu / (mu + penalty)


@dataclass(frozen=True)
class Ridge:
    """Least squares with one penalty."""

    name: str = "ridge"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """One constant."""
        mu = spectral.mu
        low, high = float(mu[0]) * 1e-3, float(mu[-1]) * 10
        penalty = zoom(spectral.errors, lambda p: shrinkage(mu, p), low, high)
        curve = shrinkage(mu, penalty)
        return (Fitted(self.name, {"lambda": penalty}, curve, degree=None, free=1),)


NAMED = {"ridge": Ridge()}
