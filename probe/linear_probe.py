"""A scikit-learn ridge regression that takes its data in parts."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from probe.moments import CentredMoments
from probe.ridge import TINY, eigen, penalty_grid


@dataclass(frozen=True)
class _Problem:
    """A regression in the eigenbasis of XX: XX = U diag(mu) U^T without its null space.

    Attributes:
        mu: Eigenvalues above the rank cut-off.
        basis: U, one eigenvector per column.
        cross: U^T XY.
        yy: sum y^2 of each target.
        free: Rows, less one where the mean was taken out.
        full_rank: Whether no direction of the features was cut off.
    """

    mu: Float[Tensor, " rank"]
    basis: Float[Tensor, "d rank"]
    cross: Float[Tensor, "rank k"]
    yy: Float[Tensor, " k"]
    free: int
    full_rank: bool

    def coefficients(self, penalty: float) -> Float[Tensor, "d k"]:
        """U diag(1 / (mu + p)) U^T XY."""
        return self.basis @ (self.cross / (self.mu + penalty)[:, None])

    def gcv(self, penalties: Float[Tensor, " penalties"]) -> Float[Tensor, " penalties"]:
        """Generalised cross-validation, squared error / (1 - degrees of freedom / n)^2.

        Source: Golub, Heath, Wahba 1979, eq. 1.4; summed over targets.
        """
        explained = self.cross.square() / self.mu[:, None]
        outside = (self.yy - explained.sum(0)).clamp_min(0).sum()
        kept = self.mu / (self.mu + penalties[:, None])
        error = outside + (1 - kept).square() @ explained.sum(1)
        left = (self.free - kept.sum(1)).clamp_min(TINY)
        return error / left.square()

    def condition(self, penalty: float) -> float:
        """Condition number of XX + p I."""
        if not len(self.mu):
            return 1.0
        smallest = float(self.mu.min()) if self.full_rank else 0.0
        return (float(self.mu.max()) + penalty) / max(smallest + penalty, TINY)


@runtime_checkable
class _Data(Protocol):
    """What an estimator remembers of the rows that it has seen."""

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of features and of targets."""

    def moments(self) -> CentredMoments:
        """Moments of the rows."""

    def problem(self, centred: bool, eps: float) -> _Problem:
        """The regression in its eigenbasis."""


@dataclass(frozen=True)
class _Few:
    """Fewer rows than columns: the rows themselves, solved in the dual (rows x rows)."""

    x: Float[Tensor, "rows d"]
    y: Float[Tensor, "rows k"]

    def means(self) -> tuple[Tensor, Tensor]:
        return self.x.mean(0), self.y.mean(0)

    def moments(self) -> CentredMoments:
        return CentredMoments.of(self.x, self.y)

    def problem(self, centred: bool, eps: float) -> _Problem:
        x, y = self.x, self.y
        if centred:
            x, y = x - x.mean(0), y - y.mean(0)
        mu, dual = eigen(x @ x.T)
        keep = mu > len(mu) * eps * mu[-1]
        mu, dual = mu[keep], dual[:, keep]
        basis = x.T @ dual / mu.sqrt()
        cross = mu.sqrt()[:, None] * (dual.T @ y)
        return _Problem(mu, basis, cross, y.square().sum(0), len(x) - centred, False)


@dataclass(frozen=True)
class _Many:
    """At least as many rows as columns: their moments (columns x columns)."""

    kept: CentredMoments

    def means(self) -> tuple[Tensor, Tensor]:
        return self.kept.mean_x, self.kept.mean_y

    def moments(self) -> CentredMoments:
        return self.kept

    def problem(self, centred: bool, eps: float) -> _Problem:
        moments = self.kept.centred if centred else self.kept.uncentred()
        mu, basis = eigen(moments.xx)
        keep = mu > len(mu) * eps * mu[-1]
        mu, basis = mu[keep], basis[:, keep]
        free = self.kept.rows - centred
        return _Problem(mu, basis, basis.T @ moments.xy, moments.yy, free, bool(keep.all()))


