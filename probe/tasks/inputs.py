"""Laws of the inputs of regression: spectra of their covariance, marginals, and their scale."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.sampling import normal, uniform


@runtime_checkable
class InputLaw(Protocol):
    """Draws inputs, independent from position to position."""

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Inputs in float64."""


@runtime_checkable
class Covariance(Protocol):
    """A diagonal covariance Sigma."""

    def scales(self, width: int) -> Float[Tensor, " width"]:
        """Standard deviations along the axes, in float64; their mean square is 1."""


@dataclass(frozen=True)
class _Coloured:
    """x ~ N(0, Sigma) with the Sigma of the class."""

    def scales(self, width: int) -> Float[Tensor, " width"]:
        """Square roots of the variances, which are brought to a mean of 1."""
        variances = self._variances(width)
        return (variances / variances.mean()).sqrt()

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Scaled standard normal numbers."""
        return self.scales(width) * normal(generator, count, length, width)

    def _variances(self, width: int) -> Float[Tensor, " width"]:
        """Up to a factor; falling from the first channel to the last."""
        raise NotImplementedError


@dataclass(frozen=True)
class Isotropic(_Coloured):
    """Sigma = I."""

    def _variances(self, width: int) -> Float[Tensor, " width"]:
        return torch.ones(width, dtype=torch.float64)


@dataclass(frozen=True)
class Geometric(_Coloured):
    """Eigenvalues of Sigma fall geometrically; the largest is `condition` times the smallest."""

    condition: float = 30.0

    def _variances(self, width: int) -> Float[Tensor, " width"]:
        return self.condition ** -torch.linspace(0, 1, width, dtype=torch.float64)


@dataclass(frozen=True)
class Clustered(_Coloured):
    """Eigenvalues of Sigma in clusters of like size, whose values fall geometrically.

    Attributes:
        clusters: Number of different eigenvalues; conjugate gradient needs as many steps on Sigma.
        condition: The largest over the smallest.
    """

    clusters: int = 2
    condition: float = 100.0

    def _variances(self, width: int) -> Float[Tensor, " width"]:
        levels = torch.linspace(0, 1, self.clusters, dtype=torch.float64)
        place = torch.arange(width) * self.clusters // width
        return self.condition ** -levels[place]


@dataclass(frozen=True)
class PowerLaw(_Coloured):
    """The i-th eigenvalue of Sigma is i^-exponent, up to a factor.

    An exponent of 1 is the skewed covariance of Garg et al. 2022, section 4, on the axes.
    """

    exponent: float = 1.0

    def _variances(self, width: int) -> Float[Tensor, " width"]:
        return torch.arange(1, width + 1, dtype=torch.float64) ** -self.exponent


@dataclass(frozen=True)
class Laplace:
    """Independent channels of density exp(-sqrt(2) |x|) / sqrt(2) before scaling; variance 1.

    Attributes:
        covariance: Scales the channels.
    """

    covariance: Covariance = field(default_factory=Isotropic)

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """The difference of two exponential numbers."""
        first, second = (_exponential(generator, count, length, width) for _ in range(2))
        return self.covariance.scales(width) * (first - second) / 2**0.5


@dataclass(frozen=True)
class Exponential:
    """Independent channels x + 1 ~ Exp(1) before scaling: skewed, of mean 0 and variance 1.

    Attributes:
        covariance: Scales the channels.
    """

    covariance: Covariance = field(default_factory=Isotropic)

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Exponential numbers less their mean."""
        numbers = _exponential(generator, count, length, width) - 1
        return self.covariance.scales(width) * numbers


@dataclass(frozen=True)
class Uniform:
    """Independent channels of U(-sqrt(3), sqrt(3)) before scaling; variance 1.

    Attributes:
        covariance: Scales the channels.
    """

    covariance: Covariance = field(default_factory=Isotropic)

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Uniform numbers."""
        edge = 3**0.5
        numbers = uniform(generator, -edge, edge, count, length, width)
        return self.covariance.scales(width) * numbers


@dataclass(frozen=True)
class ScaledInputs:
    """Inputs of another law times a factor; Garg et al. 2022, section 4."""

    law: InputLaw
    factor: float

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """The same numbers, scaled."""
        return self.factor * self.law.draw(count, length, width, generator)


def _exponential(generator: torch.Generator, *shape: int) -> Float[Tensor, "..."]:
    """Exponential numbers of rate 1, by inversion."""
    return -torch.log1p(-uniform(generator, 0.0, 1.0, *shape))
