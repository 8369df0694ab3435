"""What a planted model is: weights that run a known algorithm, and the algorithm itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe import planted as families_of_planted
from probe import registry
from probe.models.transformer import SequenceTransformer
from probe.solvers.base import Posed
from probe.stages import Context
from probe.tasks.base import Task, asked_tokens


@dataclass(frozen=True)
class Truth:
    """What a detector should say.

    Attributes:
        algorithm_class: Class of the verdict.
        family: Family in the words of the report.
        degree: Number of steps of a first-order iteration; None for all others.
        also: Classes that are as right, where the model runs no algorithm to be named.
        blurred: Families that hold the algorithm since its weights were changed a little.
    """

    algorithm_class: str
    family: str
    degree: int | None
    also: tuple[str, ...] = ()
    blurred: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """The solver's state r_l in the stream before a block, and what the later blocks make of it.

    Attributes:
        layer: The stream before block `layer` holds it.
        read: stream @ read = r_l.
        write: Adding dr @ write to the stream adds dr to r_l and changes nothing else.
        remaining: T_l: the output changes by C_t T_l(G_t) dr if r_l changes by dr at t only.
    """

    layer: int
    read: Float[Tensor, "d_model d"] = field(repr=False)
    write: Float[Tensor, "d d_model"] = field(repr=False)
    remaining: Callable[[Tensor], Tensor] = field(repr=False)


@dataclass(frozen=True)
class Planted:
    """A model with its ground truth.

    Attributes:
        name: Family and constants, in words.
        model: The model.
        task: The task on which it runs the algorithm.
        truth: What a detector should say.
        solver: Predictions of the algorithm, (batch, time, d_v), in float64.
        states: Where its states lie; none for what is no iteration.
        disguises: What hides the construction, first to last.
        exact: Whether the model still equals the solver; noise and training end that.
    """

    name: str
    model: SequenceTransformer = field(repr=False)
    task: Task
    truth: Truth
    solver: Callable[[Posed], Tensor] = field(repr=False)
    states: tuple[State, ...] = ()
    disguises: tuple[str, ...] = ()
    exact: bool = True


@runtime_checkable
class PlantedFamily(Protocol):
    """A family of planted models; `learns` tells whether its members run one solver."""

    name: str
    learns: bool

    def fits(self, task: Task) -> bool:
        """Whether it can be planted on the task."""

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """A member with constants drawn to suit the task."""


@cache
def families_planted() -> Mapping[str, PlantedFamily]:
    """All families, by name."""
    return MappingProxyType(registry.discover(families_of_planted))


@torch.no_grad()
def error_against_solver(planted: Planted, count: int, generator: torch.Generator) -> float:
    """Largest difference of model and solver from the first pair on, over max(1, rms).

    The model runs in the dtype of its weights; rounding is part of the difference.

    Args:
        planted: The model and its solver.
        count: Number of sequences.
        generator: Draws them.
    """
    sequences = planted.task.sample(count, generator)
    context = Context(sequences, planted.task.problem(sequences))
    tokens = sequences.tokens.to(next(planted.model.parameters()).dtype)
    output = planted.model(tokens).double()[:, asked_tokens(planted.task)][:, 1:]
    expected = planted.solver(context)[:, 1:]
    scale = max(1.0, float(expected.square().mean().sqrt()))
    return float((output - expected).abs().max()) / scale
