"""What every task is, and the pieces that the families share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import registry, tasks
from probe.problem import InContextProblem
from probe.tasks.functions import FunctionClass
from probe.tasks.teachers import TeacherLaw


@dataclass(frozen=True)
class Sequences:
    """A sample of a task.

    Attributes:
        tokens: What the model reads: vectors, or token ids.
        observations: What is seen at each position, and one more. In dynamics s_0 .. s_T; the
            target at position t is s_{t+1}. Positions are those of the problem (see `Spaced`).
        oracle: Expectation of the target for one who knows the teacher and the hidden state.
        features: What the teacher acts on linearly; the observation itself in linear dynamics.
        teachers: The hidden matrix W of each sequence; NaN where what is hidden is no matrix.
        clipped_share: Share of entries that the task's clip has changed.
    """

    tokens: Float[Tensor, "batch tokens d_in"] | Int[Tensor, "batch tokens"]
    observations: Float[Tensor, "batch time_and_one d_seen"]
    oracle: Float[Tensor, "batch time d_out"]
    features: Float[Tensor, "batch time d_feature"]
    teachers: Float[Tensor, "batch d_to d_from"]
    clipped_share: float


@runtime_checkable
class Task(Protocol):
    """Samples sequences and states their in-context problem."""

    @property
    def name(self) -> str:
        """The name under which users ask for the task."""

    @property
    def teacher(self) -> TeacherLaw | FunctionClass:
        """The law of the hidden matrix, or of the hidden function."""

    @property
    def length(self) -> int:
        """Number of tokens T."""

    @property
    def width_in(self) -> int:
        """Width of a token."""

    @property
    def width_out(self) -> int:
        """Width of a target."""

    @property
    def windows(self) -> "Windows":
        """The positions over which responses are read."""

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Draws `count` independent sequences."""

    def problem(self, sequences: Sequences) -> InContextProblem:
        """States the in-context problem of a sample."""

    def params(self) -> Mapping[str, object]:
        """The task's parameters, as they stand in a report."""


@runtime_checkable
class Spaced(Protocol):
    """A task that asks at some of its tokens only, so that others only tell.

    Its problem, its windows and all that is read from a model have one position per question;
    tokens between two questions belong to neither. Position i holds the query of the i-th question
    and the newest pair that has been told before it. What a model says at the other tokens is not
    looked at, and is not trained.
    """

    @property
    def asked(self) -> slice:
        """The tokens at which a question stands, in order."""


def asked_tokens(task: Task) -> slice:
    """The tokens at which the task asks: all, but for spaced tasks."""
    return task.asked if isinstance(task, Spaced) else slice(None)


def lacks_questions(task: Task) -> str | None:
    """What a spaced task lacks for an analysis that counts positions in tokens."""
    return "a question at every token" if isinstance(task, Spaced) else None


@dataclass(frozen=True)
class Windows:
    """Ranges of positions over which a response is read, as slices [start, stop) from 0.

    They may coincide, where the context is the same at all positions that are asked for.

    Attributes:
        unsolved: Few pairs for the dimensions to be learned: the learner's bias shows here.
        judged: Where the class of the algorithm is decided.
        solved: The positions after `unsolved`, where a good model nearly equals the oracle.
        probed: Middle positions for the statistic that is named in advance.
    """

    unsolved: tuple[int, int]
    judged: tuple[int, int]
    solved: tuple[int, int]
    probed: tuple[int, int]


def growing_windows(width: int, length: int) -> Windows:
    """Windows for dynamics: `width` key channels, and a context that grows over `length` positions.

    For 10 channels and 50 positions t = 1..50: 2..14, 5..49, 15..49 and 15..45.
    """
    last = length - 1
    knee = min(max(width + width // 2 - 1, 2), last - 5)
    judged = min(max(width // 2 - 1, 1), knee - 1)
    return Windows((1, knee), (judged, last), (knee, last), (knee, last - 4))


def label(window: tuple[int, int]) -> str:
    """The positions t of a window. t counts the tokens seen, so there are t - 1 pairs."""
    return f"{window[0] + 1}..{window[1]}"


def shifted(sequence: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
    """The sequence one position later; zeros come in first."""
    return torch.cat([torch.zeros_like(sequence[:, :1]), sequence[:, :-1]], 1)


def find_task(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        InputError: No such task.
    """
    task: Task = registry.choose(tasks, name, "task")
    return task
