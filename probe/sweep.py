"""One pass over the data feeds all stages on all views.

A stage maps a batch to sums; the sweep adds the sums up. On the fit split sums are kept in folds,
so that penalties can be chosen without another pass; on the test split they are kept in blocks of
sequences, and every interval resamples blocks. Sums are added in the order of the shards, and each
shard has its own random stream and one thread, so the bits do not depend on batch size or workers.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from threading import local
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from probe.capture import Capture
from probe.errors import InputError
from probe.models.hooked import HookedModel
from probe.problem import InContextProblem, PrefixMoments, Spectrum, prefix_moments, spectrum
from probe.sampling import generator_for
from probe.statistics import BLOCKS
from probe.tasks.base import Sequences, Task, asked_tokens, shifted
from probe.threads import one_thread

FOLDS = 4
SHARD = 256
LEAST_SEQUENCES = 4 * BLOCKS  # two of each block to fit and two to test
PILOT, FIT, TEST = 1, 2, 3  # no zeros: the seeding ignores zeros at the end of a path

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


@dataclass(frozen=True)
class Plan:
    """How many sequences, from which seed; in batches of what size, by whom, and where.

    Models run on the device; moments and fits stay on the CPU, in float64.

    Raises:
        InputError: Too few sequences for a fit, a test and their intervals.
    """

    task: Task
    sequences: int
    seed: int
    batch_size: int = SHARD
    workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Half of the sequences fit, half test; every block needs at least two of each."""
        least = LEAST_SEQUENCES
        if self.sequences < least:
            raise InputError(
                f"--sequences {self.sequences}: too few; half of them fit and half test, "
                f"and {least} are the least from which intervals can be stated"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: must lie between 0 and 2^32 - 1")
        if self.batch_size < 1 or self.workers < 1:
            raise InputError("batch size and workers must be at least 1")

    def shards(self, split: int) -> list[tuple[int, int]]:
        """(first sequence, count) of each shard; at least FOLDS shards, at most SHARD long."""
        count = self.sequences - self.sequences // 2 if split == FIT else self.sequences // 2
        number = max(FOLDS, -(-count // SHARD))
        edges = [count * i // number for i in range(number + 1)]
        return [(first, after - first) for first, after in pairwise(edges)]

    def draw(self, split: int, shard: int, count: int) -> Sequences:
        """The sequences of one shard."""
        return self.task.sample(count, generator_for(self.seed, split, shard))


@dataclass(frozen=True)
class _Job:
    split: int
    shard: int
    start: int
    count: int


class Sweep:
    """Runs stages over both splits.

    Args:
        plan: The data.
        models: Models by name; every shard is forwarded once through each.
        views: For each view, how to see a shard and the captures.
        forward: How a model is run on a batch of tokens.
        progress: Called with (shards done, shards in all).
        layouts: Tasks of models that read the plan's sequences as other tokens, by model.
    """

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, HookedModel],
        views: Mapping[str, View],
        forward: Callable[[HookedModel, Tensor, int], Capture],
        progress: Callable[[int, int], None] = lambda done, total: None,
        layouts: Mapping[str, Task] = MappingProxyType({}),
    ):
        self.plan, self.models, self.views = plan, models, views
        self.forward, self.progress, self.layouts = forward, progress, layouts
        self._local = local()
        self.clipped_share = 0.0

    def run(self, stages: tuple[Stage, ...]) -> Results:
        """Fits all stages on the fit split, then scores them on the test split.

        Where no stage fits anything, the fit split is not run.
        """
        keys = [(stage, view) for stage in dict.fromkeys(stages) for view in stage.views]
        fitting = [key for key in keys if key[0].folds]
        splits = (FIT, TEST) if fitting else (TEST,)
        fit_sums = self._reduce(FIT, fitting, {}, splits) if fitting else {}
        learned = self._learn(keys, fit_sums)
        test_sums = self._reduce(TEST, keys, learned, splits)
        return {key: Measured(learned[key], test_sums[key]) for key in keys}

    def _learn(
        self, keys: list[tuple[Stage, str]], sums: dict[tuple[Stage, str], Sums]
    ) -> dict[tuple[Stage, str], Any]:
        """What each stage makes of its fit sums, which are let go of as they are used."""
        with one_thread(), ThreadPoolExecutor(self.plan.workers) as pool:
            found = pool.map(lambda key: key[0].learn(sums.pop(key, {})), keys)
            return dict(zip(keys, found, strict=True))

    def _reduce(
        self,
        split: int,
        keys: list[tuple[Stage, str]],
        learned: Mapping[tuple[Stage, str], Any],
        splits: tuple[int, ...],
    ) -> dict[tuple[Stage, str], Sums]:
        """The sums of one split; `splits` are all that are run, of which progress tells."""
        totals: dict[tuple[Stage, str], Sums] = {key: {} for key in keys}
        jobs = [
            _Job(split, i, start, count) for i, (start, count) in enumerate(self.plan.shards(split))
        ]
        clipped = 0.0
        for done, (job, shares, results) in enumerate(self._map(jobs, keys, learned)):
            clipped += shares * job.count
            for key, sums in results.items():
                fold = job.shard % key[0].folds if split == FIT else None
                _add(totals[key], sums, fold, key[0].folds)
            self.progress(splits.index(split) * len(jobs) + done + 1, len(splits) * len(jobs))
        self.clipped_share = max(self.clipped_share, clipped / sum(job.count for job in jobs))
        return totals

    def _map(
        self,
        jobs: list[_Job],
        keys: list[tuple[Stage, str]],
        learned: Mapping[tuple[Stage, str], Any],
    ) -> Iterator[tuple[_Job, float, dict[tuple[Stage, str], Sums]]]:
        """Runs jobs on the workers; yields in the order of the shards, few at a time."""
        with one_thread(), ThreadPoolExecutor(self.plan.workers) as pool:
            for first in range(0, len(jobs), self.plan.workers):
                group = jobs[first : first + self.plan.workers]
                running = [pool.submit(self._measure, job, keys, learned) for job in group]
                for job, future in zip(group, running, strict=True):
                    yield (job, *future.result())

    @torch.no_grad()
    def _measure(
        self,
        job: _Job,
        keys: list[tuple[Stage, str]],
        learned: Mapping[tuple[Stage, str], Any],
    ) -> tuple[float, dict[tuple[Stage, str], Sums]]:
        sequences = self.plan.draw(job.split, job.shard, job.count)
        context = Context(sequences, self.plan.task.problem(sequences))
        captures = {
            name: self._seen(name, model, self._tokens(name, job, sequences))
            for name, model in self._models().items()
        }
        blocks = (job.start + torch.arange(job.count)) % BLOCKS
        for name, seen in captures.items():
            if not bool(seen.output.isfinite().all()):
                raise InputError(f"{name}: predictions that are not finite")
        batches = {
            name: Batch(*view(context, captures), blocks) for name, view in self.views.items()
        }
        if job.split == FIT:
            sums = {(stage, view): stage.fit(batches[view]) for stage, view in keys}
        else:
            sums = {
                (stage, view): stage.test(batches[view], learned[stage, view])
                for stage, view in keys
            }
        return sequences.clipped_share, sums

    def _seen(self, name: str, model: HookedModel, tokens: Tensor) -> Capture:
        """What a model did where its task asks."""
        seen = self.forward(model, tokens, self.plan.batch_size)
        return seen.at(asked_tokens(self.layouts.get(name, self.plan.task)))

    def _tokens(self, model: str, job: _Job, sequences: Sequences) -> Tensor:
        """The sequences as the model reads them."""
        if model not in self.layouts:
            return sequences.tokens
        own = replace(self.plan, task=self.layouts[model]).draw(job.split, job.shard, job.count)
        if not torch.equal(own.observations, sequences.observations):
            raise InputError(f"{model}: its task draws other sequences than {self.plan.task.name}")
        return own.tokens

    def _models(self) -> dict[str, HookedModel]:
        """The worker's own copies, since hooks of concurrent forward passes would mix."""
        if not hasattr(self._local, "models"):
            self._local.models = {
                name: deepcopy(model).to(self.plan.device) for name, model in self.models.items()
            }
        models: dict[str, HookedModel] = self._local.models
        return models


def _add(total: Sums, sums: Sums, fold: int | None, folds: int) -> None:
    """Adds the sums of a shard in place: to one fold of the fit split, or to all blocks."""
    for name, value in sums.items():
        if name not in total:
            shape = value.shape if fold is None else (folds, *value.shape)
            total[name] = torch.zeros(shape, dtype=torch.float64)
        (total[name] if fold is None else total[name][fold]).add_(value)


def previous(observations: Tensor, lag: int, length: int) -> Tensor:
    """The observation `lag` positions before each position; zeros before the start."""
    current = observations[:, :length]
    for _ in range(lag):
        current = shifted(current)
    return current
