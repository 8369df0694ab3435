"""The held-out error as a function of one constant: where it is least, and what it excludes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from probe.statistics import Interval, bootstrap_interval

FINE_STEPS = 2000


@dataclass(frozen=True)
class Profile:
    """Errors of the same predictions at several values of a constant.

    Attributes:
        grid: The values, ascending, in a scale on which the error is smooth.
        errors: Summed squared error on the test split by block.
        energy: Summed squares of what is explained, by block.
    """

    grid: tuple[float, ...]
    errors: Float[Tensor, "blocks grid"]
    energy: Float[Tensor, " blocks"]

    def least(self) -> Interval:
        """The value of least error, between the grid's points by a cubic spline.

        The spline goes through the errors of every resample of the blocks; a minimum at the end
        of the grid stands for all that lies beyond.
        """
        grid = torch.tensor(self.grid, dtype=torch.float64)
        fine = torch.linspace(float(grid[0]), float(grid[-1]), FINE_STEPS + 1, dtype=torch.float64)

        def minimiser(weights: Tensor) -> Tensor:
            curves = CubicSpline(grid.numpy(), (weights @ self.errors).T.numpy())
            return fine[torch.from_numpy(curves(fine.numpy())).argmin(0)]

        return bootstrap_interval(minimiser)

    def below_best(self) -> list[Interval]:
        """R^2 at every value minus that at the best, paired by block; 0 at the best."""
        best = self.errors[:, int(self.errors.sum(0).argmin())]
        return [_share(best - error, self.energy) for error in self.errors.unbind(1)]

    def excluded(self, delta: float) -> list[float]:
        """Values whose R^2 surely lies more than delta below that of the best value."""
        pairs = zip(self.grid, self.below_best(), strict=True)
        return [value for value, below in pairs if below.hi < -delta]


def _share(part: Tensor, whole: Tensor) -> Interval:
    return bootstrap_interval(lambda weights: (weights @ part) / (weights @ whole))
