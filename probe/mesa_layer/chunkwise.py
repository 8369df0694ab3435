"""The exact solution in chunks, by matrix products.

Before a chunk with keys X (rows) the inverse R = G^-1 is known from a fresh Cholesky
factorisation G = F F^T, so that no error builds up over chunks. With Y = X F^-T and
I + Y Y^T = L L^T, the leading block of L^-1 belongs to the shorter prefix (Woodbury's identity
prefix by prefix), hence

    R_t q_t = F^-T (I - sum_{i<=t} a_i a_i^T) F^-1 q_t,   A = L^-1 Y with rows a_i:

one causal product answers all positions of the chunk. The difference cancels where R_t is much
smaller than R, so each solution is refined once by its own residual, which is again made of causal
products. Forgotten pairs enter with the weights that they have at the chunk's start.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probe.mesa_layer.chunks import Chunks
from probe.mesa_layer.implicit import Solver, solve_implicitly
from probe.mesa_layer.precision import LONGEST, condition, too_coarse
from probe.mesa_layer.problem import LeastSquares

_Rows = Float[Tensor, "batch heads n c _"]
FADED = 4.7  # a chunk may forget down to a hundredth; beyond, its start says little of its end


@dataclass(frozen=True)
class Chunkwise:
    """Exact for problems in which nothing is forgotten, or the penalty with the rest.

    Memory O(T (d + c)) and time O(T (d^2 + c d + c^2)) per head, for chunks of c positions.

    Attributes:
        longest: Largest number of positions in a chunk.
    """

    longest: int = LONGEST

    def refuses(self, problem: LeastSquares) -> str | None:
        """Between two prefixes a penalty that stays changes relative to the data by full rank."""
        return "a penalty that is not forgotten" if problem.stays else None

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t.

        Raises:
            torch.linalg.LinAlgError: A moment matrix is not positive definite.
        """
        values = problem.values.dtype
        solver = Woodbury.of(problem, self._chunk(problem))
        if problem.keys.dtype != torch.float64 and too_coarse(solver.worst, problem.keys.dtype):
            problem = problem.to(torch.float64)
            solver = Woodbury.of(problem, self._chunk(problem))
        if not math.isfinite(solver.worst):
            raise LinAlgError("mesa-layer: a moment matrix is not positive-definite")
        too_coarse(solver.worst, problem.keys.dtype)
        return solve_implicitly(problem, solver).to(values)

    def _chunk(self, problem: LeastSquares) -> int:
        if problem.log_forget is None:
            return self.longest
        strongest = -float(problem.log_forget.detach().amin())
        return max(1, min(self.longest, int(FADED / max(strongest, 1e-9))))


class Woodbury(Solver):
    """The factors of a chunked problem, and solutions by them."""

    def __init__(self, chunks: Chunks):
        self.chunks = chunks
        factor, failed = torch.linalg.cholesky_ex(chunks.g)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        self.whitener = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        y = self._at_start(chunks.k) @ self.whitener.mT
        inner = y @ y.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1)
        inner_factor, inner_failed = torch.linalg.cholesky_ex(inner)
        self.a = torch.linalg.solve_triangular(inner_factor, y, upper=False)
        # The largest condition number of any H_t, as estimated; infinite where a factor failed.
        self.worst = math.inf
        if not bool(failed.any() | inner_failed.any()):
            self.worst = float(condition(chunks, self.whitener.mT @ self.whitener).max())

    @classmethod
    @torch.no_grad()
    def of(cls, problem: LeastSquares, longest: int) -> "Woodbury":
        """The factors of a problem; nothing of them enters a graph."""
        return cls(Chunks.cut(problem, longest))

    def solve(self, rhs: _Rows) -> _Rows:
        """p_t = H_t^-1 rhs_t, refined once."""
        p = self._by_factors(rhs)
        return p + self._by_factors(rhs - self.chunks.hessian(p))

    def _by_factors(self, rhs: _Rows) -> _Rows:
        white = rhs @ self.whitener.mT
        white = white - (white @ self.a.mT).tril_() @ self.a
        p = white @ self.whitener
        log_r = self.chunks.log_r
        return p if log_r is None else p * (-log_r).exp()[..., None]

    def _at_start(self, keys: _Rows) -> _Rows:
        """Keys times the root of the weight that they would have at the chunk's start."""
        chunks = self.chunks
        if chunks.log_r is not None:
            keys = keys * (-0.5 * chunks.log_r).exp()[..., None]
        return keys if chunks.beta is None else keys * chunks.beta.sqrt()[..., None]
