"""Any polynomial iteration of degree k with coefficients shared by all sequences.

It contains gradient descent with any step sizes, momentum and Chebyshev iteration of k steps; so
its R^2 bounds what any first-order method of k steps can reach.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Spectral

DEGREES = tuple(range(1, 9))


def basis(mu: Float[Tensor, " knots"], degree: int, top: float) -> Float[Tensor, "knots degree"]:
    """Mu f(mu) for f = T_0 .. T_{degree-1} of mu scaled from [0, top] to [-1, 1]."""
    angle = (2 * mu / top - 1).clamp(-1, 1).acos()
    return mu[:, None] / top * torch.cos(torch.arange(degree, dtype=mu.dtype) * angle[:, None])


@dataclass(frozen=True)
class Polynomial:
    """Degrees 1 to 8; a degree counts the steps, so f has degree k - 1 in mu."""

    name: str = "polynomial"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """Least squares for each degree."""
        return tuple(self._fit(spectral, degree) for degree in DEGREES)

    def _fit(self, spectral: Spectral, degree: int) -> Fitted:
        curves = basis(spectral.mu, degree, float(spectral.mu[-1]))
        gram = curves.mT @ spectral.errors.gram @ curves
        cross = curves.mT @ spectral.errors.cross
        solution = torch.linalg.lstsq(gram, cross[:, None], driver="gelsd").solution[:, 0]
        return Fitted(self.name, {"degree": degree}, curves @ solution, degree, free=degree)


NAMED = {"polynomial": Polynomial()}
