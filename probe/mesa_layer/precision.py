"""When float32 is not enough for the state."""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.chunks import Chunks
from probe.mesa_layer.problem import LeastSquares

LOST = 1e-3  # share of the solution that rounding may take before the state is widened
LONGEST = 64


class IllConditioned(UserWarning):
    """The moments are so ill-conditioned that the state is carried in float64."""


def largest_eigenvalue(matrices: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """Of symmetric matrices; an upper bound, at most sqrt(d) times too large: the row sum norm."""
    return matrices.abs().sum(-1).amax(-1)


def condition(
    chunks: Chunks, inverse: Float[Tensor, "batch heads n d d"] | None
) -> Float[Tensor, "batch heads n"]:
    """Estimates the largest condition number of H_t within each chunk; rather too large.

    Args:
        chunks: The problem.
        inverse: (G + Lambda)^-1 before each chunk; None where there is nothing but Lambda.
    """
    gained = chunks.gained[0]
    if chunks.log_r is not None:
        gained = chunks.k.mT @ chunks.written(chunks.k)
    above = largest_eigenvalue(chunks.g + gained)
    ridge = chunks.ridge[:, 0, 0]
    below = ridge.amin(-1)[:, None] if inverse is None else 1 / largest_eigenvalue(inverse)
    if chunks.log_r is not None:
        below = below * chunks.log_r.amin(-1).exp()
    if chunks.stays:
        above = above + ridge.amax(-1)[:, None]
        below = below.clamp(min=ridge.amin(-1)[:, None])
    return above / below


def too_coarse(worst: float, dtype: torch.dtype) -> bool:
    """Whether a condition number is beyond a precision; tells the user what follows.

    The text does not hold the number, so that a training that needs float64 says so once.
    """
    if worst * torch.finfo(dtype).eps <= LOST:
        return False
    follows = "the state is carried in float64"
    if dtype == torch.float64:
        follows = "outputs may be wrong"
    warnings.warn(
        f"mesa-layer: moments are too ill-conditioned for {str(dtype).removeprefix('torch.')}; "
        f"{follows}",
        IllConditioned,
        stacklevel=2,
    )
    return True


@torch.no_grad()
def state_dtype(problem: LeastSquares) -> torch.dtype:
    """float64 for a problem that is given in float64 or too ill-conditioned for float32."""
    dtype = problem.keys.dtype
    if dtype == torch.float64:
        return dtype
    chunks = Chunks.cut(problem, LONGEST)
    whole = chunks.g + chunks.start[:, None] if chunks.stays else chunks.g
    factor, info = torch.linalg.cholesky_ex(whole)
    if bool(info.any()):
        worst = math.inf
    else:
        worst = float(condition(chunks, torch.cholesky_inverse(factor)).max())
    return torch.float64 if too_coarse(worst, dtype) else dtype
