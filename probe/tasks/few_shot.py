"""Few-shot pairs (x_i, W x_i), one token each, for a model that was trained on sequences.

As von Oswald et al. 2023 (section on in-context learning) use their sequence models: bare, with an
EOS token after every pair, or with a prefix before them as well. The matrix may change on the way.
The tasks have no names for users, since a response is read over runs of positions that all ask
something, and here only every second or third position does; `probe.few_shot` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import InputError
from probe.problem import InContextProblem
from probe.sampling import normal, uniform
from probe.tasks.base import Sequences, Windows, shifted
from probe.tasks.linear_dynamics import describe
from probe.tasks.teachers import Orthogonal, TeacherLaw


@runtime_checkable
class PairLayout(Protocol):
    """How pairs become tokens."""

    @property
    def before(self) -> int:
        """Number of tokens before the first pair."""

    @property
    def stride(self) -> int:
        """Number of tokens from one x to the next."""

    def around(self, pairs: Float[Tensor, "batch pairs 2 d"]) -> Float[Tensor, "batch time d"]:
        """The tokens: x, y and what the layout puts around them."""


@dataclass(frozen=True)
class Bare:
    """x_1, y_1, x_2, y_2, ...; a model of sequences takes y_1, x_2 for a transition too."""

    before: int = field(default=0, init=False)
    stride: int = field(default=2, init=False)

    def around(self, pairs: Float[Tensor, "batch pairs 2 d"]) -> Float[Tensor, "batch time d"]:
        """Nothing else."""
        return pairs.flatten(1, 2)


@dataclass(frozen=True)
class WithEos:
    """x_1, y_1, EOS, x_2, y_2, EOS, ..."""

    token: Float[Tensor, " d"] = field(repr=False)
    before: int = field(default=0, init=False)
    stride: int = field(default=3, init=False)

    def around(self, pairs: Float[Tensor, "batch pairs 2 d"]) -> Float[Tensor, "batch time d"]:
        """The EOS token after every pair."""
        ends = self.token.expand(*pairs.shape[:2], 1, -1)
        return torch.cat([pairs, ends], 2).flatten(1, 2)


@dataclass(frozen=True)
class WithPrefix:
    """The prefix, then x_1, y_1, EOS, x_2, y_2, EOS, ..."""

    eos: WithEos
    prefix: Float[Tensor, "tokens d"] = field(repr=False)
    stride: int = field(default=3, init=False)

    @property
    def before(self) -> int:
        """The length of the prefix."""
        return len(self.prefix)

    def around(self, pairs: Float[Tensor, "batch pairs 2 d"]) -> Float[Tensor, "batch time d"]:
        """The same prefix before every sequence."""
        front = self.prefix.expand(len(pairs), -1, -1)
        return torch.cat([front, self.eos.around(pairs)], 1)


@runtime_checkable
class Course(Protocol):
    """Which matrix makes which pair."""

    def draw(
        self, teacher: TeacherLaw, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch tasks width width"]:
        """The matrices of a sequence, in the order in which they come."""

    def which(self, pairs: int) -> Int[Tensor, " pairs"]:
        """The index of the matrix of every pair."""


@dataclass(frozen=True)
class OneTask:
    """One matrix for the whole sequence."""

    def draw(
        self, teacher: TeacherLaw, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch tasks width width"]:
        """One draw per sequence."""
        return teacher.draw(count, width, generator)[:, None]

    def which(self, pairs: int) -> Int[Tensor, " pairs"]:
        """Always the first."""
        return torch.zeros(pairs, dtype=torch.long)


@dataclass(frozen=True)
class TaskSwitch:
    """After some pairs another matrix, drawn independently, takes the place of the first.

    Attributes:
        after: Number of pairs that the first matrix makes.
    """

    after: int

    def draw(
        self, teacher: TeacherLaw, count: int, width: int, generator: torch.Generator
    ) -> Float[Tensor, "batch tasks width width"]:
        """Two draws per sequence."""
        return torch.stack([teacher.draw(count, width, generator) for _ in range(2)], 1)

    def which(self, pairs: int) -> Int[Tensor, " pairs"]:
        """The first up to the switch, the second from there on."""
        return (torch.arange(pairs) >= self.after).long()


@dataclass(frozen=True)
class FewShot:
    """x_i ~ U(-start, start)^d, y_i = W x_i + noise; predict y_i where x_i is the last token.

    The x are drawn like the first state of linear dynamics. All noise is drawn independently for
    every sequence, pair and channel. The layout changes the tokens, never the pairs of a seed. The
    problem has one position per pair, where its x is the query.

    Attributes:
        name: Name of the task.
        teacher: The law of W.
        layout: How pairs become tokens.
        course: Whether W changes on the way.
        width: Width d of x and y.
        pairs: Number of pairs.
        noise: Standard deviation of the noise of y.
        start: Largest entry of x.

    Raises:
        InputError: A switch that leaves no pair on one side.
    """

    name: str
    teacher: TeacherLaw = field(default_factory=Orthogonal)
    layout: PairLayout = Bare()
    course: Course = OneTask()
    width: int = 10
    pairs: int = 60
    noise: float = 0.01
    start: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a switch outside the pairs."""
        if isinstance(self.course, TaskSwitch) and not 0 < self.course.after < self.pairs:
            raise InputError(
                f"task {self.name}: a switch after {self.course.after} of {self.pairs} pairs"
            )

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.layout.before + self.layout.stride * self.pairs

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.width

    @property
    def width_out(self) -> int:
        """Width of y."""
        return self.width

    @property
    def asked(self) -> slice:
        """The tokens that are an x: at these alone a prediction is asked for."""
        return slice(self.layout.before, None, self.layout.stride)

    @property
    def windows(self) -> Windows:
        """Single queries: one after few pairs, one at the width, one after many, the last."""
        wanted = (self.width // 2, self.width - 1, self.pairs - 1, 2 * self.width)
        places = (min(pair, self.pairs - 1) for pair in wanted)
        return Windows(*((place, place + 1) for place in places))

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Draws matrices, x and noise; the teacher that is handed on is the last one."""
        teachers = self.course.draw(self.teacher, count, self.width, generator)
        shape = (count, self.pairs, self.width)
        x = uniform(generator, -self.start, self.start, *shape)
        noise = self.noise * normal(generator, *shape)
        clean = torch.einsum("bpij,bpj->bpi", teachers[:, self.course.which(self.pairs)], x)
        x, clean, labels = x.float(), clean.float(), (clean + noise).float()
        told = torch.cat([torch.zeros_like(labels[:, :1]), labels], 1)
        return Sequences(
            tokens=self.layout.around(torch.stack([x, labels], 2)),
            # (x_i, y_{i-1}), and what follows the last.
            observations=torch.cat([pad(x, (0, 0, 0, 1)), told], -1),
            oracle=clean,
            features=x,
            teachers=teachers[:, -1].float(),
            clipped_share=0.0,
        )

    def problem(self, sequences: Sequences) -> InContextProblem:
        """All earlier pairs are known at every x, those of an earlier matrix too."""
        return replace(pairs_problem(*self.split(sequences)), oracle=sequences.oracle)

    def split(
        self, sequences: Sequences
    ) -> tuple[Float[Tensor, "batch pairs d"], Float[Tensor, "batch pairs d"]]:
        """All x and all y of a sample."""
        complete = slice(self.layout.before + 1, None, self.layout.stride)
        return sequences.tokens[:, self.asked], sequences.tokens[:, complete]

    def params(self) -> Mapping[str, object]:
        """All fields but the name, and the number of tokens."""
        return {**describe(self), "length": self.length}


def pairs_problem(
    x: Float[Tensor, "batch pairs d"], y: Float[Tensor, "batch pairs d_v"]
) -> InContextProblem:
    """At every pair its x is the query and the earlier pairs are known."""
    return InContextProblem(shifted(x), shifted(y), x, y, y, first=1)
