"""Curves through the points: sums of powers with coefficients that are not negative."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Fit:
    """y = sum of coefficients times powers of x.

    Attributes:
        powers: The powers.
        coefficients: One for each, none negative.
        r2: 1 - squared residuals over squares about the mean.
        worst: The largest residual, relative to the measured value.
    """

    powers: tuple[int, ...]
    coefficients: tuple[float, ...]
    r2: float
    worst: float

    def __call__(self, x: float) -> float:
        """The curve."""
        return sum(c * x**p for c, p in zip(self.coefficients, self.powers, strict=True))


def fit(x: Sequence[float], y: Sequence[float], powers: tuple[int, ...]) -> Fit:
    """Least squares of relative residuals, so that small points count as much as large ones."""
    at, of = np.asarray(x, float), np.asarray(y, float)
    columns = np.stack([at**p for p in powers], 1)
    scale = np.abs(columns / of[:, None]).max(0)
    found, _ = nnls(columns / of[:, None] / scale, np.ones_like(of))
    coefficients = found / scale
    residual = of - columns @ coefficients
    spread = ((of - of.mean()) ** 2).sum()
    r2 = float(1 - (residual**2).sum() / spread) if spread > 0 else float("nan")
    worst = float(np.abs(residual / of).max())
    return Fit(powers, tuple(map(float, coefficients)), r2, worst)
