"""The spectral response: which function of the moments turns the context into a prediction.

A linear in-context learner predicts y_t = C_t f(G_t) q_t, and its algorithm is the scalar function
f over the eigenvalues mu of G_t. Written as shrinkage mu f(mu), the share of each direction that
is already solved, it is expanded in hats (linear B-splines) over log mu. Everything downstream
works on the summed products of these hats.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import Spectrum

FINE = 64
STRIDE = 4
COARSE = FINE // STRIDE


def log_knots(low: float, high: float) -> Float[Tensor, " knots"]:
    """64 log-spaced knots; every fourth is a knot of the spline, from `low` to `high`.

    Three knots lie below `low`, so that curves of shrinkage can go on falling there.
    """
    step = torch.tensor(high / low, dtype=torch.float64).log() / (STRIDE * (COARSE - 1))
    places = torch.arange(FINE, dtype=torch.float64) - (STRIDE - 1)
    return low * torch.exp(step * places)


def hats(
    mu: Float[Tensor, "*batch"], knots: Float[Tensor, " knots"]
) -> Float[Tensor, "*batch knots"]:
    """Linear interpolation weights over log mu, in float32; constant beyond the ends."""
    low, step = knots[0].log(), (knots[1] / knots[0]).log()
    place = (mu.clamp(min=knots[0]).log() - low) / step
    place = place.clamp(0, len(knots) - 1).float()
    distance = (place[..., None] - torch.arange(len(knots), dtype=torch.float32)).abs_()
    return distance.neg_().add_(1).clamp_(min=0)


def hat_features(
    spectrum: Spectrum, knots: Float[Tensor, " knots"]
) -> Float[Tensor, "batch time d_v knots"]:
    """Columns F with F w = C f(G) q for the shrinkage curve w at the knots, in float32."""
    per_direction = torch.where(spectrum.present, spectrum.query / spectrum.mu, 0.0)
    scaled = (spectrum.maps * per_direction[..., None, :]).float()
    return scaled @ hats(spectrum.mu, knots)


def coarse_to_fine() -> Float[Tensor, "knots coarse"]:
    """The curve at the 64 knots from a spline's 16 coefficients; constant below the lowest."""
    coarse = torch.arange(COARSE, dtype=torch.float64) * STRIDE + STRIDE - 1
    place = torch.arange(FINE, dtype=torch.float64).clamp(min=STRIDE - 1)
    return (1 - (place[:, None] - coarse).abs() / STRIDE).clamp(min=0)


def second_differences(count: int) -> Float[Tensor, "count count"]:
    """The penalty D^T D on the bends of a curve (Eilers and Marx 1996)."""
    bends = torch.diff(torch.eye(count, dtype=torch.float64), n=2, dim=0)
    return bends.mT @ bends


@dataclass(frozen=True)
class PenalisedFit:
    """Coefficients at the penalty that generalised cross-validation prefers."""

    coefficients: Float[Tensor, "*cells columns outputs"]
    penalty: Float[Tensor, "*cells"]


def gcv_solve(
    gram: Float[Tensor, "*cells columns columns"],
    cross: Float[Tensor, "*cells columns outputs"],
    energy: Float[Tensor, "*cells"],
    roughness: Float[Tensor, "columns columns"],
    rows: int,
    floor: float = 1e-9,
) -> PenalisedFit:
    """Least squares penalised by w^T roughness w; the penalty by GCV (Golub, Heath, Wahba 1979).

    Args:
        gram: X^T X.
        cross: X^T Y.
        energy: Summed squares of all outputs.
        roughness: The penalty matrix.
        rows: Number of rows of X; each counts for one degree of freedom per output.
        floor: The least penalty, as a share of the mean diagonal of the Gram matrix. Where the
            penalty is ridge and X may lack rank, rows of a product * eps of its dtype:
            below that the rounding noise of the missing directions is fitted.
    """
    penalties, scale = _penalties(gram, floor)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    system = gram + penalties[..., None, None] * roughness + 1e-12 * scale[..., None, None] * eye
    inverse = torch.linalg.inv(system)
    solutions = inverse @ cross
    fit = ((gram @ solutions) * solutions).sum((-2, -1)) - 2 * (solutions * cross).sum((-2, -1))
    freedom = (inverse * gram.mT).sum((-2, -1))
    best = _least_gcv(fit + energy, freedom, rows)
    index = best[..., None, None].expand(1, *solutions.shape[1:])
    return PenalisedFit(
        solutions.gather(0, index)[0], penalties.expand_as(freedom).gather(0, best)[0]
    )


def gcv_ridge(
    gram: Float[Tensor, "*cells columns columns"],
    cross: Float[Tensor, "*cells columns outputs"],
    energy: Float[Tensor, "*cells"],
    rows: int,
    floor: float = 1e-9,
) -> PenalisedFit:
    """`gcv_solve` with the identity for roughness: one eigendecomposition serves all penalties."""
    penalties, scale = _penalties(gram, floor)
    mu, basis = torch.linalg.eigh(gram)
    inside = basis.mT @ cross
    shrunk = 1 / (mu + (penalties + 1e-12 * scale)[..., None])
    fit = (inside.square().sum(-1) * shrunk * (mu * shrunk - 2)).sum(-1)
    freedom = (mu * shrunk).sum(-1)
    best = _least_gcv(fit + energy, freedom, rows)
    chosen = shrunk.gather(0, best[..., None].expand(1, *shrunk.shape[1:]))[0]
    return PenalisedFit(basis @ (chosen[..., None] * inside), penalties.gather(0, best)[0])


def _penalties(gram: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The penalties of every cell, along a first axis, and the mean diagonal that is their unit."""
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
    grid = torch.logspace(math.log10(floor), 2, 23, dtype=gram.dtype)
    return grid.view(-1, *[1] * scale.ndim) * scale, scale


def _least_gcv(error: Tensor, freedom: Tensor, rows: int) -> Tensor:
    """Place of the best penalty of every cell, with the first axis kept."""
    score = error / (1 - freedom / rows).clamp(min=1e-3) ** 2
    return score.nan_to_num(torch.inf).argmin(0, keepdim=True)


def half_crossing(
    knots: Float[Tensor, " knots"], curve: Float[Tensor, " knots"], top: float
) -> float:
    """The smallest mu up to `top` where shrinkage passes 1/2 upwards; NaN if there is none.

    For ridge this is lambda itself, so it is quoted as the effective lambda of a layer.
    """
    inside = int((knots <= top).sum())
    mu, shrinkage = knots[STRIDE - 1 : inside].log(), curve[STRIDE - 1 : inside]
    rising = (shrinkage[:-1] < 0.5) & (shrinkage[1:] >= 0.5)
    if not bool(rising.any()):
        return float("nan")
    i = int(rising.nonzero()[0])
    share = (0.5 - shrinkage[i]) / (shrinkage[i + 1] - shrinkage[i])
    return float((mu[i] + share * (mu[i + 1] - mu[i])).exp())
