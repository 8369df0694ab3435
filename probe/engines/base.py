"""What engines share out, and what they bring back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from probe.capture import Capture, Forward
from probe.errors import InputError
from probe.halving import halving, refusing_when_full
from probe.models.hooked import HookedModel
from probe.plan import FIT, Lease, Plan, Shard
from probe.stages import Batch, Context, Stage, Sums, View
from probe.statistics import BLOCKS
from probe.tasks.base import Sequences, Task, asked_tokens

Key = tuple[Stage, str]  # a stage on a view
Found = TypeVar("Found")


@dataclass(frozen=True)
class Gathered:
    """What a lease came to.

    Attributes:
        sums: The sums of each key, in the order of the keys.
        clipped: Clipped share of its sequences, times their number.
        batch_size: Sequences of a forward pass; fewer than asked where memory ran out.
    """

    sums: tuple[Sums, ...]
    clipped: float
    batch_size: int


@dataclass(frozen=True)
class Order:
    """What is to be measured of every lease: the keys, and what each stage learned if it tests."""

    keys: tuple[Key, ...]
    learned: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Worker:
    """Draws the sequences of a lease, runs the models on them, and adds up what the stages measure.

    Attributes:
        plan: The data.
        models: Models by name; every shard is forwarded once through each.
        views: For each view, how to see a shard and the captures.
        forward: How a model is run on a batch of tokens.
        layouts: Tasks of models that read the plan's sequences as other tokens, by model.
    """

    plan: Plan
    models: Mapping[str, HookedModel]
    views: Mapping[str, View]
    forward: Forward
    layouts: Mapping[str, Task] = field(default_factory=dict)

    def copy(self) -> "Worker":
        """A worker with models of its own, since hooks of concurrent forward passes would mix."""
        models = {n: deepcopy(model).to(self.plan.device) for n, model in self.models.items()}
        return replace(self, models=models)

    @torch.no_grad()
    def measure(self, lease: Lease, order: Order) -> Gathered:
        """The sums over a lease.

        Raises:
            InputError: Predictions are not finite, or memory ran out.
        """
        totals: tuple[Sums, ...] = tuple({} for _ in order.keys)
        clipped, batch_size = 0.0, self.plan.batch_size
        for index, shard in enumerate(lease.shards, start=lease.first):
            of_shard, fitted = self._add_shard(lease.split, index, shard, order, totals)
            clipped, batch_size = clipped + of_shard, min(batch_size, fitted)
        return Gathered(totals, clipped, batch_size)

    def _add_shard(
        self, split: int, index: int, shard: Shard, order: Order, totals: tuple[Sums, ...]
    ) -> tuple[float, int]:
        """Adds a shard's sums; what it drew and saw is let go of before the next one is drawn.

        Returns:
            Its clipped share times its size, and the batch size that fitted.
        """
        sequences = self.plan.draw(split, index, shard.size)
        captures, fitted = self._run(split, index, sequences)
        batches = self._seen(shard, sequences, captures)
        for at, (stage, view) in enumerate(order.keys):
            with refusing_when_full(type(stage).__name__):
                if split == FIT:
                    add(totals[at], stage.fit(batches[view]))
                else:
                    add(totals[at], stage.test(batches[view], order.learned[at]))
        return sequences.clipped_share * shard.size, fitted

    def _seen(
        self, shard: Shard, sequences: Sequences, captures: Mapping[str, Capture]
    ) -> dict[str, Batch]:
        """What every view shows of a shard."""
        context = Context(sequences, self.plan.task.problem(sequences))
        blocks = (shard.start + torch.arange(shard.size)) % BLOCKS
        views = self.views.items()
        return {name: Batch(*view(context, captures), blocks) for name, view in views}

    def _run(self, split: int, shard: int, sequences: Sequences) -> tuple[dict[str, Capture], int]:
        """What the models did where their tasks ask, and the batch size that fitted for all."""
        captures, batch_size = {}, self.plan.batch_size
        for name, model in self.models.items():
            forward = partial(self.forward, model, self._tokens(name, split, shard, sequences))
            seen, batch_size = halving(forward, batch_size)
            if not bool(seen.output.isfinite().all()):
                raise InputError(f"{name}: predictions that are not finite")
            captures[name] = seen.at(asked_tokens(self.layouts.get(name, self.plan.task)))
        return captures, batch_size

    def _tokens(self, model: str, split: int, shard: int, sequences: Sequences) -> Tensor:
        """The sequences as the model reads them."""
        if model not in self.layouts:
            return sequences.tokens
        plan = replace(self.plan, task=self.layouts[model])
        own = plan.draw(split, shard, len(sequences.tokens))
        if not torch.equal(own.observations, sequences.observations):
            raise InputError(f"{model}: its task draws other sequences than {self.plan.task.name}")
        return own.tokens


def add(totals: Sums, sums: Sums) -> None:
    """Adds sums in place, in float64."""
    for name, value in sums.items():
        if name not in totals:
            totals[name] = value.to(torch.float64, copy=True)
        else:
            totals[name].add_(value)


@runtime_checkable
class Setup(Protocol):
    """Makes the same worker in another process; it travels there, and models do not.

    Frozen, so that a process that has made the worker knows it again.
    """

    def __hash__(self) -> int:
        """By what it is made from."""

    def worker(self, device: str) -> Worker:
        """A worker whose models are on a device of its own."""


@dataclass(frozen=True)
class Work:
    """A sweep's work: the worker at hand, and how to make it elsewhere where that is known.

    Attributes:
        name: Of the sweep, within a run.
        worker: The worker.
        setup: Makes it in another process; None where models were made here.
    """

    name: str
    worker: Worker
    setup: Setup | None = None


@runtime_checkable
class Engine(Protocol):
    """Measures leases."""

    @property
    def name(self) -> str:
        """How a report calls it."""

    def workers(self, plan: Plan) -> int:
        """How many leases are measured at once."""

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """What the leases came to, in their order.

        Raises:
            InputError: They cannot be measured.
        """


def in_order(
    submit: Callable[[Lease], "Future[Found]"], leases: Iterable[Lease], ahead: int
) -> Iterator[Found]:
    """Results in the order of the leases, of which no more than `ahead` are under way at once."""
    under_way: deque[Future[Found]] = deque()
    try:
        for lease in leases:
            under_way.append(submit(lease))
            if len(under_way) == ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
