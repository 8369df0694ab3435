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
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
    grid = torch.logspace(math.log10(floor), 2, 23, dtype=gram.dtype)
    penalties = grid.view(-1, *[1] * scale.ndim) * scale
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    system = gram + penalties[..., None, None] * roughness + 1e-12 * scale[..., None, None] * eye
    inverse = torch.linalg.inv(system)
    solutions = inverse @ cross
    fit = ((gram @ solutions) * solutions).sum((-2, -1)) - 2 * (solutions * cross).sum((-2, -1))
    freedom = (inverse * gram.mT).sum((-2, -1))
    score = (fit + energy) / (1 - freedom / rows).clamp(min=1e-3) ** 2
    best = score.nan_to_num(torch.inf).argmin(0)
    index = best[None, ..., None, None].expand(1, *solutions.shape[1:])
    return PenalisedFit(
        solutions.gather(0, index)[0], penalties.expand_as(score).gather(0, best[None])[0]
    )


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
