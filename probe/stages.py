"""What the sweep hands to a measurement, and what a measurement is.

A stage maps a batch to sums; the sweep adds the sums up. On the fit split sums are kept in folds,
so that penalties can be chosen without another pass; on the test split they are kept in blocks of
sequences, and every interval resamples blocks.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from probe.capture import Capture
from probe.problem import InContextProblem, PrefixMoments, Spectrum, prefix_moments, spectrum
from probe.statistics import BLOCKS
from probe.tasks.base import Sequences, shifted

Sums = dict[str, Tensor]
Kept = TypeVar("Kept")


class Context:
    """A sample and what follows from it; computed at most once, shared by all stages and views."""

    def __init__(self, sequences: Sequences, problem: InContextProblem):
        self.sequences, self.problem = sequences, problem
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], Kept]) -> Kept:
        """What `compute` gave when `key` was first asked for; stages share their work by it."""
        if key not in self._kept:
            self._kept[key] = compute()
        kept: Kept = self._kept[key]
        return kept

    @cached_property
    def moments(self) -> PrefixMoments:
        """G_t and C_t."""
        return prefix_moments(self.problem)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigendecomposition of every G_t with the queries in its basis."""
        return spectrum(self.moments, self.problem.queries)

    @cached_property
    def swapped(self) -> "Context":
        """The pairs of another sequence under the own query; needs no new eigendecomposition."""
        swapped = Context(self.sequences, self.problem.with_swapped_context())
        swapped.moments = _rolled(self.moments)
        swapped.spectrum = _rolled(self.spectrum).of_queries(self.problem.queries)
        return swapped

    def head(self, count: int) -> "Context":
        """The first `count` sequences; one for all who ask for as many."""
        return self.once(("head", count), lambda: self._cut(count))

    def _cut(self, count: int) -> "Context":
        problem = _each(self.problem, lambda tensor: tensor[:count])
        head = Context(_each(self.sequences, lambda tensor: tensor[:count]), problem)
        head.moments = _each(self.moments, lambda tensor: tensor[:count])
        head.spectrum = _each(self.spectrum, lambda tensor: tensor[:count])
        return head

    @cached_property
    def another(self) -> "Context":
        """Another sequence altogether."""
        another = Context(_rolled(self.sequences), self.problem.of_another_sequence())
        another.moments, another.spectrum = _rolled(self.moments), _rolled(self.spectrum)
        return another


Sample = TypeVar("Sample", Sequences, InContextProblem, PrefixMoments, Spectrum)


def _each(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    """The sample with every tensor changed."""
    fields = vars(sample).items()
    tensors: Any = {name: change(t) for name, t in fields if isinstance(t, Tensor)}
    return replace(sample, **tensors)


def _rolled(sample: Sample) -> Sample:
    """The sample with every tensor belonging to the sequence before."""
    return _each(sample, lambda tensor: tensor.roll(1, 0))


@dataclass(frozen=True)
class Batch:
    """What a stage sees: one shard through one view.

    Attributes:
        context: The problem and what follows from it.
        capture: What the view's model did.
        blocks: The block of each sequence.
    """

    context: Context
    capture: Capture
    blocks: Int[Tensor, " batch"]

    def head(self, share: float) -> "Batch":
        """The first sequences of the shard, for what needs no more."""
        count = max(1, round(share * len(self.blocks)))
        seen = self.capture
        capture = Capture(
            seen.output[:count],
            seen.layers[:, :count],
            seen.updates[:, :count],
            seen.readouts[:, :count],
            seen.runner,
        )
        return Batch(self.context.head(count), capture, self.blocks[:count])

    def by_block(self, per_sequence: Tensor) -> Tensor:
        """Sums a quantity of shape (batch, ...) over the sequences of each block, in float64."""
        sums = torch.zeros(BLOCKS, *per_sequence.shape[1:], dtype=torch.float64)
        return sums.index_add_(0, self.blocks, per_sequence.double())


@runtime_checkable
class Stage(Protocol):
    """One measurement. Frozen, and equal to another stage if it measures the same: run once."""

    @property
    def views(self) -> tuple[str, ...]:
        """The views that it runs on."""

    @property
    def folds(self) -> int:
        """The folds of fit sums that it wants kept; 0: it fits nothing, and is not asked to."""

    def fit(self, batch: Batch) -> Sums:
        """Sums over a shard of the fit split, of fixed shapes."""

    def learn(self, sums: Sums) -> Any:
        """A small frozen result from fit sums, which have a leading axis of folds."""

    def test(self, batch: Batch, learned: Any) -> Sums:
        """Sums over a shard of the test split, with a leading axis of BLOCKS."""


@dataclass(frozen=True)
class Measured:
    """What a stage learned on the fit split, and its test sums by block."""

    learned: Any
    sums: Sums


View = Callable[[Context, Mapping[str, Capture]], tuple[Context, Capture]]
Results = Mapping[tuple[Stage, str], Measured]


def previous(observations: Tensor, lag: int, length: int) -> Tensor:
    """The observation `lag` positions before each position; zeros before the start."""
    current = observations[:, :length]
    for _ in range(lag):
        current = shifted(current)
    return current
