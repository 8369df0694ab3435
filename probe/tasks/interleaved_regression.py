"""In-context regression whose inputs and labels are tokens of their own; Garg et al. 2022."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from probe.problem import InContextProblem
from probe.tasks.base import Sequences, Windows, growing_windows, shifted
from probe.tasks.functions import (
    DecisionTree,
    FunctionClass,
    Functions,
    Linear,
    LinearMaps,
    Quadratic,
    Sign,
    TwoLayer,
)
from probe.tasks.inputs import InputLaw, Isotropic, PowerLaw
from probe.tasks.label_noise import Clean, Corrupted, Corruption, GaussianNoise, NoiseLaw
from probe.tasks.layouts import PaddedLabels, PairLayout, SplitChannels, interleaved
from probe.tasks.linear_dynamics import describe
from probe.tasks.shifts import NoShift, OrthogonalQueries, OtherOrthant, QueryShift, RepeatedQueries
from probe.tasks.weights import PooledWeights, SparseWeights


@dataclass(frozen=True)
class InterleavedRegression:
    """Tokens x_1, y_1, x_2, y_2, ...; y_i = f(x_i) + noise is to be predicted at x_i.

    The problem has one position per question x_i, where the pairs (phi(x_j), y_j) with j < i are
    known: the newest of them is offered at the position, the query is phi(x_i) and the target y_i.
    phi are the features of the function class. At the tokens y_i nothing is asked.

    With a shift of queries the last input alone is a query of that law, and the others are its
    context; windows then hold the last question only.

    Attributes:
        name: Name of the task.
        functions: The law of f.
        inputs: The law of the inputs.
        layout: How inputs and labels become tokens.
        width: Width of an input.
        points: Number of questions, and of pairs with the last, which no question follows.
        noise: Scale of the noise of labels.
        noise_law: The law of noise of scale 1.
        corruption: Which labels of the context are replaced, and by what. They are targets too, as
            noise is part of a target.
        shift: How the last input differs from those before it.
    """

    name: str
    functions: FunctionClass
    inputs: InputLaw = field(default_factory=Isotropic)
    layout: PairLayout = field(default_factory=PaddedLabels)
    width: int = 20
    points: int = 41
    noise: float = 0.0
    noise_law: NoiseLaw = field(default_factory=GaussianNoise)
    corruption: Corruption = field(default_factory=Clean)
    shift: QueryShift = field(default_factory=NoShift)

    @property
    def teacher(self) -> FunctionClass:
        """The law of f."""
        return self.functions

    @property
    def length(self) -> int:
        """Two tokens per point."""
        return 2 * self.points

    @property
    def asked(self) -> slice:
        """The tokens that hold inputs."""
        return slice(0, None, 2)

    @property
    def width_in(self) -> int:
        """Width of a token."""
        return self.layout.width(self.width, self.functions.outputs)

    @property
    def width_out(self) -> int:
        """Width of a label."""
        return self.functions.outputs

    @property
    def windows(self) -> Windows:
        """The context grows from question to question; shifted queries come last."""
        if isinstance(self.shift, NoShift):
            return growing_windows(self.width, self.points)
        last = (self.points - 1, self.points)
        return Windows(unsolved=last, judged=last, solved=last, probed=last)

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Draws functions, inputs, noise, and which labels are replaced."""
        f = self.functions.draw(count, self.width, generator)
        drawn = self.inputs.draw(count, self.points, self.width, generator)
        noise = self.noise_law.draw(count, self.points, self.width_out, generator)
        x = torch.cat(self.shift.apply(drawn[:, :-1], drawn[:, -1:], generator), 1)
        oracle = f(x)
        context = (torch.arange(self.points) < self.points - 1).expand(count, -1)
        labels = self.corruption.spoil(oracle + self.noise * noise, context, generator)
        told = torch.cat([torch.zeros_like(labels[:, :1]), labels], 1)
        return Sequences(
            tokens=interleaved(*self.layout.halves(x, labels)).float(),
            # (x_i, y_{i-1}): the two newest tokens at every question, and what follows the last.
            observations=torch.cat([pad(x, (0, 0, 0, 1)), told], -1).float(),
            oracle=oracle.float(),
            features=self.functions.features(x).float(),
            teachers=self._weights(f, count).float(),
            clipped_share=0.0,
        )

    def _weights(self, f: Functions, count: int) -> Tensor:
        """The matrix of a linear f, or NaN."""
        if isinstance(f, LinearMaps):
            return f.weights
        return torch.full((count, self.width_out, self.width), torch.nan, dtype=torch.float64)

    def problem(self, sequences: Sequences) -> InContextProblem:
        """k_i = phi(x_{i-1}), v_i = y_{i-1}, q_i = phi(x_i), at every question i."""
        labels = sequences.observations[..., -self.width_out :]
        return InContextProblem(
            keys=shifted(sequences.features),
            values=labels[:, :-1],
            queries=sequences.features,
            targets=labels[:, 1:],
            oracle=sequences.oracle,
            first=1,
        )

    def params(self) -> Mapping[str, object]:
        """All fields but the name, and the number of tokens."""
        return {**describe(self), "length": self.length}


NAMED = {
    task.name: task
    for task in (
        InterleavedRegression("garg-linear", Linear()),
        InterleavedRegression("garg-linear-5d", Linear(), width=5, points=11),
        InterleavedRegression("garg-noisy", Linear(), noise=1.0),
        InterleavedRegression("garg-skewed", Linear(), PowerLaw()),
        InterleavedRegression("garg-corrupted", Linear(), corruption=Corrupted(3)),
        InterleavedRegression("garg-sparse", Linear(SparseWeights())),
        InterleavedRegression("garg-pool", Linear(PooledWeights(64))),
        InterleavedRegression("garg-fixed-teacher", Linear(PooledWeights(1))),
        InterleavedRegression("garg-quadratic", Quadratic()),
        InterleavedRegression("garg-sign", Sign()),
        InterleavedRegression("garg-relu", TwoLayer(), points=101),
        InterleavedRegression("garg-tree", DecisionTree(), points=101),
        InterleavedRegression("garg-orthants", Linear(), shift=OtherOrthant()),
        InterleavedRegression("garg-repeated", Linear(), shift=RepeatedQueries()),
        InterleavedRegression("garg-orthogonal", Linear(), points=11, shift=OrthogonalQueries()),
        InterleavedRegression("akyurek-linear", Linear(), layout=SplitChannels(), width=8),
        InterleavedRegression(
            "akyurek-noisy", Linear(), layout=SplitChannels(), width=8, noise=0.5
        ),
    )
}
