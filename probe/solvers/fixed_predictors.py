"""Nulls without constants: the mean of the values, zero, and the oracle that knows the teacher."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.solvers.base import Fitted, Posed, Quadratic


def _as_it_is(name: str) -> tuple[Fitted, ...]:
    return (Fitted(name, {}, torch.ones(1, dtype=torch.float64), degree=None, free=0),)


@dataclass(frozen=True)
class Mean:
    """The mean of the values so far."""

    name: str = "mean"
    is_null: bool = True
    width: int = 1

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """Running means; zero while no pair is offered."""
        first = posed.problem.first
        values = posed.problem.values.double().clone()
        values[:, :first] = 0
        pairs = (torch.arange(values.shape[1]) - first + 1).clamp(min=1)
        return (values.cumsum(1) / pairs[:, None])[..., None]

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """Nothing to fit."""
        return _as_it_is(self.name)


@dataclass(frozen=True)
class Zero:
    """No prediction."""

    name: str = "zero"
    is_null: bool = True
    width: int = 1

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """Zeros."""
        return torch.zeros_like(posed.problem.values, dtype=torch.float64)[..., None]

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """Nothing to fit."""
        return _as_it_is(self.name)


@dataclass(frozen=True)
class Oracle:
    """The expectation of the target for one who knows the teacher: no algorithm at all."""

    name: str = "oracle"
    is_null: bool = True
    width: int = 1

    def columns(self, posed: Posed) -> Float[Tensor, "batch time d_v width"]:
        """The oracle."""
        return posed.problem.oracle.double()[..., None]

    def fit_columns(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """Nothing to fit."""
        return _as_it_is(self.name)


NAMED = {"mean": Mean(), "zero": Zero(), "oracle": Oracle()}
