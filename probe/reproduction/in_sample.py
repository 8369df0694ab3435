"""Ordinary least squares without intercept, scored on the samples that it was fitted to.

That is the published protocol. It flatters wide activations, by about d / n of the target, and is
used for reproduction only; our own probes are scored on sequences that they have not seen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """One factorisation per cell, which serves every target.

    Attributes:
        features: X in float64, rows of dropped samples set to 0.
        whitening: V mu^-1/2 with X^T X = V mu V^T; 0 for directions below the cut-off.
        kept: Which samples count.
    """

    features: Float[Tensor, "*cells n d"]
    whitening: Float[Tensor, "*cells d d"]
    kept: Bool[Tensor, "*#cells n"]

    def loss(self, targets: Float[Tensor, "*#cells n k"]) -> Float[Tensor, "*cells"]:
        """Half the mean squared norm of what the fit leaves of the kept targets.

        It is |Y|^2 - |Q^T Y|^2 with an orthonormal Q, good to about 1e-12 of |Y|^2.
        """
        targets = targets.double() * self.kept[..., None]
        fitted = self.whitening.mT @ (self.features.mT @ targets)
        left = targets.square().sum((-1, -2)) - fitted.square().sum((-1, -2))
        return left.clamp_min(0.0) / (2 * self.kept.sum(-1))


def fit(features: Float[Tensor, "*cells n d"], kept: Bool[Tensor, "*#cells n"]) -> Fit:
    """Factorises X^T X of every cell.

    Singular values below n * eps(dtype) of the largest hold rounding noise of the activations,
    not signal (float64 least squares would fit it), and are left out, as in the published code.

    Args:
        features: Activations X as they were captured; their dtype sets the rank cut-off.
        kept: Which samples count, broadcast over the cells.
    """
    cutoff = features.shape[-2] * torch.finfo(features.dtype).eps
    x = features.double() * kept[..., None]
    mu, basis = torch.linalg.eigh(x.mT @ x)
    present = (mu > cutoff**2 * mu[..., -1:]) & (mu > 0)
    scale = torch.where(present, mu, 1.0).rsqrt() * present
    return Fit(x, basis * scale[..., None, :], kept)
