"""The exact solution in chunks, by matrix products.

Before a chunk with keys X (rows) the inverse R = G^-1 is known from a fresh Cholesky
factorisation, so that no error builds up over chunks. With I + X R X^T = L L^T, the leading block
of L^-1 belongs to the shorter prefix (Woodbury's identity prefix by prefix), hence

    R_t q_t = R q_t - sum_{i<=t} z_i (z_i . q_t),   Z = L^-1 X R with rows z_i:

one causal product answers all positions of the chunk. The difference cancels where R_t is much
smaller than R, as in the first chunk; there a solution is refined by its own residual, which is
again made of causal products. Forgotten pairs enter with the weights that they would have at the
chunk's start.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.linalg import LinAlgError
from probe.mesa_layer.chunks import Chunks
from probe.mesa_layer.implicit import Solver, solve_implicitly
from probe.mesa_layer.precision import LONGEST, condition, too_coarse
from probe.mesa_layer.problem import LeastSquares

_Rows = Float[Tensor, "batch heads n c _"]
CALM = 50.0  # up to this condition number of a chunk nothing cancels that would be missed
SHORTEST = 32
ROUGH = 1e6  # up to this one a single refinement is enough
FADED = 4.7  # a chunk may forget down to a hundredth; beyond, its start says little of its end


@dataclass(frozen=True)
class Chunkwise:
    """Exact for problems in which nothing is forgotten, or the penalty with the rest.

    Memory O(T (d + c)) and time O(T (d^2 + c d + c^2)) per head, for chunks of c positions.

    Attributes:
        longest: Largest number of positions in a chunk; None: as many as a key has channels, from
            32 to 64, or all if there are no more than 64.
        rounds: How often every solution is refined; None: where and as often as the condition of
            the whole batch asks for: fastest, but other sequences touch the last bits.
    """

    longest: int | None = None
    rounds: int | None = None

    def refuses(self, problem: LeastSquares) -> str | None:
        """Between two prefixes a penalty that stays changes relative to the data by full rank."""
        return "a penalty that is not forgotten" if problem.stays else None

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t.

        Raises:
            torch.linalg.LinAlgError: A moment matrix is not positive definite.
        """
        values = problem.values.dtype
        solver = Woodbury.of(problem, self._chunk(problem), self.rounds)
        if problem.keys.dtype != torch.float64 and too_coarse(solver.worst, problem.keys.dtype):
            problem = problem.to(torch.float64)
            solver = Woodbury.of(problem, self._chunk(problem), self.rounds)
        if not math.isfinite(solver.worst):
            raise LinAlgError("mesa-layer: a moment matrix is not positive-definite")
        too_coarse(solver.worst, problem.keys.dtype)
        return solve_implicitly(problem, solver).to(values)

    def _chunk(self, problem: LeastSquares) -> int:
        _, _, time, width = problem.keys.shape
        longest = self.longest or chunk_length(time, width)
        if problem.log_forget is None:
            return longest
        strongest = -float(problem.log_forget.detach().amin())
        return max(1, min(longest, int(FADED / max(strongest, 1e-9))))


def chunk_length(time: int, width: int) -> int:
    """Positions in a chunk where nothing is forgotten, which is fastest for keys of this width."""
    return LONGEST if time <= LONGEST else min(max(width, SHORTEST), LONGEST)


class Woodbury(Solver):
    """The factors of a chunked problem, and solutions by them.

    Attributes:
        chunks: The problem.
        worst: The largest condition number of any H_t, as estimated; infinite where a factor
            failed.
        rough: Number of chunks, from the first, whose solutions are refined.
        rounds: How often.
    """

    def __init__(self, chunks: Chunks, rounds: int | None = None):
        self.chunks = chunks
        self.inverse, failed = _inverted(chunks)
        weighted = self._at_start(chunks.k)
        y = self._before(weighted)
        inner = y @ weighted.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1)
        factor, info = torch.linalg.cholesky_ex(inner)
        self.z = torch.linalg.solve_triangular(factor, y, upper=False)
        kappa = [math.inf]
        if not (failed or bool(info.any())):
            kappa = condition(chunks, self.inverse).amax((0, 1)).tolist()
        self.worst = max(kappa)
        self.rough, self.rounds = chunks.k.shape[2], rounds or 0
        if rounds is None:
            self.rough = max((n + 1 for n, k in enumerate(kappa) if k > CALM), default=0)
            self.rounds = 1 if self.worst < ROUGH else 2

    @classmethod
    @torch.no_grad()
    def of(cls, problem: LeastSquares, longest: int, rounds: int | None) -> "Woodbury":
        """The factors of a problem; nothing of them enters a graph."""
        return cls(Chunks.cut(problem, longest), rounds)

    def solve(self, rhs: _Rows) -> _Rows:
        """p_t = H_t^-1 rhs_t; refined in the chunks up to the last that cancels."""
        p = self._by_factors(rhs)
        first = slice(self.rough)
        for _ in range(self.rounds if self.rough else 0):
            left = rhs[:, :, first] - self.chunks.hessian(p[:, :, first], self.rough)
            p[:, :, first] += self._by_factors(left)
        return p

    def _by_factors(self, rhs: _Rows) -> _Rows:
        z = self.z[:, :, : rhs.shape[2]]
        p = self._before(rhs) - (rhs @ z.mT).tril_() @ z
        log_r = self.chunks.log_r
        return p if log_r is None else p * (-log_r[:, :, : p.shape[2], :, None]).exp()

    def _before(self, rows: _Rows) -> _Rows:
        """R times rows."""
        if self.inverse is None:
            return rows / self.chunks.ridge
        return rows @ self.inverse[:, :, : rows.shape[2]]

    def _at_start(self, keys: _Rows) -> _Rows:
        """Keys times the root of the weight that they would have at the chunk's start."""
        chunks = self.chunks
        if chunks.log_r is not None:
            keys = keys * (-0.5 * chunks.log_r).exp()[..., None]
        return keys if chunks.beta is None else keys * chunks.beta.sqrt()[..., None]


def _inverted(chunks: Chunks) -> tuple[Tensor | None, bool]:
    """R before each chunk, and whether one could not be had; None where there is only Lambda."""
    if chunks.single:
        return None, not bool((chunks.ridge > 0).all())
    factor, info = torch.linalg.cholesky_ex(chunks.g)
    return torch.cholesky_inverse(factor), bool(info.any())
