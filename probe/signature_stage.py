"""The model run again on changed inputs, and what it says there beside what a learner would say.

Trials run on the first eighth of every shard of the test split. What a trial hands on are the
products of a few predictions with each other, by block: every share of variance follows from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Runner
from probe.response import FINE, hat_features
from probe.sampling import generator_for, uniform
from probe.stages import Batch, Context, Sums
from probe.statistics import Interval, Statistic, share_explained
from probe.symmetries import (
    PairedTokens,
    permuted,
    segments,
    spliced,
    turned,
    with_values,
)
from probe.tasks.base import Task
from probe.tasks.teachers import Orthogonal
from probe.views import SUBJECT

SHARE = 0.125
SEGMENT = 8.0
Contrast = Mapping[str, int | float]


@dataclass(frozen=True)
class Products:
    """Products of named predictions, summed by block.

    Attributes:
        names: What each row and column is.
        gram: The products.
    """

    names: tuple[str, ...]
    gram: Float[Tensor, "blocks n n"]

    def square(self, contrast: Contrast) -> Float[Tensor, " blocks"]:
        """Squared length of a weighted sum of the predictions."""
        weights = torch.tensor([contrast.get(n, 0.0) for n in self.names], dtype=torch.float64)
        return self.gram @ weights @ weights

    def product(self, one: str, other: str) -> Float[Tensor, " blocks"]:
        """The product of two predictions."""
        return self.gram[:, self.names.index(one), self.names.index(other)]

    def explained(self, error: Contrast, energy: Contrast) -> Interval:
        """1 - |error|^2 / |energy|^2."""
        return share_explained(self.square(error), self.square(energy))


@runtime_checkable
class Trial(Protocol):
    """One way to change the input."""

    @property
    def name(self) -> str:
        """How it is called."""

    def run(
        self, batch: Batch, runner: Runner, generator: torch.Generator
    ) -> Float[Tensor, "batch rows columns"]:
        """Predictions side by side: one row per number that is predicted."""

    def products(
        self, gram: Float[Tensor, "blocks columns columns"], curve: Float[Tensor, " knots"]
    ) -> Products:
        """Products of named predictions; `curve` is the free response of the unchanged input."""


@dataclass(frozen=True)
class ContextTrial:
    """The context of a query in another order, and with other values; the query's token stays.

    Attributes:
        pairs: Where the pairs are.
        ends: Places of the queries; the sequence is cut after each.
    """

    pairs: PairedTokens
    ends: tuple[int, ...]
    name: str = "context"

    def run(
        self, batch: Batch, runner: Runner, generator: torch.Generator
    ) -> Float[Tensor, "batch rows columns"]:
        """The prediction at every end: unchanged, permuted, and with weighted values."""
        tokens = batch.context.sequences.tokens
        said = []
        for end in self.ends:
            among = self.pairs.before(end)
            cut = self.pairs.until(tokens, end)
            part = uniform(generator, 0.0, 1.0, len(tokens), among[1] - among[0])
            weights = (0 * part, 0 * part + 0.5, part, 1 - part)
            changed = [permuted(cut, among, generator, self.pairs.span)]
            changed += [with_values(cut, self.pairs, weight) for weight in weights]
            last = runner.run(torch.cat(changed))[:, -1].unflatten(0, (len(changed), -1))
            said.append(torch.stack([batch.capture.output[:, end], *last], -1))
        return torch.cat(said, 1).double()

    def products(
        self, gram: Float[Tensor, "blocks columns columns"], curve: Float[Tensor, " knots"]
    ) -> Products:
        """All six predictions."""
        return Products(("clean", "permuted", "zeroed", "halved", "one", "other"), gram)


@dataclass(frozen=True)
class RotationTrial:
    """All states turned by one random orthogonal matrix per sequence.

    Attributes:
        window: The judged positions.
    """

    window: tuple[int, int]
    name: str = "rotation"

    def run(
        self, batch: Batch, runner: Runner, generator: torch.Generator
    ) -> Float[Tensor, "batch rows columns"]:
        """Unchanged, changed, and the unchanged prediction turned along."""
        clean = batch.capture.output
        turn = Orthogonal().draw(len(clean), clean.shape[-1], generator)
        changed = runner.run(turned(batch.context.sequences.tokens, turn))
        said = torch.stack([clean, changed, turned(clean, turn)], -1)
        return said[:, slice(*self.window)].flatten(1, 2).double()

    def products(
        self, gram: Float[Tensor, "blocks columns columns"], curve: Float[Tensor, " knots"]
    ) -> Products:
        """All three."""
        return Products(("clean", "changed", "expected"), gram)


@dataclass(frozen=True)
class ScaleTrial:
    """All states scaled by c, so that mu becomes c^2 mu.

    Attributes:
        scale: The factor c.
        knots: Knots of the response.
        window: The judged positions.
    """

    scale: float
    knots: tuple[float, ...]
    window: tuple[int, int]

    @property
    def name(self) -> str:
        """With its factor."""
        return f"scale {self.scale:g}"

    def run(
        self, batch: Batch, runner: Runner, generator: torch.Generator
    ) -> Float[Tensor, "batch rows columns"]:
        """Hats of both inputs, then both predictions."""
        own, c = batch.context.spectrum, self.scale
        scaled = replace(own, mu=c**2 * own.mu, query=c * own.query, maps=c**2 * own.maps)
        knots = torch.tensor(self.knots, dtype=torch.float64)
        hats = [hat_features(spectrum, knots) for spectrum in (own, scaled)]
        changed = runner.run(c * batch.context.sequences.tokens)
        return _side_by_side(hats, [batch.capture.output, changed], self.window)

    def products(
        self, gram: Float[Tensor, "blocks columns columns"], curve: Float[Tensor, " knots"]
    ) -> Products:
        """What the response says of both inputs, and what the model says."""
        return _with_response(gram, curve)


@dataclass(frozen=True)
class SpliceTrial:
    """Stretches of the sequence replaced by those of another, so that its pairs have two teachers.

    Attributes:
        task: Makes tokens and pairs of the joined states.
        knots: Knots of the response.
        window: Positions that are scored.
    """

    task: Task
    knots: tuple[float, ...]
    window: tuple[int, int]
    name: str = "splice"

    def run(
        self, batch: Batch, runner: Runner, generator: torch.Generator
    ) -> Float[Tensor, "batch rows columns"]:
        """Hats of both inputs, then both predictions."""
        own = batch.context
        count, length, _ = own.sequences.observations.shape
        foreign = segments(generator, count, length, SEGMENT)
        joined = spliced(self.task, own.sequences, foreign)
        changed = Context(joined, self.task.problem(joined))
        knots = torch.tensor(self.knots, dtype=torch.float64)
        hats = [hat_features(posed.spectrum, knots) for posed in (own, changed)]
        said = [batch.capture.output, runner.run(joined.tokens)]
        return _side_by_side(hats, said, self.window)

    def products(
        self, gram: Float[Tensor, "blocks columns columns"], curve: Float[Tensor, " knots"]
    ) -> Products:
        """What the response says of both inputs, and what the model says."""
        return _with_response(gram, curve)


def _side_by_side(hats: list[Tensor], said: list[Tensor], window: tuple[int, int]) -> Tensor:
    """Columns in float32 over the positions of the window."""
    columns = [*hats, *(output[..., None].float() for output in said)]
    return torch.cat([column[:, slice(*window)] for column in columns], -1).flatten(1, 2)


def _with_response(gram: Tensor, curve: Tensor) -> Products:
    """Weights the hats of the unchanged and of the changed input by the curve."""
    weights = torch.zeros(2 * FINE + 2, 4, dtype=torch.float64)
    weights[:FINE, 0] = weights[FINE : 2 * FINE, 1] = curve
    weights[2 * FINE, 2] = weights[2 * FINE + 1, 3] = 1
    names = ("expected_clean", "expected", "clean", "changed")
    return Products(names, weights.mT @ gram @ weights)


@dataclass(frozen=True)
class SignatureStage:
    """Runs the trials.

    Attributes:
        trials: The trials.
    """

    trials: tuple[Trial, ...]
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 0

    def fit(self, batch: Batch) -> Sums:
        """Nothing is fitted."""
        return {}

    def learn(self, sums: Sums) -> None:
        """Nothing is learned: the response is that of the unchanged sequences."""

    def test(self, batch: Batch, learned: None) -> Sums:
        """Products by block; none for a predictor that cannot be run again."""
        runner = batch.capture.runner
        if runner is None:
            return {}
        batch, sums = batch.head(SHARE), {}
        for place, trial in enumerate(self.trials):
            columns = trial.run(batch, runner, _generator(batch, place))
            sums[trial.name] = batch.by_block(columns.mT @ columns)
        return sums


def _generator(batch: Batch, place: int) -> torch.Generator:
    """Seeded by the shard's own data: every shard draws otherwise, whatever the batch size."""
    start = batch.context.sequences.observations[0, 0].contiguous().view(torch.int32)
    return generator_for(place, *(int(bits) & 0xFFFFFFFF for bits in start))


def ends_of(window: tuple[int, int], count: int = 3) -> tuple[int, ...]:
    """A few positions of a window, evenly spaced in the logarithm."""
    first, last = max(window[0], 1), window[1] - 1
    places = torch.logspace(math.log10(first), math.log10(last), count).round().int()
    return tuple(sorted(set(places.tolist())))


def exponent(products: Products, scale: float, one: str, other: str) -> Statistic:
    """Log of the projection of `other` on `one`, over the log of the scale: the local degree."""
    along, square = products.product(one, other), products.product(one, one)
    return lambda weights: ((weights @ along) / (weights @ square)).log() / math.log(scale)
