"""Losses of a learner by the number of pairs that it has seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import capture_output
from probe.closeness import half_squares
from probe.models.transformer import SequenceTransformer
from probe.plan import TEST, Plan
from probe.statistics import BLOCKS, Interval, bootstrap_interval, mean_per_sequence
from probe.tasks.base import Sequences
from probe.tasks.few_shot import FewShot

Learner = Callable[[FewShot, Sequences], Tensor]
"""From a sample of few-shot pairs to a prediction of each y, (batch, pairs, d)."""


@dataclass(frozen=True)
class LossByPair:
    """Sums over the sequences of each block.

    Attributes:
        total: 1/2 |prediction - y|^2, at the query that has so many pairs before it.
        count: Number of sequences.
    """

    total: Float[Tensor, "blocks pairs"]
    count: Float[Tensor, " blocks"]

    def mean(self) -> Float[Tensor, " pairs"]:
        """Mean over all sequences."""
        return self.total.sum(0) / self.count.sum()

    def standard_error(self) -> Float[Tensor, " pairs"]:
        """Of the mean, from the spread of the means of blocks."""
        return (self.total / self.count[:, None]).std(0) / len(self.count) ** 0.5

    def over(self, pairs: slice) -> Float[Tensor, " blocks"]:
        """Mean over some numbers of pairs."""
        return self.total[:, pairs].mean(1)


def frozen(model: SequenceTransformer, batch_size: int) -> Learner:
    """What a model predicts where the x of a pair is its last token."""

    def predict(task: FewShot, sequences: Sequences) -> Tensor:
        return capture_output(model, sequences.tokens, batch_size).output[:, task.asked]

    return predict


def nothing(task: FewShot, sequences: Sequences) -> Tensor:
    """Predicts zero: the best without pairs, as every W is as likely as -W."""
    return torch.zeros_like(task.split(sequences)[1])


def squared_errors(
    learner: Learner, task: FewShot, sequences: Sequences
) -> Float[Tensor, "batch pairs"]:
    """1/2 |prediction - y|^2 for every pair, in float64."""
    return half_squares(learner(task, sequences), task.split(sequences)[1])


def losses(learner: Learner, task: FewShot, plan: Plan) -> LossByPair:
    """Losses on the test sequences of a plan; the same pairs in every layout of a task."""
    total = torch.zeros(BLOCKS, task.pairs, dtype=torch.float64)
    count = torch.zeros(BLOCKS, dtype=torch.float64)
    for shard, (start, size) in enumerate(plan.shards(TEST)):
        sequences = drawn(task, plan, TEST, shard, size)
        blocks = (start + torch.arange(size)) % BLOCKS
        total.index_add_(0, blocks, squared_errors(learner, task, sequences))
        count.index_add_(0, blocks, torch.ones(size, dtype=torch.float64))
    return LossByPair(total, count)


def drawn(task: FewShot, plan: Plan, split: int, shard: int, count: int) -> Sequences:
    """The sequences of a shard, of another task than the plan's."""
    return replace(plan, task=task).draw(split, shard, count)


def mean_over(one: LossByPair, pairs: slice) -> Interval:
    """Mean loss over some numbers of pairs."""
    return mean_per_sequence(one.over(pairs), one.count)


def excess(one: LossByPair, other: LossByPair, pairs: slice) -> Interval:
    """Loss of one minus loss of the other, paired by sequence."""
    return mean_per_sequence(one.over(pairs) - other.over(pairs), one.count)


def share_gained(one: LossByPair, best: LossByPair, none: LossByPair, pairs: slice) -> Interval:
    """(none - one) / (none - best): the share of what the best learner gains from the pairs."""
    gained = none.over(pairs) - one.over(pairs)
    offered = none.over(pairs) - best.over(pairs)
    return bootstrap_interval(lambda weights: (weights @ gained) / (weights @ offered))


def share_removed(one: LossByPair, bare: LossByPair, best: LossByPair, pairs: slice) -> Interval:
    """1 - (one - best) / (bare - best): the share of an excess that tuned tokens remove."""
    left, whole = one.over(pairs) - best.over(pairs), bare.over(pairs) - best.over(pairs)
    return bootstrap_interval(lambda weights: 1 - (weights @ left) / (weights @ whole))


def late_over_early(one: LossByPair, early: slice, late: slice) -> Interval:
    """Loss after many pairs over the loss after few."""
    few, many = one.over(early), one.over(late)
    return bootstrap_interval(lambda weights: (weights @ many) / (weights @ few))


def pairs_to_recover(
    one: LossByPair, best: LossByPair, none: LossByPair, switch: int, tolerance: float
) -> Interval:
    """Pairs of the new task after which the excess over the best learner stays small.

    Small is at most `tolerance` of the loss of predicting nothing. As many pairs as were shown
    means that it did not become small.
    """
    gap = (one.total - best.total - tolerance * none.total)[:, switch:]
    after = torch.arange(1, gap.shape[1] + 1, dtype=torch.float64)

    def recovered(weights: Tensor) -> Tensor:
        return torch.where(weights @ gap > 0, after, 0.0).amax(-1)

    return bootstrap_interval(recovered)
