"""One token at a time: the state that is carried between tokens, and the step."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.problem import LeastSquares

_Gate = Float[Tensor, "batch heads"] | None


@dataclass(frozen=True)
class InverseStream:
    """State of the recursion: a root of the inverse, moved by Sherman and Morrison's formula.

    For problems in which nothing is forgotten, or the penalty with the rest; O(d^2) per token.
    The inverse itself would lose its symmetry to rounding, which grows by 1/gamma at every token;
    the root has none to lose (Potter 1963; Bierman 1977, ch. II).

    Attributes:
        root: S with H_t^-1 = S S^T.
        cross: C_t.
    """

    root: Float[Tensor, "batch heads d_k d_k"]
    cross: Float[Tensor, "batch heads d_v d_k"]

    def step(
        self,
        key: Float[Tensor, "batch heads d_k"],
        value: Float[Tensor, "batch heads d_v"],
        query: Float[Tensor, "batch heads d_k"],
        forget: _Gate = None,
        write: _Gate = None,
    ) -> tuple["InverseStream", Float[Tensor, "batch heads d_v"]]:
        """The state after a pair, and the answer to a query there."""
        gamma, beta = (_column(gate, key) for gate in (forget, write))
        seen = (self.root.mT @ key[..., None])[..., 0]
        alpha = gamma + beta * seen.square().sum(-1, keepdim=True)
        taken = (beta / (alpha + (alpha * gamma).sqrt()) * seen)[..., None, :]
        root = (self.root - (self.root @ seen[..., None]) @ taken) / gamma.sqrt()[..., None]
        cross = gamma[..., None] * self.cross + (beta * value)[..., :, None] * key[..., None, :]
        solved = root @ (root.mT @ query[..., None])
        return InverseStream(root, cross), (cross @ solved)[..., 0]


@dataclass(frozen=True)
class MomentStream:
    """State where data are forgotten and the penalty is not: the moments, solved at every token.

    O(d^3) per token.

    Attributes:
        moments: G_t, without the penalty.
        cross: C_t.
        penalty: Lambda.
    """

    moments: Float[Tensor, "batch heads d_k d_k"]
    cross: Float[Tensor, "batch heads d_v d_k"]
    penalty: Float[Tensor, "heads d_k d_k"]

    def step(
        self,
        key: Float[Tensor, "batch heads d_k"],
        value: Float[Tensor, "batch heads d_v"],
        query: Float[Tensor, "batch heads d_k"],
        forget: _Gate = None,
        write: _Gate = None,
    ) -> tuple["MomentStream", Float[Tensor, "batch heads d_v"]]:
        """The state after a pair, and the answer to a query there."""
        gamma, beta = (_column(gate, key)[..., None] for gate in (forget, write))
        written = beta * key[..., None, :]
        moments = gamma * self.moments + key[..., :, None] * written
        cross = gamma * self.cross + value[..., :, None] * written
        factor = torch.linalg.cholesky(moments + self.penalty)
        solved = torch.cholesky_solve(query[..., None], factor)
        return MomentStream(moments, cross, self.penalty), (cross @ solved)[..., 0]


def stream_after(problem: LeastSquares) -> InverseStream | MomentStream:
    """The state after the pairs of a problem, of which there may be none.

    Raises:
        torch.linalg.LinAlgError: The moments are not positive definite.
    """
    weighted = problem.keys * _last_weights(problem)[..., None]
    moments, cross = weighted.mT @ problem.keys, problem.values.mT @ weighted
    if problem.stays:
        return MomentStream(moments, cross, problem.start)
    penalty = problem.start
    if problem.log_forget is not None:
        penalty = penalty * problem.log_forget.sum(-1).exp()[..., None, None]
    factor = torch.linalg.cholesky(moments + penalty)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    whitener = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return InverseStream(whitener.mT, cross)


def _last_weights(problem: LeastSquares) -> Float[Tensor, "batch heads time"]:
    weights = torch.ones_like(problem.keys[..., 0]) if problem.write is None else problem.write
    if problem.log_forget is None:
        return weights
    kept = problem.log_forget.cumsum(-1)
    return weights * (kept[..., -1:] - kept).exp()


def _column(gate: _Gate, like: Tensor) -> Tensor:
    return torch.ones_like(like[..., :1]) if gate is None else gate[..., None]
