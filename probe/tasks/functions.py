"""Classes of functions y = f(x), one f per sequence; Garg et al. 2022, sections 3 and 5.

Each class states the features in which its functions are linear, if there are any: pairs of
features and labels are then linear regression. For the other classes the features are the inputs
themselves, so that least squares is a hypothesis that can only fail.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.sampling import normal
from probe.tasks.weights import GaussianWeights, WeightLaw


@runtime_checkable
class Functions(Protocol):
    """A draw of functions, one per sequence."""

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time d_out"]:
        """f(x) at every position."""


@runtime_checkable
class FunctionClass(Protocol):
    """Draws functions."""

    @property
    def outputs(self) -> int:
        """Width of f(x)."""

    @property
    def is_linear(self) -> bool:
        """Whether every f is linear in `features`."""

    def features(
        self, x: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, "batch time d_feature"]:
        """What f is linear in, or x where it is linear in nothing that is known."""

    def draw(self, count: int, width: int, generator: torch.Generator) -> Functions:
        """Draws `count` functions of inputs of this width."""


@dataclass(frozen=True)
class LinearMaps:
    """f(x) = W phi(x).

    Attributes:
        weights: W.
        lift: phi; nothing but its values matters.
    """

    weights: Float[Tensor, "batch d_out d_feature"] = field(repr=False)
    lift: "Linear | Quadratic"

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time d_out"]:
        """At every position."""
        return torch.einsum("bij,btj->bti", self.weights, self.lift.features(x))


@dataclass(frozen=True)
class Linear:
    """f(x) = W x with the W of a law."""

    weights: WeightLaw = field(default_factory=GaussianWeights)
    outputs: int = 1

    @property
    def is_linear(self) -> bool:
        """In the inputs."""
        return True

    def features(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """X itself."""
        return x

    def draw(self, count: int, width: int, generator: torch.Generator) -> LinearMaps:
        """Draws W."""
        return LinearMaps(self.weights.matrices(count, self.outputs, width, generator), self)


@dataclass(frozen=True)
class Quadratic:
    """f(x) = W phi(x) with phi_i = x_i^2 / sqrt(3), of mean square 1 for standard normal x."""

    weights: WeightLaw = field(default_factory=GaussianWeights)
    outputs: int = 1

    @property
    def is_linear(self) -> bool:
        """In the squares."""
        return True

    def features(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """The scaled squares, not centred: their mean is the same large direction everywhere."""
        return x.square() / 3**0.5

    def draw(self, count: int, width: int, generator: torch.Generator) -> LinearMaps:
        """Draws W."""
        return LinearMaps(self.weights.matrices(count, self.outputs, width, generator), self)


@dataclass(frozen=True)
class _OfInputs:
    """A class that is linear in no features that are known beforehand; one output."""

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def is_linear(self) -> bool:
        """It is not."""
        return False

    def features(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """The inputs themselves."""
        return x


@dataclass(frozen=True)
class Signs:
    """f(x) = sign(w . x)."""

    weights: Float[Tensor, "batch 1 width"] = field(repr=False)

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time 1"]:
        """1 or -1 at every position."""
        return torch.einsum("bij,btj->bti", self.weights, x).sign()


@dataclass(frozen=True)
class Sign(_OfInputs):
    """f(x) = sign(w . x): linear classification, with the labels as numbers."""

    weights: WeightLaw = field(default_factory=GaussianWeights)

    def draw(self, count: int, width: int, generator: torch.Generator) -> Signs:
        """Draws w."""
        return Signs(self.weights.matrices(count, 1, width, generator))


@dataclass(frozen=True)
class Networks:
    """f(x) = sqrt(2 / r) sum_i a_i relu(w_i . x)."""

    inner: Float[Tensor, "batch hidden width"] = field(repr=False)
    outer: Float[Tensor, "batch 1 hidden"] = field(repr=False)

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time 1"]:
        """At every position."""
        hidden = torch.einsum("bij,btj->bti", self.inner, x).relu()
        return (2 / self.inner.shape[1]) ** 0.5 * torch.einsum("bij,btj->bti", self.outer, hidden)


@dataclass(frozen=True)
class TwoLayer(_OfInputs):
    """Networks of one hidden layer of relu units, all weights N(0, 1).

    Attributes:
        hidden: Number of hidden units r.
    """

    hidden: int = 100

    def draw(self, count: int, width: int, generator: torch.Generator) -> Networks:
        """Draws both layers."""
        inner = normal(generator, count, self.hidden, width)
        return Networks(inner, normal(generator, count, 1, self.hidden))


@dataclass(frozen=True)
class Trees:
    """Full binary trees, numbered level by level from 0: node n leads to 2n + 1 and 2n + 2.

    Attributes:
        channels: The channel whose sign decides at each inner node.
        leaves: The value of each leaf, from left to right.
    """

    channels: Int[Tensor, "batch inner"] = field(repr=False)
    leaves: Float[Tensor, "batch leaves"] = field(repr=False)

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time 1"]:
        """Walks down one level at a time: left where the channel is not positive."""
        node = torch.zeros(x.shape[:2], dtype=torch.long)
        for _ in range(round(math.log2(self.leaves.shape[1]))):
            channel = self.channels.gather(1, node)
            right = x.gather(2, channel[..., None])[..., 0] > 0
            node = 2 * node + 1 + right
        return self.leaves.gather(1, node - self.channels.shape[1])[..., None]


@dataclass(frozen=True)
class DecisionTree(_OfInputs):
    """Trees that look at the sign of a random channel at every node, with leaves N(0, 1).

    Attributes:
        depth: Number of decisions.
    """

    depth: int = 4

    def draw(self, count: int, width: int, generator: torch.Generator) -> Trees:
        """Draws channels, then leaves."""
        leaves = 2**self.depth
        channels = torch.randint(width, (count, leaves - 1), generator=generator)
        return Trees(channels, normal(generator, count, leaves))


@dataclass(frozen=True)
class ScaledValues:
    """Functions times a factor."""

    functions: Functions
    factor: float

    def __call__(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time d_out"]:
        """The same values, scaled."""
        return self.factor * self.functions(x)


@dataclass(frozen=True)
class ScaledFunctions:
    """A class whose values are scaled by a factor."""

    of: FunctionClass
    factor: float

    @property
    def outputs(self) -> int:
        """As before."""
        return self.of.outputs

    @property
    def is_linear(self) -> bool:
        """As before."""
        return self.of.is_linear

    def features(
        self, x: Float[Tensor, "batch time width"]
    ) -> Float[Tensor, "batch time d_feature"]:
        """As before."""
        return self.of.features(x)

    def draw(self, count: int, width: int, generator: torch.Generator) -> ScaledValues:
        """The same functions, scaled."""
        return ScaledValues(self.of.draw(count, width, generator), self.factor)
