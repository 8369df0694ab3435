"""The trained recursion that von Oswald et al. 2023 publish under the name of Chebyshev.

It approximates A^-1 by a polynomial in A' = A / |A|_F with two trained constants per step:
T_k = (I - alpha_k A') T_{k-1} and Y_k = Y_{k-1} + T_k + beta_k (Y_{k-1} - Y_{k-2}), from
T_0 = Y_0 = I (arXiv 2309.05858, appendix on the inverse); A^-1 is about Y_K / |A|_F. Neither the
interval nor the optimality of the textbook's iteration (`chebyshev.py`) enters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import InputError


@dataclass(frozen=True)
class Recursion:
    """The trained constants, one pair per step.

    Raises:
        InputError: Not as many betas as alphas, or no step at all.
    """

    alphas: tuple[float, ...]
    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses constants that would be cut short silently."""
        if len(self.alphas) != len(self.betas) or not self.alphas:
            raise InputError(f"recursion with {len(self.alphas)} alphas, {len(self.betas)} betas")

    def solve(
        self, matrix: Float[Tensor, "*batch d d"], right: Float[Tensor, "*batch d k"]
    ) -> Float[Tensor, "*batch d k"]:
        """About A^-1 times `right`, without forming the inverse: O(d^2 k) per step.

        Args:
            matrix: A, symmetric positive definite.
            right: Right-hand sides, one per column.
        """
        norm = torch.linalg.matrix_norm(matrix)[..., None, None]
        matrix = matrix / norm
        term = total = before = right
        for alpha, beta in zip(self.alphas, self.betas, strict=True):
            term = term - alpha * (matrix @ term)
            total, before = total + term + beta * (total - before), total
        return total / norm
