"""Linear dynamics: s_{t+1} = clip(W s_t + noise); von Oswald et al. 2023, section 3.1."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import InContextProblem
from probe.sampling import normal, uniform
from probe.tasks.base import Sequences, Windows, growing_windows, shifted
from probe.tasks.teachers import Contracting, Fixed, GivenSpectrum, Orthogonal, Pool, TeacherLaw

_PLAIN = (int, float, str, tuple)


@runtime_checkable
class Layout(Protocol):
    """How states become tokens."""

    def width(self, d: int) -> int:
        """Width of a token for states of width `d`."""

    def tokens(self, states: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d_in"]:
        """The tokens of the states."""


@dataclass(frozen=True)
class RawTokens:
    """The state itself; the model must copy the previous state by itself."""

    def width(self, d: int) -> int:
        """As wide as the state."""
        return d

    def tokens(self, states: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d_in"]:
        """The states."""
        return states


@dataclass(frozen=True)
class ConstructedTokens:
    """e_t = (0, s_t, s_t, s_{t-1}): slots for the prediction, the target, the query and the key."""

    def width(self, d: int) -> int:
        """Four slots."""
        return 4 * d

    def tokens(self, states: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d_in"]:
        """The four slots side by side."""
        return torch.cat([torch.zeros_like(states), states, states, shifted(states)], -1)


@dataclass(frozen=True)
class LinearDynamics:
    """s_0 ~ U(-start, start)^d; s_{t+1} = clip(W s_t + noise xi_t, -clip, clip), xi ~ N(0, I)."""

    name: str
    teacher: TeacherLaw
    layout: Layout = RawTokens()
    width: int = 10
    length: int = 50
    noise: float = 0.01
    clip: float = 10.0
    start: float = 1.0

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.layout.width(self.width)

    @property
    def width_out(self) -> int:
        """Width of a target."""
        return self.width

    @property
    def windows(self) -> Windows:
        """The context grows with the position."""
        return growing_windows(self.width, self.length)

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Simulates `count` sequences, each with its own teacher draw and its own noise."""
        teachers = self.teacher.draw(count, self.width, generator)
        states = [uniform(generator, -self.start, self.start, count, self.width)]
        noise = self.noise * normal(generator, self.length, count, self.width)
        clipped = 0
        for xi in noise:
            moved = torch.einsum("bij,bj->bi", teachers, states[-1]) + xi
            clipped += int((moved.abs() > self.clip).sum())
            states.append(moved.clamp(-self.clip, self.clip))
        observations = torch.stack(states, 1).float()
        inputs = observations[:, :-1]
        return Sequences(
            tokens=self.layout.tokens(inputs),
            observations=observations,
            oracle=torch.einsum("bij,btj->bti", teachers.float(), inputs),
            features=inputs,
            teachers=teachers.float(),
            clipped_share=clipped / noise.numel(),
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """k_j = s_{j-1}, v_j = s_j, q_t = s_t, y_t = s_{t+1}."""
        return dynamics_problem(sequences)

    def params(self) -> Mapping[str, object]:
        """All fields but the name."""
        return describe(self)


def dynamics_problem(sequences: Sequences) -> InContextProblem:
    """k_j = feature_{j-1}, v_j = s_j, q_t = feature_t, y_t = s_{t+1}."""
    return InContextProblem(
        keys=shifted(sequences.features),
        values=sequences.observations[:, :-1],
        queries=sequences.features,
        targets=sequences.observations[:, 1:],
        oracle=sequences.oracle,
        first=1,
    )


def describe(task: object) -> dict[str, object]:
    """The fields of a task for a report: plain values as they are, laws and layouts by name."""
    return {name: value for name, value in _fields(task).items() if name != "name"}


def _fields(law: object) -> dict[str, object]:
    """Fields without tensors; those that are laws themselves with their kind."""
    return {
        name: value
        if isinstance(value, _PLAIN)
        else {"kind": type(value).__name__, **_fields(value)}
        for name, value in vars(law).items()
        if not isinstance(value, Tensor)
    }


def _with_layouts(task: LinearDynamics) -> dict[str, LinearDynamics]:
    constructed = replace(task, name=f"{task.name}-constructed", layout=ConstructedTokens())
    return {task.name: task, constructed.name: constructed}


NAMED = {
    **_with_layouts(LinearDynamics("linear", Orthogonal())),
    **_with_layouts(LinearDynamics("contracting", Contracting(), clip=2.0)),
    **_with_layouts(LinearDynamics("fixed-teacher", Fixed.from_seed(10, seed=0))),
    **_with_layouts(LinearDynamics("finite-pool", Pool.from_seed(4, 10, seed=0))),
    **_with_layouts(
        LinearDynamics("two-cluster", GivenSpectrum((1.0, -1.0, 1.0, -1.0, 0.9)), clip=10.0)
    ),
    **_with_layouts(LinearDynamics("linear-narrow", Orthogonal(), width=5, length=30)),
    "linear-long": LinearDynamics("linear-long", Orthogonal(), length=224),
    "linear-wide": LinearDynamics("linear-wide", Orthogonal(), width=20, length=80),
}
