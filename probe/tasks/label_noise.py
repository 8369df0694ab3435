"""What stands between a clean label and the one that is seen: noise, and corruption."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.sampling import normal, uniform


@runtime_checkable
class NoiseLaw(Protocol):
    """Draws noise of scale 1; a task multiplies it by its own scale sigma."""

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Noise in float64."""


@dataclass(frozen=True)
class GaussianNoise:
    """N(0, 1): with the scale sigma of the task its standard deviation."""

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Standard normal numbers."""
        return normal(generator, count, length, width)


@dataclass(frozen=True)
class VaryingNoise:
    """Gaussian noise whose standard deviation ~ U(0, 1) is drawn anew for every sequence.

    With the scale sigma of the task it is ~ U(0, sigma), so no single penalty suits all sequences.
    """

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """Scaled standard normal numbers."""
        numbers = normal(generator, count, length, width)
        return uniform(generator, 0.0, 1.0, count, 1, 1) * numbers


@dataclass(frozen=True)
class StudentNoise:
    """Student's t, scaled to variance 1.

    Attributes:
        freedom: Degrees of freedom, more than 2; few are heavy tails.
    """

    freedom: int = 3

    def draw(
        self, count: int, length: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch time width"]:
        """A normal number over the root of a chi-square of its own."""
        numbers = normal(generator, count, length, width)
        chi2 = normal(generator, count, length, width, self.freedom).square().sum(-1)
        return numbers * ((self.freedom - 2) / chi2).sqrt()


@runtime_checkable
class Corruption(Protocol):
    """Replaces labels of the context."""

    def spoil(
        self,
        labels: Float[Tensor, "batch time d_out"],
        offered: Bool[Tensor, "batch time"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch time d_out"]:
        """Labels, some of those that are offered replaced."""


@dataclass(frozen=True)
class Clean:
    """No label is replaced."""

    def spoil(
        self,
        labels: Float[Tensor, "batch time d_out"],
        offered: Bool[Tensor, "batch time"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch time d_out"]:
        """The labels."""
        return labels


@dataclass(frozen=True)
class Corrupted:
    """Labels at random places of a sequence replaced by numbers that know nothing of their input.

    The numbers are Gaussian, of the root mean square of the sequence's own offered labels.

    Attributes:
        labels: How many; all of them where fewer are offered.
    """

    labels: int = 3

    def spoil(
        self,
        labels: Float[Tensor, "batch time d_out"],
        offered: Bool[Tensor, "batch time"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch time d_out"]:
        """Every set of places is as likely as any other."""
        lots = uniform(generator, 0.0, 1.0, *offered.shape).masked_fill(~offered, 2.0)
        chosen = offered & (lots.argsort(1).argsort(1) < self.labels)
        energy = (labels.square() * offered[..., None]).sum((1, 2), keepdim=True)
        count = offered.sum(1)[:, None, None].clamp(min=1) * labels.shape[-1]
        drawn = (energy / count).sqrt() * normal(generator, *labels.shape)
        return torch.where(chosen[..., None], drawn, labels)
