"""A Cholesky factorisation at every prefix: the reference, slow and with plain autograd."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.problem import LeastSquares


@dataclass(frozen=True)
class Direct:
    """Solves every prefix for itself; O(T d^2) memory and O(T^2 d^2 + T d^3) time per head.

    Attributes:
        state: Precision of moments and factors.
    """

    state: torch.dtype = torch.float64

    def refuses(self, problem: LeastSquares) -> str | None:
        """Solves any problem."""
        return None

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t.

        Raises:
            torch.linalg.LinAlgError: A moment matrix is not positive definite.
        """
        wide = problem.to(self.state)
        weights = prefix_weights(wide)
        factor = torch.linalg.cholesky(prefix_hessians(wide, weights))
        solved = torch.cholesky_solve(wide.queries[..., None], factor)[..., 0]
        return (((solved @ wide.keys.mT) * weights) @ wide.values).to(problem.values.dtype)


def prefix_weights(problem: LeastSquares) -> Float[Tensor, "batch heads time time"]:
    """The weight of pair j in the problem of position t, 0 for j > t."""
    batch, heads, time, _ = problem.keys.shape
    weights = problem.keys.new_ones(time, time).tril().expand(batch, heads, time, time)
    if problem.log_forget is not None:
        kept = problem.log_forget.cumsum(-1)
        # Only differences of the past are meant; those of the future would overflow.
        weights = weights * (kept[..., :, None] - kept[..., None, :]).clamp(max=0).exp()
    return weights if problem.write is None else weights * problem.write[..., None, :]


def prefix_hessians(
    problem: LeastSquares, weights: Float[Tensor, "batch heads time time"]
) -> Float[Tensor, "batch heads time d_k d_k"]:
    """H_t, whose inverse takes queries to combinations of keys."""
    squares = problem.keys[..., :, None] * problem.keys[..., None, :]
    penalty = problem.start[:, None]
    if problem.log_forget is None:
        written = squares if problem.write is None else squares * problem.write[..., None, None]
        return written.cumsum(2) + penalty
    if problem.fades:
        penalty = penalty * problem.log_forget.cumsum(-1).exp()[..., None, None]
    return (weights @ squares.flatten(-2)).unflatten(-1, squares.shape[-2:]) + penalty
