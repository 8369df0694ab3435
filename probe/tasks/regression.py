"""Linear regression in context, with pairs first and queries behind them; Garg et al. 2022."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.problem import InContextProblem
from probe.sampling import normal
from probe.tasks.base import Sequences, Windows
from probe.tasks.linear_dynamics import describe
from probe.tasks.teachers import Gaussian, TeacherLaw


@runtime_checkable
class Covariance(Protocol):
    """The law of the inputs, x ~ N(0, Sigma)."""

    def scales(self, width: int) -> Float[Tensor, " width"]:
        """Standard deviations along the axes of Sigma, in float64; their mean square is 1."""


@dataclass(frozen=True)
class Isotropic:
    """Sigma = I."""

    def scales(self, width: int) -> Float[Tensor, " width"]:
        """Ones."""
        return torch.ones(width, dtype=torch.float64)


@dataclass(frozen=True)
class Geometric:
    """Eigenvalues of Sigma fall geometrically; the largest is `condition` times the smallest."""

    condition: float = 30.0

    def scales(self, width: int) -> Float[Tensor, " width"]:
        """Falling from the first channel to the last."""
        places = torch.linspace(0, 1, width, dtype=torch.float64)
        variances = self.condition**-places
        return (variances / variances.mean()).sqrt()


@dataclass(frozen=True)
class InContextRegression:
    """x ~ N(0, Sigma), v_j = W x_j + noise; predict W x at the query positions.

    Of `pairs` context positions the first n hold a pair, n uniform between width // 2 and `pairs`;
    the others are zero. Behind them come `queries` query positions, which offer no pair, so that
    attention with and without a mask poses the same problem there. Tokens have the slots of
    constructed dynamics, (prediction, query, value, key): (0, 0, v_j, x_j), then (0, x, 0, 0).

    Attributes:
        name: Name of the task.
        teacher: The law of W.
        covariance: The law of the inputs.
        width: Width of inputs and of values.
        pairs: The most pairs.
        queries: The number of query positions.
        noise: Standard deviation of the noise of values; targets have none.
    """

    name: str
    teacher: TeacherLaw
    covariance: Covariance = Isotropic()
    width: int = 10
    pairs: int = 20
    queries: int = 8
    noise: float = 0.01

    @property
    def length(self) -> int:
        """Context and query positions."""
        return self.pairs + self.queries

    @property
    def width_in(self) -> int:
        """Four slots."""
        return 4 * self.width

    @property
    def width_out(self) -> int:
        """Width of a value."""
        return self.width

    @property
    def windows(self) -> Windows:
        """The query positions; the context is complete at all of them."""
        whole = (self.pairs, self.length)
        return Windows(unsolved=whole, judged=whole, solved=whole, probed=whole)

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Draws teachers, inputs, the number of pairs, and noise."""
        teachers = self.teacher.draw(count, self.width, generator)
        scales = self.covariance.scales(self.width)
        inputs = scales * normal(generator, count, self.length, self.width)
        noise = self.noise * normal(generator, count, self.length, self.width)
        used = torch.randint(self.width // 2, self.pairs + 1, (count, 1), generator=generator)
        inputs[:, : self.pairs] *= (torch.arange(self.pairs) < used)[..., None]
        there = inputs.ne(0).any(-1, keepdim=True)
        clean = torch.einsum("bij,btj->bti", teachers, inputs)
        values, asked = clean + noise * there, self._asked()
        seen = torch.where(asked, inputs, values)
        nothing = torch.zeros_like(inputs)
        slots = (nothing, inputs * asked, values * ~asked, inputs * ~asked)
        return Sequences(
            tokens=torch.cat(slots, -1).float(),
            observations=torch.cat([seen, nothing[:, :1]], 1).float(),
            oracle=(clean * asked).float(),
            features=inputs.float(),
            teachers=teachers.float(),
            clipped_share=0.0,
        )

    def _asked(self) -> Bool[Tensor, "time 1"]:
        """Which positions are query positions."""
        return (torch.arange(self.length) >= self.pairs)[:, None]

    def problem(self, sequences: Sequences) -> InContextProblem:
        """Pairs at context positions, queries and targets behind them, zeros elsewhere.

        G_t and C_t of every query position are those of the whole context.
        """
        asked = self._asked()
        inputs = sequences.features
        return InContextProblem(
            keys=inputs * ~asked,
            values=sequences.observations[:, :-1] * ~asked,
            queries=inputs * asked,
            targets=sequences.oracle,
            oracle=sequences.oracle,
            first=0,
        )

    def params(self) -> Mapping[str, object]:
        """All fields but the name, and the number of positions."""
        return {**describe(self), "length": self.length}


NAMED = {
    "regression": InContextRegression("regression", Gaussian()),
    "regression-skewed": InContextRegression("regression-skewed", Gaussian(), Geometric()),
}
