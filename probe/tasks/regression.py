"""Linear regression in context, with pairs first and queries behind them; Garg et al. 2022."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.problem import InContextProblem
from probe.tasks.base import Sequences, Windows
from probe.tasks.inputs import Clustered, Geometric, InputLaw, Isotropic, Laplace, PowerLaw
from probe.tasks.label_noise import (
    Clean,
    Corrupted,
    Corruption,
    GaussianNoise,
    NoiseLaw,
    StudentNoise,
    VaryingNoise,
)
from probe.tasks.linear_dynamics import describe
from probe.tasks.shifts import NoShift, QueryShift
from probe.tasks.teachers import Fixed, Gaussian, TeacherLaw
from probe.tasks.weights import GaussianWeights, PooledWeights, SparseWeights


@dataclass(frozen=True)
class InContextRegression:
    """v_j = W x_j + noise; predict W x at the query positions.

    Of `pairs` context positions the first n hold a pair, n uniform between width // 2 and `pairs`;
    the others are zero. Behind them come `queries` query positions, which offer no pair, so that
    attention with and without a mask poses the same problem there. Tokens have the slots of
    constructed dynamics, (prediction, query, value, key): (0, 0, v_j, x_j), then (0, x, 0, 0).

    Attributes:
        name: Name of the task.
        teacher: The law of W.
        inputs: The law of the inputs x.
        width: Width of inputs and of values.
        pairs: The most pairs.
        queries: The number of query positions.
        noise: Scale of the noise of values; targets have none.
        noise_law: The law of noise of scale 1.
        corruption: Which values of the context are replaced, and by what.
        shift: How the queries differ from the inputs of the context.
    """

    name: str
    teacher: TeacherLaw
    inputs: InputLaw = field(default_factory=Isotropic)
    width: int = 10
    pairs: int = 20
    queries: int = 8
    noise: float = 0.01
    noise_law: NoiseLaw = field(default_factory=GaussianNoise)
    corruption: Corruption = field(default_factory=Clean)
    shift: QueryShift = field(default_factory=NoShift)

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
        inputs = self.inputs.draw(count, self.length, self.width, generator)
        noise = self.noise * self.noise_law.draw(count, self.length, self.width, generator)
        used = torch.randint(self.width // 2, self.pairs + 1, (count, 1), generator=generator)
        inputs[:, : self.pairs] *= (torch.arange(self.pairs) < used)[..., None]
        context, queries = inputs.split([self.pairs, self.queries], 1)
        inputs = torch.cat(self.shift.apply(context, queries, generator), 1)
        there, asked = inputs.ne(0).any(-1, keepdim=True), self._asked()
        clean = torch.einsum("bij,btj->bti", teachers, inputs)
        values = self.corruption.spoil(clean + noise * there, (there & ~asked)[..., 0], generator)
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


_ENTRIES = GaussianWeights(10**-0.5)  # values of the size of the inputs
NAMED = {
    task.name: task
    for task in (
        InContextRegression("regression", Gaussian()),
        InContextRegression("regression-skewed", Gaussian(), Geometric()),
        InContextRegression("regression-ill-conditioned", Gaussian(), Geometric(1e4)),
        InContextRegression("regression-two-cluster", Gaussian(), Clustered(2)),
        InContextRegression("regression-power-law", Gaussian(), PowerLaw()),
        InContextRegression("regression-laplace", Gaussian(), Laplace()),
        InContextRegression("regression-noisy", Gaussian(), noise=0.5),
        InContextRegression(
            "regression-varying-noise", Gaussian(), noise=1.0, noise_law=VaryingNoise()
        ),
        InContextRegression(
            "regression-heavy-tails", Gaussian(), noise=0.5, noise_law=StudentNoise()
        ),
        InContextRegression("regression-corrupted", Gaussian(), corruption=Corrupted(3)),
        InContextRegression("regression-sparse", SparseWeights(3, tau=3**-0.5)),
        InContextRegression("regression-pool", PooledWeights(64, seed=0, law=_ENTRIES)),
        InContextRegression("regression-large-pool", PooledWeights(2**15, seed=0, law=_ENTRIES)),
        InContextRegression("regression-fixed-teacher", Fixed.from_seed(10, seed=0)),
    )
}
