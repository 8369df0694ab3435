"""Models beside one of them, on the same test sequences: losses, and how far outputs agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Capture, capture_output, predictor_only
from probe.models.hooked import HookedModel
from probe.plan import Plan
from probe.stages import Batch, Context, Sums, View
from probe.statistics import Interval, mean_per_sequence, share_explained
from probe.sweep import Sweep
from probe.views import SUBJECT, seen_as

CHANGE = "change to "


@dataclass(frozen=True)
class LossStage:
    """Loss of every view by position, and the energy of its predictions."""

    views: tuple[str, ...]
    folds: int = 0

    def fit(self, batch: Batch) -> Sums:
        """Nothing is fitted."""
        return {}

    def learn(self, sums: Sums) -> None:
        """Nothing is fitted."""

    def test(self, batch: Batch, learned: None) -> Sums:
        """Sums by block."""
        output = batch.capture.output
        return {
            "loss": batch.by_block(half_squares(output, batch.context.problem.targets)),
            "energy": batch.by_block(output.double().square().sum((1, 2))),
            "sequences": batch.by_block(torch.ones(len(output))),
        }


def half_squares(
    predictions: Float[Tensor, "batch time d_v"], targets: Float[Tensor, "batch time d_v"]
) -> Float[Tensor, "batch time"]:
    """1/2 |prediction - target|^2 at every position, in float64."""
    return 0.5 * (predictions.double() - targets.double()).square().sum(-1)


@dataclass(frozen=True)
class Closeness:
    """A model beside the subject.

    Attributes:
        loss: Its loss.
        ratio: Its loss over that of the subject, paired.
        agreement: R^2 of the subject's predictions: 1 - sum |subject - model|^2 / sum |subject|^2.
    """

    loss: Interval
    ratio: Interval
    agreement: Interval


def compare(
    models: Mapping[str, HookedModel],
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Closeness]:
    """All models beside the one called SUBJECT, on the test split of the plan."""
    views: dict[str, View] = {name: seen_as(name) for name in models}
    views |= {CHANGE + name: change_to(name) for name in models}
    stage = LossStage(tuple(views))
    results = Sweep(plan, models, views, capture_output, progress).run((stage,))
    sums = {view: results[stage, view].sums for view in views}
    own = sums[SUBJECT]
    found = {}
    for name in models:
        loss = sums[name]["loss"]
        found[name] = Closeness(
            loss=mean_per_sequence(loss.mean(1), own["sequences"]),
            ratio=ratio(loss, own["loss"]),
            agreement=share_explained(sums[CHANGE + name]["energy"], own["energy"]),
        )
    return found


def ratio(new: Float[Tensor, "blocks time"], old: Float[Tensor, "blocks time"]) -> Interval:
    """sum(new) / sum(old), paired."""
    lost = share_explained(new.sum(1), old.sum(1))
    return Interval(1 - lost.value, 1 - lost.hi, 1 - lost.lo)


def change_to(name: str) -> View:
    """What it does to the subject's predictions to take another model."""

    def view(context: Context, captures: Mapping[str, Capture]) -> tuple[Context, Capture]:
        return context, predictor_only(captures[name].output - captures[SUBJECT].output)

    return view
