"""Ridge regression from moments: many regressions at once.

One eigendecomposition XX = U diag(mu) U^T serves every penalty p and every target:
W = U diag(1 / (mu + p)) U^T XY. Penalties are searched on a grid in units of tr(XX) / D. Its floor
D * eps(token dtype) is where rounding noise of the activations would begin to be fitted.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.moments import Moments

GRID = 10
LARGEST = 10.0
TINY = torch.finfo(torch.float64).tiny


def penalty_grid(d: int, eps: float) -> Float[Tensor, " penalties"]:
    """Penalties in units of tr(XX) / d: log-spaced from d * eps to LARGEST, ascending."""
    return torch.logspace(math.log10(d * eps), math.log10(LARGEST), GRID, dtype=torch.float64)


@dataclass(frozen=True)
class RidgeFit:
    """Fitted regressions and their diagnosis.

    Attributes:
        weights: W of y_hat = x W, in float64.
        penalties: The penalty of each target group, in the units of XX.
        at_edge: Whether it is the smallest or the largest of the grid.
        in_sample: Squared error of each target group on the rows that were fitted.
        condition: Condition number of XX + p I at the smallest chosen penalty.
        rank: Number of eigenvalues of XX above D * eps(token dtype) times the largest.
    """

    weights: Float[Tensor, "*cells d k"]
    penalties: Float[Tensor, "*cells groups"]
    at_edge: Bool[Tensor, "*cells groups"]
    in_sample: Float[Tensor, "*cells groups"]
    condition: Float[Tensor, "*cells"]
    rank: Int[Tensor, "*cells"]


def fit_ridge(
    folds: Moments, groups: tuple[int, ...], token_dtype: torch.dtype = torch.float32
) -> RidgeFit:
    """Ridge regression of every cell, the penalty of each target group by cross-validation.

    Args:
        folds: Float64 moments with a leading axis of folds.
        groups: Widths of consecutive groups of targets; each group of each cell has one penalty.
        token_dtype: Dtype in which the features were computed; sets the floor of the penalties.

    Raises:
        ValueError: The groups do not add up to the targets.
    """
    if sum(groups) != folds.yy.shape[-1]:
        raise ValueError(f"groups {groups} do not add up to {folds.yy.shape[-1]} targets")
    total = folds.total()
    d = total.xx.shape[-1]
    eps = torch.finfo(token_dtype).eps
    grid = penalty_grid(d, eps)
    error = sum(_held_out(total, folds.at(i), groups, grid) for i in range(len(folds.xx)))
    choice = torch.as_tensor(error).argmin(-1)
    mu, basis = eigen(total.xx)
    penalties = (grid[choice] * mu.mean(-1, keepdim=True)).clamp_min(TINY)
    of_target = penalties.repeat_interleave(torch.tensor(groups), -1)
    solved = (basis.mT @ total.xy) / (mu[..., :, None] + of_target[..., None, :])
    weights = basis @ solved
    least = penalties.amin(-1)
    return RidgeFit(
        weights=weights,
        penalties=penalties,
        at_edge=(choice == 0) | (choice == GRID - 1),
        in_sample=group_sums(total.squared_error(weights), groups),
        condition=(mu[..., -1] + least) / (mu[..., 0] + least),
        rank=(mu > d * eps * mu[..., -1:]).sum(-1),
    )


def least_squares(
    moments: Moments, token_dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*cells d k"]:
    """Regression of every cell with the smallest penalty of the grid, by Cholesky factors.

    For published protocols that fit without a penalty. This one, tr(XX) eps(token dtype), lies
    where rounding noise begins and keeps rank-deficient features solvable.

    Args:
        moments: Moments of all rows.
        token_dtype: Dtype in which the features were computed.

    Raises:
        torch.linalg.LinAlgError: The features of a cell are all zero.
    """
    penalty = torch.finfo(token_dtype).eps * moments.xx.double().diagonal(dim1=-2, dim2=-1).sum(-1)
    return ridge_path(moments, penalty[..., None])[..., 0, :, :]


def ridge_path(
    moments: Moments, penalties: Float[Tensor, "*#cells penalties"]
) -> Float[Tensor, "*cells penalties d k"]:
    """Regressions of every cell on all targets at each of some penalties, by Cholesky factors.

    Up to some tens of penalties this is faster than one eigendecomposition for all.

    Args:
        moments: Moments of all rows.
        penalties: In the units of XX.

    Raises:
        torch.linalg.LinAlgError: A penalty is too small for features without full rank.
    """
    xx, xy = moments.xx.double(), moments.xy.double()
    eye = torch.eye(xx.shape[-1], dtype=xx.dtype)
    factor = torch.linalg.cholesky(xx[..., None, :, :] + penalties[..., None, None] * eye)
    return torch.cholesky_solve(xy[..., None, :, :], factor)


def group_sums(
    values: Float[Tensor, "*cells k"], groups: tuple[int, ...]
) -> Float[Tensor, "*cells groups"]:
    """Sums over consecutive groups of the last axis."""
    own = torch.eye(len(groups), dtype=values.dtype)
    return values @ own.repeat_interleave(torch.tensor(groups), 0)


def eigen(
    xx: Float[Tensor, "*cells d d"],
) -> tuple[Float[Tensor, "*cells d"], Float[Tensor, "*cells d d"]]:
    """Eigenvalues, ascending and not negative, and eigenvectors."""
    mu, basis = torch.linalg.eigh(xx)
    return mu.clamp_min(0), basis


def _held_out(
    total: Moments, held: Moments, groups: tuple[int, ...], grid: Tensor
) -> Float[Tensor, "*cells groups penalties"]:
    """Squared error on the rows of `held` of fits to all other rows, for every penalty.

    In the eigenbasis of the other rows, W = diag(r) A with r = 1 / (mu + p), so that a group's
    error is yy - 2 sum_i r_i (A * B)_i + r^T (X * A A^T) r: penalties cost D^2 each, not D^2 K.
    """
    rest = total.without(held)
    mu, basis = eigen(rest.xx)
    penalties = (grid * mu.mean(-1, keepdim=True)).clamp_min(TINY)
    shrink = 1 / (mu[..., None, :] + penalties[..., :, None])
    fitted, seen = basis.mT @ rest.xy, basis.mT @ held.xy
    gram = basis.mT @ held.xx @ basis
    parts = zip(*(t.split(groups, -1) for t in (fitted, seen, held.yy)), strict=True)
    errors = []
    for a, b, yy in parts:  # groups differ in width
        linear = shrink @ (a * b).sum(-1, keepdim=True)
        square = (shrink @ (gram * (a @ a.mT)) * shrink).sum(-1)
        errors.append(yy.sum(-1, keepdim=True) - 2 * linear[..., 0] + square)
    return torch.stack(errors, -2)
