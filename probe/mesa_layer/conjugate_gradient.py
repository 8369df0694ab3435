"""Conjugate gradient at all positions at once, by causal products in chunks.

Every position runs its own iteration on H_t p = q_t (Hestenes and Stiefel 1952), as MesaNet does
(von Oswald et al. 2025, arXiv 2506.05233); one product with H_t for all positions costs no more
than a layer of linear attention.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.chunks import Chunks
from probe.mesa_layer.implicit import Solver, solve_implicitly
from probe.mesa_layer.precision import LONGEST, state_dtype
from probe.mesa_layer.problem import LeastSquares

_Rows = Float[Tensor, "batch heads n c _"]


@dataclass(frozen=True)
class ConjugateGradient:
    """For any problem; the way for a penalty that stays while data are forgotten.

    Attributes:
        steps: Most steps; None: ten times the width of a key.
        tolerance: Stop where no residual exceeds this share of its right-hand side; None: 8 units
            of rounding.
        longest: Largest number of positions in a chunk.
    """

    steps: int | None = None
    tolerance: float | None = None
    longest: int = LONGEST

    def refuses(self, problem: LeastSquares) -> str | None:
        """Solves any problem."""
        return None

    def solve(self, problem: LeastSquares) -> Float[Tensor, "batch heads time d_v"]:
        """Phi_t q_t, as far as the steps lead."""
        values = problem.values.dtype
        problem = problem.to(state_dtype(problem))
        with torch.no_grad():
            chunks = Chunks.cut(problem, self.longest)
        eps = torch.finfo(problem.keys.dtype).eps
        steps = self.steps or 10 * problem.keys.shape[-1]
        tolerance = 8 * eps if self.tolerance is None else self.tolerance
        return solve_implicitly(problem, _Iteration(chunks, steps, tolerance)).to(values)


@dataclass(frozen=True)
class _Iteration(Solver):
    chunks: Chunks
    steps: int
    tolerance: float

    def solve(self, rhs: _Rows) -> _Rows:
        """Runs until every position has converged or the steps are over.

        The residual that is carried along drifts from the true one, which is taken up once: the
        second round starts where the first believed that it had converged.
        """
        enough = self.tolerance**2 * _squared(rhs)
        solution, left = self._run(torch.zeros_like(rhs), rhs, enough, self.steps)
        if left:
            residual = rhs - self.chunks.hessian(solution)
            solution, _ = self._run(solution, residual, enough, left)
        return solution

    def _run(
        self, solution: _Rows, residual: _Rows, enough: Tensor, steps: int
    ) -> tuple[_Rows, int]:
        """Conjugate gradient from a solution and its residual; and the steps that are left."""
        direction, size = residual.clone(), _squared(residual)
        tiny = torch.finfo(residual.dtype).tiny
        for step in range(steps):
            active = size > enough
            if not bool(active.any()):
                return solution, steps - step
            image = self.chunks.hessian(direction)
            curvature = (direction * image).sum(-1, keepdim=True).clamp(min=tiny)
            rate = torch.where(active, size / curvature, 0.0)
            solution = solution + rate * direction
            residual = residual - rate * image
            after = _squared(residual)
            ratio = torch.where(active, after / size.clamp(min=tiny), 0.0)
            direction = residual + ratio * direction
            size = after
        return solution, 0


def _squared(rows: _Rows) -> Tensor:
    return rows.square().sum(-1, keepdim=True)
