"""One step of gradient descent on the mean instead of the summed loss: y = eta C_t q_t / t."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Posed, Quadratic


@dataclass(frozen=True)
class NormalisedDescent:
    """One constant."""

    name: str = "normalised_descent"
    is_null: bool = False
    width: int = 1

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """C_t q_t over the number of pairs."""
        problem = posed.problem
        moved = torch.einsum("btvk,btk->btv", posed.moments.cross, problem.queries.double())
        pairs = torch.arange(moved.shape[1]) - problem.first + 1
        return (moved / pairs.clamp(min=1)[:, None])[..., None]

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """Least squares."""
        eta = errors.cross / errors.gram[0]
        return (Fitted(self.name, {"steps": 1, "eta": float(eta)}, eta, degree=1, free=1),)


NAMED = {"normalised_descent": NormalisedDescent()}
