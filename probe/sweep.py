"""One pass over the data feeds all stages on all views.

An engine measures the leases of a split, wherever it does; here their sums are added up in order.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from probe.accumulators import About
from probe.allocator import release_freed_memory
from probe.capture import Forward
from probe.engines.base import Engine, Gathered, Key, Order, Setup, Work, Worker, add
from probe.engines.threads import Threads
from probe.journal import Forgetful, Journal
from probe.models.hooked import HookedModel
from probe.plan import FIT, NAMES, TEST, Lease, Plan
from probe.stages import Measured, Results, Stage, Sums, View
from probe.tasks.base import Task
from probe.threads import one_thread

MAIN = "main"
TRIM = 8  # leases after which the holes between blocks in use are given back


@dataclass(frozen=True)
class Means:
    """By what means sweeps are run: who measures, and what remembers."""

    engine: Engine = field(default_factory=Threads)
    journal: Journal = field(default_factory=Forgetful)


class Sweep:
    """Runs stages over both splits.

    Args:
        plan: The data.
        models: Models by name; every shard is forwarded once through each.
        views: For each view, how to see a shard and the captures.
        forward: How a model is run on a batch of tokens.
        progress: Called with (shards done, shards in all).
        layouts: Tasks of models that read the plan's sequences as other tokens, by model.
        means: By what means.
        setup: Makes the same worker in other processes; None where models were made here.
        name: Of this sweep among those of a run.
    """

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, HookedModel],
        views: Mapping[str, View],
        forward: Forward,
        progress: Callable[[int, int], None] = lambda done, total: None,
        layouts: Mapping[str, Task] = MappingProxyType({}),
        means: Means | None = None,
        setup: Setup | None = None,
        name: str = MAIN,
    ):
        self.plan, self.progress, self.means = plan, progress, means or Means()
        self.work = Work(name, Worker(plan, models, views, forward, layouts), setup)
        self.clipped_share = 0.0
        self.batch_size = plan.batch_size

    def run(self, stages: tuple[Stage, ...]) -> Results:
        """Fits all stages on the fit split, then scores them on the test split.

        Where no stage fits anything, the fit split is not run.
        """
        keys = [(stage, view) for stage in dict.fromkeys(stages) for view in stage.views]
        fitting = [key for key in keys if key[0].folds]
        splits = (FIT, TEST) if fitting else (TEST,)
        fit_sums = self._reduce(FIT, Order(tuple(fitting)), splits) if fitting else ()
        learned = self._learn(keys, dict(zip(fitting, fit_sums, strict=True)))
        order = Order(tuple(keys), tuple(learned[key] for key in keys))
        test_sums = self._reduce(TEST, order, splits)
        return {
            key: Measured(learned[key], sums) for key, sums in zip(keys, test_sums, strict=True)
        }

    def _learn(self, keys: list[Key], sums: dict[Key, Sums]) -> dict[Key, Any]:
        """What each stage makes of its fit sums, which are let go of as they are used."""
        with one_thread(), ThreadPoolExecutor(self.plan.workers) as pool:
            found = pool.map(lambda key: key[0].learn(sums.pop(key, {})), keys)
            return dict(zip(keys, found, strict=True))

    def _reduce(self, split: int, order: Order, splits: tuple[int, ...]) -> tuple[Sums, ...]:
        """The sums of one split; `splits` are all that are run, of which progress tells."""
        engine, journal = self.means.engine, self.means.journal
        leases = self.plan.leases(split)
        name = kept_as(self.work.name, split)
        total = Total.begun(order, self.plan, journal.sums(name))
        before, all_ = splits.index(split) * len(leases), len(splits) * len(leases)
        left = leases[total.leases :]
        for gathered in engine.gather(self.work, left, order) if left else ():
            total.add(leases[total.leases], order, gathered)
            del gathered  # else it is held while the next one is measured
            if total.leases % TRIM == 0:
                release_freed_memory()
            journal.keep(name, total.sums, total.about(), total.leases == len(leases))
            self.progress(before + total.leases, all_)
        count = sum(lease.count for lease in leases)
        self.clipped_share = max(self.clipped_share, total.clipped / count)
        self.batch_size = min(self.batch_size, total.batch_size)
        return total.sums


def kept_as(sweep: str, split: int) -> str:
    """How a journal calls the sums of a split."""
    return f"{sweep}-{NAMES[split]}"


@dataclass
class Total:
    """The sums of a split so far: those of its first leases."""

    sums: tuple[Sums, ...]
    leases: int
    clipped: float
    batch_size: int

    @classmethod
    def begun(
        cls,
        order: Order,
        plan: Plan,
        kept: "tuple[Sequence[Mapping[str, torch.Tensor]], About] | None",
    ) -> "Total":
        """What was kept of an earlier process, or nothing yet."""
        if kept is None:
            return cls(tuple({} for _ in order.keys), 0, 0.0, plan.batch_size)
        sums, about = kept
        size = min(plan.batch_size, int(about["batch_size"]))
        return cls(tuple(dict(one) for one in sums), int(about["leases"]), about["clipped"], size)

    def about(self) -> About:
        """What is kept beside the sums."""
        numbers = self.leases, self.clipped, self.batch_size
        return dict(zip(("leases", "clipped", "batch_size"), numbers, strict=True))

    def add(self, lease: Lease, order: Order, gathered: Gathered) -> None:
        """Adds the next lease: to one fold of the fit split, or to all blocks."""
        for (stage, _), total, sums in zip(order.keys, self.sums, gathered.sums, strict=True):
            if lease.split == FIT:
                _add_to_fold(total, sums, lease.index % stage.folds, stage.folds)
            else:
                add(total, sums)
        self.leases += 1
        self.clipped += gathered.clipped
        self.batch_size = min(self.batch_size, gathered.batch_size)


def _add_to_fold(total: Sums, sums: Sums, fold: int, folds: int) -> None:
    for name, value in sums.items():
        if name not in total:
            total[name] = torch.zeros(folds, *value.shape, dtype=torch.float64)
        total[name][fold].add_(value)
