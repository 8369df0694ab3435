"""Nonlinear dynamics with a fixed feature map; von Oswald et al. 2023, section 3.3."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import InContextProblem
from probe.sampling import generator_for, normal, uniform
from probe.tasks.base import Sequences, Windows, growing_windows
from probe.tasks.linear_dynamics import describe, dynamics_problem
from probe.tasks.teachers import Orthogonal, TeacherLaw


@runtime_checkable
class Map(Protocol):
    """A fixed map of states to features."""

    def __call__(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The features of states."""

    def another(self, seed: int) -> "Map":
        """A map of the same kind and shape with other constants."""


@dataclass(frozen=True)
class FeatureMap:
    """phi(x) = B gelu(A x) / |B gelu(A x)|, with the tanh form of gelu."""

    inner: Float[Tensor, "width hidden"] = field(repr=False)
    outer: Float[Tensor, "hidden width"] = field(repr=False)

    @classmethod
    def from_seed(cls, width: int, hidden: int, seed: int) -> "FeatureMap":
        """Gaussian matrices times 1.1, of our own."""
        generator = generator_for(seed)
        return cls(
            1.1 * normal(generator, width, hidden),
            1.1 * normal(generator, hidden, width),
        )

    def another(self, seed: int) -> "FeatureMap":
        """Gaussian matrices of the same shapes."""
        width, hidden = self.inner.shape
        return FeatureMap.from_seed(width, hidden, seed)

    def __call__(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The normalised features of states."""
        mapped = self.unnormalised(states)
        return mapped / mapped.norm(dim=-1, keepdim=True)

    def unnormalised(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """B gelu(A x)."""
        return hidden_layer(states, self.inner, self.outer)


@dataclass(frozen=True)
class PlainFeatureMap:
    """phi(x) = B gelu(A x), which one MLP computes exactly; it shrinks states on average."""

    inner: Float[Tensor, "width hidden"] = field(repr=False)
    outer: Float[Tensor, "hidden width"] = field(repr=False)

    @classmethod
    def from_seed(cls, width: int, hidden: int, seed: int) -> "PlainFeatureMap":
        """Gaussian matrices, B scaled so that large states shrink to 0.4 of their rms."""
        generator = generator_for(seed)
        inner = 1.1 * normal(generator, width, hidden)
        outer = normal(generator, hidden, width)
        large = 100 * normal(generator, 4096, width)
        gain = hidden_layer(large, inner, outer).norm() / large.norm()
        return cls(inner, 0.4 * outer / gain)

    def another(self, seed: int) -> "PlainFeatureMap":
        """Matrices of the same shapes."""
        width, hidden = self.inner.shape
        return PlainFeatureMap.from_seed(width, hidden, seed)

    def __call__(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The features of states."""
        return hidden_layer(states, self.inner, self.outer)


def hidden_layer(
    states: Float[Tensor, "*batch width"],
    inner: Float[Tensor, "width hidden"],
    outer: Float[Tensor, "hidden width"],
) -> Float[Tensor, "*batch width"]:
    """B gelu(A x) with the tanh form of gelu, in the dtype of the states."""
    hidden = torch.nn.functional.gelu(states @ inner.to(states.dtype), approximate="tanh")
    return hidden @ outer.to(states.dtype)


@dataclass(frozen=True)
class NonlinearDynamics:
    """s_{t+1} = W phi(s_t) + noise xi_t; s_0 ~ U(-start, start)^d. Linear in the features phi."""

    name: str
    teacher: TeacherLaw
    feature_map: Map
    width: int = 10
    length: int = 50
    noise: float = 0.01
    start: float = 0.25

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.width

    @property
    def width_out(self) -> int:
        """Width of a target."""
        return self.width

    @property
    def windows(self) -> Windows:
        """The context grows with the position."""
        return growing_windows(self.width, self.length)

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Simulates `count` sequences."""
        teachers = self.teacher.draw(count, self.width, generator)
        states = [uniform(generator, -self.start, self.start, count, self.width)]
        for xi in self.noise * normal(generator, self.length, count, self.width):
            states.append(torch.einsum("bij,bj->bi", teachers, self.feature_map(states[-1])) + xi)
        observations = torch.stack(states, 1).float()
        tokens = observations[:, :-1]
        features = self.feature_map(tokens)
        return Sequences(
            tokens=tokens,
            observations=observations,
            oracle=torch.einsum("bij,btj->bti", teachers.float(), features),
            features=features,
            teachers=teachers.float(),
            clipped_share=0.0,
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """Linear regression in the true features."""
        return dynamics_problem(sequences)

    def params(self) -> Mapping[str, object]:
        """All fields but the name and the feature map."""
        fields = describe(self)
        return {key: value for key, value in fields.items() if key != "feature_map"}


NAMED = {
    "nonlinear": NonlinearDynamics(
        "nonlinear", Orthogonal(), FeatureMap.from_seed(10, hidden=40, seed=0)
    ),
}
