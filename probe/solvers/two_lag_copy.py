"""Null: a fixed mixture of the last two tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Posed, Quadratic
from probe.tasks.base import shifted


@dataclass(frozen=True)
class TwoLagCopy:
    """y = a v_t + b v_{t-1}, two constants."""

    name: str = "two_lag_copy"
    is_null: bool = True
    width: int = 2

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """The last two values."""
        values = posed.problem.values.double()
        return torch.stack([values, shifted(values)], -1)

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """Least squares."""
        weights = torch.linalg.pinv(errors.gram, hermitian=True) @ errors.cross
        constants = {"last": float(weights[0]), "one_before": float(weights[1])}
        return (Fitted(self.name, constants, weights, degree=None, free=2),)


NAMED = {"two_lag_copy": TwoLagCopy()}
