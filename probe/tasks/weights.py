"""Laws of weight matrices of any shape; as laws of square matrices they are teachers too."""

from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.sampling import generator_for, normal, uniform
from probe.tasks.teachers import TeacherLaw


@runtime_checkable
class WeightLaw(Protocol):
    """Draws weights, one matrix per sequence; hashable, and equal to all that draw the same."""

    def __hash__(self) -> int:
        """By its parameters."""

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Weights in float64."""


@dataclass(frozen=True)
class _Weights:
    """A law of weights that is a teacher law as well."""

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """Square matrices."""
        return self.matrices(count, width, width, generator)

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Weights in float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class GaussianWeights(_Weights):
    """Entries N(0, tau^2): the prior under which ridge regression is Bayes' answer.

    With isotropic inputs or not, and label noise of standard deviation sigma, the posterior mean
    of the weights is that of ridge regression with lambda = sigma^2 / tau^2.
    """

    tau: float = 1.0

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Normal numbers."""
        return self.tau * normal(generator, count, rows, width)


@dataclass(frozen=True)
class SparseWeights(_Weights):
    """N(0, tau^2) at a few places of every row, zero at the others; Garg et al. 2022, section 5.

    Attributes:
        kept: Number of weights that are not zero.
        tau: Their standard deviation.
    """

    kept: int = 3
    tau: float = 1.0

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Every set of places is as likely as any other."""
        numbers = self.tau * normal(generator, count, rows, width)
        lots = uniform(generator, 0.0, 1.0, count, rows, width)
        return numbers * (lots.argsort(-1).argsort(-1) < self.kept)


@dataclass(frozen=True)
class PooledWeights(_Weights):
    """One of a fixed number of members for every sequence, each as likely as any other.

    A pool of one is a fixed teacher: nothing is left to be learned in context. The members are
    drawn from the seed when they are first needed, and are no part of the law's description.

    Attributes:
        size: Number of members.
        seed: Draws them.
        law: Their law.
    """

    size: int = 1
    seed: int = 0
    law: WeightLaw = field(default_factory=GaussianWeights)

    def members(self, rows: int, width: int) -> Float[Tensor, "size rows width"]:
        """All members of this shape."""
        return _members(self.law, self.size, self.seed, rows, width)

    def matrices(
        self, count: int, rows: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch rows width"]:
        """Draws which members."""
        chosen = torch.randint(self.size, (count,), generator=generator)
        return self.members(rows, width)[chosen]


@cache
def _members(
    law: WeightLaw, size: int, seed: int, rows: int, width: int
) -> Float[Tensor, "size rows width"]:
    return law.matrices(size, rows, width, generator_for(seed))


@dataclass(frozen=True)
class ScaledTeacher:
    """Matrices of another teacher law times a factor."""

    law: TeacherLaw
    factor: float

    def draw(
        self, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch width width"]:
        """The same matrices, scaled."""
        return self.factor * self.law.draw(count, width, generator)