def _remember(x: Tensor, y: Tensor) -> _Data:
    return _Few(x, y) if len(x) < x.shape[1] else _Many(CentredMoments.of(x, y))


def _together(a: _Data, b: _Data) -> _Data:
    if isinstance(a, _Few) and isinstance(b, _Few):
        return _remember(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))
    return _Many(a.moments().merge(b.moments()))


@dataclass(frozen=True)
class _Solution:
    coefficients: Float[Tensor, "d k"]
    intercept: Float[Tensor, " k"]
    alpha: float
    condition: float
    rank: int


class RidgeProbe(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression with its penalty chosen by generalised cross-validation.

    Data may come in parts (`partial_fit`), also on several machines (`merge`): the fit is that of
    all rows together. Only moments are kept (columns x columns), or the rows while they are fewer
    than the columns; then the dual problem is solved. After `partial_fit` and `merge` the solution
    is computed when it is first asked for.

    Warns (UserWarning) when the chosen penalty is at the edge of the grid, and when the condition
    number of the penalised problem exceeds eps^-1/2 of the data's dtype, where half of the digits
    are lost.

    Args:
        alphas: Penalties to choose from, in the units of the features squared and summed over
            rows; None for a grid of 10 from rounding noise to ten times the mean eigenvalue.
        fit_intercept: Whether predictions may have an offset.

    Attributes:
        coef_: Weights, shape (targets, features); (features,) if y had one axis.
        intercept_: Offset, shape (targets,); a number if y had one axis.
        alpha_: The chosen penalty, common to all targets.
        condition_: Condition number of the penalised problem.
        rank_: Rank of the features, at the precision of their dtype.
        n_features_in_: Number of features.
    """

    _data: _Data | None
    _solution: _Solution | None
    _eps: float
    _flat: bool

    def __init__(self, alphas: Any = None, fit_intercept: Any = True):
        # scikit-learn asks that parameters of any type are taken here, and judged in `fit`.
        self.alphas = alphas
        self.fit_intercept = fit_intercept

    @classmethod
    def from_moments(cls, moments: CentredMoments, eps: float) -> "RidgeProbe":
        """A probe that has seen rows elsewhere, such as in a stream.

        Args:
            moments: Of at least two rows.
            eps: Machine epsilon of the precision to which the moments are known.
        """
        probe = cls()
        probe._data, probe._solution = _Many(moments), None
        probe._eps, probe._flat = eps, False
        probe.n_features_in_ = len(moments.mean_x)
        return probe

    def fit(self, X: Any, y: Any) -> "RidgeProbe":
        """Fits to these rows alone.

        Args:
            X: Features, shape (rows, features).
            y: Targets, shape (rows,) or (rows, targets).

        Raises:
            ValueError: X or y is malformed, or a penalty is not positive.
        """
        self._data = None
        self._add(X, y, first=True)
        self._solved()
        return self

    def partial_fit(self, X: Any, y: Any) -> "RidgeProbe":
        """Adds rows.

        Args:
            X: Features, shape (rows, features).
            y: Targets, shape (rows,) or (rows, targets).

        Raises:
            ValueError: X or y is malformed, or does not fit the rows before.
        """
        return self._add(X, y, first=not self.__sklearn_is_fitted__())

    def merge(self, other: "RidgeProbe") -> "RidgeProbe":
        """Adds the rows that another probe has seen.

        Raises:
            NotFittedError: One of the two has seen no rows.
            ValueError: They disagree about features, targets or intercept.
        """
        check_is_fitted(self)
        check_is_fitted(other)
        ours, theirs = self._shape(), other._shape()
        if ours != theirs:
            raise ValueError(f"cannot merge a probe of {theirs} with a probe of {ours}")
        self._data = _together(self._data, other._data)  # type: ignore[arg-type]
        self._eps = max(self._eps, other._eps)
        self._solution = None
        return self

    def predict(self, X: Any) -> Any:
        """Predictions, shape (rows,) or (rows, targets).

        Args:
            X: Features, shape (rows, features).

        Raises:
            NotFittedError: No rows have been seen.
            ValueError: X is malformed.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        return X @ self.coef_.T + self.intercept_

    @property
    def coef_(self) -> Any:
        """Weights."""
        return self._as_given(self._solved().coefficients.T.numpy())

    @property
    def intercept_(self) -> Any:
        """Offset; 0 without an intercept."""
        return self._as_given(self._solved().intercept.numpy())

    @property
    def alpha_(self) -> float:
        """The chosen penalty."""
        return self._solved().alpha

    @property
    def condition_(self) -> float:
        """Condition number of the penalised problem."""
        return self._solved().condition

    @property
    def rank_(self) -> int:
        """Rank of the features."""
        return self._solved().rank

    def __sklearn_is_fitted__(self) -> bool:
        return getattr(self, "_data", None) is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _as_given(self, values: Any) -> Any:
        return values[0] if self._flat else values

    def _shape(self) -> dict[str, object]:
        targets = self._data.means()[1].shape[0]  # type: ignore[union-attr]
        return {
            "features": self.n_features_in_,
            "targets": None if self._flat else targets,
            "intercept": self.fit_intercept,
        }

    def _add(self, X: Any, y: Any, first: bool) -> "RidgeProbe":
        X, y = validate_data(
            self,
            X,
            y,
            reset=first,
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
        )
        flat, eps = y.ndim == 1, float(np.finfo(X.dtype).eps)
        new = _remember(*(_tensor(part) for part in (X, y[:, None] if flat else y)))
        if first:
            self._flat, self._eps, self._data = flat, eps, new
        else:
            width = self._data.means()[1].shape  # type: ignore[union-attr]
            if flat != self._flat or new.means()[1].shape != width:
                raise ValueError(f"y has shape {y.shape}, unlike the targets before")
            self._eps = max(self._eps, eps)
            self._data = _together(self._data, new)  # type: ignore[arg-type]
        self._solution = None
        return self

    def _solved(self) -> _Solution:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this RidgeProbe has seen no rows yet")
        if self._solution is None:
            self._solution = self._solve(self._data)  # type: ignore[arg-type]
        return self._solution

    def _solve(self, data: _Data) -> _Solution:
        problem = data.problem(bool(self.fit_intercept), self._eps)
        grid = self._penalties(problem.mu)
        best = int(problem.gcv(grid).argmin())
        alpha = float(grid[best])
        mean_x, mean_y = data.means()
        coefficients = problem.coefficients(alpha)
        offset = mean_y - mean_x @ coefficients if self.fit_intercept else 0 * mean_y
        condition = problem.condition(alpha)
        for problem_found in self._complaints(best, len(grid), condition, len(problem.mu)):
            warnings.warn(problem_found, UserWarning, stacklevel=3)
        return _Solution(coefficients, offset, alpha, condition, len(problem.mu))

    def _penalties(self, mu: Tensor) -> Tensor:
        if self.alphas is None:
            d = self.n_features_in_
            return (penalty_grid(d, self._eps) * mu.sum() / d).clamp_min(TINY)
        grid = torch.tensor(np.sort(np.atleast_1d(self.alphas)), dtype=torch.float64)
        if not bool((grid > 0).all()):
            raise ValueError(f"alphas must be positive, not {self.alphas!r}")
        return grid

    def _complaints(self, best: int, count: int, condition: float, rank: int) -> Iterator[str]:
        if rank and count > 1 and best in (0, count - 1):
            side = "smallest" if best == 0 else "largest"
            yield f"the {side} of the penalties was chosen; widen `alphas`"
        if condition > self._eps**-0.5:
            yield f"condition number {condition:.1e}: half of the digits are lost; raise `alphas`"


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))
