"""How well-posed the problem of every head is, and how well an answer solves it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.direct import prefix_hessians, prefix_weights
from probe.mesa_layer.problem import LeastSquares


@dataclass(frozen=True)
class Diagnosis:
    """Of every prefix, in float64.

    Attributes:
        condition: Condition number of H_t.
        smallest: Smallest eigenvalue of H_t, in units of the keys squared.
        residual: |H_t p_t - q_t| / |q_t| of p_t solved in the problem's own precision; 0 for a
            query of zero.
    """

    condition: Float[Tensor, "batch heads time"]
    smallest: Float[Tensor, "batch heads time"]
    residual: Float[Tensor, "batch heads time"]


@torch.no_grad()
def diagnose(problem: LeastSquares) -> Diagnosis:
    """Eigenvalues and residuals at every prefix; O(T d^2) memory and O(T^2 d^2 + T d^3) time.

    Raises:
        torch.linalg.LinAlgError: The moments are not positive definite in the problem's precision.
    """
    wide = problem.to(torch.float64)
    hessians = prefix_hessians(wide, prefix_weights(wide))
    eigenvalues = torch.linalg.eigvalsh(hessians)
    factor = torch.linalg.cholesky(hessians.to(problem.keys.dtype))
    solved = torch.cholesky_solve(problem.queries[..., None], factor).double()
    query = wide.queries[..., None]
    residual = (hessians @ solved - query).norm(dim=(-2, -1)) / query.norm(dim=(-2, -1))
    smallest = eigenvalues[..., 0]
    return Diagnosis(eigenvalues[..., -1] / smallest, smallest, residual.nan_to_num(0.0))
