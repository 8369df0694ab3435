"""Any smooth response: the bound that no family with a scalar response can pass."""

from dataclasses import dataclass

import torch

from probe.response import COARSE, coarse_to_fine, gcv_solve, second_differences
from probe.solvers.base import Fitted, Spectral


@dataclass(frozen=True)
class Spline:
    """16 coefficients with a penalty on bends, chosen by generalised cross-validation."""

    name: str = "spline"
    is_null: bool = False

    def fit_curve(self, spectral: Spectral) -> tuple[Fitted, ...]:
        """One curve."""
        spread, errors = coarse_to_fine(), spectral.errors
        fit = gcv_solve(
            spread.mT @ errors.gram @ spread,
            (spread.mT @ errors.cross)[:, None],
            torch.tensor(errors.energy, dtype=torch.float64),
            second_differences(COARSE),
            spectral.rows,
        )
        curve = spread @ fit.coefficients[:, 0]
        constants = {"smoothing": float(fit.penalty)}
        return (Fitted(self.name, constants, curve, degree=None, free=COARSE + 1),)


NAMED = {"spline": Spline()}
