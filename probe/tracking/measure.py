"""Every checkpoint of a series on the same sequences: its loss, its response, its layers.

Checkpoints are measured a few at a time: those few share the moments and spectra of each shard,
and what is kept of a checkpoint afterwards are sums by block, so memory does not grow with the
length of a series or with the number of sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.capture import Capture, capture
from probe.pilot import scout
from probe.pipeline import check_fit
from probe.plan import Plan
from probe.reference import MODEL, PREDICTORS, ReferenceStage
from probe.response_stage import OUTPUT, ResponseStage, response_stages
from probe.rule import Class, Thresholds, classify
from probe.scores import Reading, Score, nulls, read
from probe.stages import Context, Results, View
from probe.statistics import Interval, mean_per_sequence
from probe.sweep import Sweep
from probe.threads import one_thread
from probe.tracking.onset import Course
from probe.tracking.series import Checkpoint, Series
from probe.views import seen_as

TOGETHER = 2
JUDGED = "judged"
SPLINE = "spline"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SiteReading:
    """What explains the predictions at one site: the output, or a layer.

    Attributes:
        own: Scores on the moments of the own context.
        foreign: The best response to the moments of another sequence.
    """

    own: Reading
    foreign: Score

    @property
    def response(self) -> Score:
        """The freely fitted response to the own context."""
        return self.own.chosen(SPLINE)

    @property
    def null(self) -> Score:
        """The best null."""
        return max((s for s in self.own.scores if s.family in nulls()), key=self.own.value)

    def strength(self, weights: Float[Tensor, "draws blocks"]) -> Float[Tensor, " draws"]:
        """The share of what nulls and foreign moments leave that the response explains.

        1 - |y - response|^2 / |y - best rival|^2, and 0 where a rival explains as much; the best
        rival is chosen in each draw. The rule of the verdict asks for the same share.
        """
        rivals = [s.error for s in self.own.scores if s.family in nulls()]
        left = (weights @ torch.stack([*rivals, self.foreign.error], -1)).min(-1).values
        share = 1 - (weights @ self.response.error) / left
        return share.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


@dataclass(frozen=True)
class Measurement:
    """What was measured at one checkpoint.

    Attributes:
        step: The step.
        found: Its class by the rule.
        sites: Readings of "output", and of "decoded:l" and "readout:l" for each layer.
        losses: Summed loss by block and predictor, as in `reference.PREDICTORS`.
        sequences: Sequences by block.
    """

    step: int
    found: Class
    sites: Mapping[str, SiteReading]
    losses: Float[Tensor, "blocks predictors"]
    sequences: Float[Tensor, " blocks"]

    @property
    def output(self) -> SiteReading:
        """The reading of the output."""
        return self.sites[OUTPUT]

    def loss(self, predictor: str = PREDICTORS[MODEL]) -> Interval:
        """The loss, 1/2 mean squared norm over positions, of the model or what it is set beside."""
        losses = self.losses[:, PREDICTORS.index(predictor)]
        return mean_per_sequence(losses, self.sequences)

    def log_loss(self, weights: Float[Tensor, "draws blocks"]) -> Float[Tensor, " draws"]:
        """The natural logarithm of the model's loss."""
        return ((weights @ self.losses[:, MODEL]) / (weights @ self.sequences)).log()


@dataclass(frozen=True)
class Track:
    """A series and what was measured along it.

    Attributes:
        series: The checkpoints.
        plan: The data.
        setting: What the pilot fixed.
        measurements: One per distinct checkpoint, by step.
    """

    series: Series
    plan: Plan
    setting: Setting
    measurements: tuple[Measurement, ...]

    def strength(self, site: str) -> Course:
        """The strength of the response at a site, over the steps."""
        statistics = [m.sites[site].strength for m in self.measurements]
        return Course.of([m.step for m in self.measurements], statistics)

    def log_loss(self) -> Course:
        """The logarithm of the loss, over the steps."""
        steps = [m.step for m in self.measurements]
        return Course.of(steps, [m.log_loss for m in self.measurements])


def measure(series: Series, plan: Plan, progress: Progress = lambda done, total: None) -> Track:
    """Measures every distinct checkpoint.

    Raises:
        InputError: The task does not fit the models, or outputs are not finite.
    """
    points = series.distinct
    for point in points:
        check_fit(point.subject, plan)
    groups = [points[i : i + TOGETHER] for i in range(0, len(points), TOGETHER)]
    with one_thread():
        setting = scout(plan, points[0].subject.model.layers)
        measured: list[Measurement] = []
        for at, group in enumerate(groups):
            told = partial(_told, progress, at, len(groups))
            measured += _measure_group(group, plan, setting, told)
    return Track(series, plan, setting, tuple(measured))


def _told(progress: Progress, at: int, groups: int, done: int, total: int) -> None:
    progress(at * total + done, groups * total)


@dataclass(frozen=True)
class _Stages:
    own: ResponseStage
    foreign: ResponseStage
    losses: ReferenceStage


def _name(step: int) -> str:
    return f"step {step}"


def _foreign(step: int) -> str:
    return f"step {step}, moments of another sequence"


def _stages(setting: Setting, steps: Sequence[int]) -> _Stages:
    """All layers on the own and on foreign moments; the verdict's windows, nulls and bounds."""
    own, _, swapped = response_stages(setting)
    names, foreign = tuple(map(_name, steps)), tuple(map(_foreign, steps))
    return _Stages(
        replace(own, views=names, reads=(JUDGED,)),
        replace(swapped, views=foreign, reads=(JUDGED,), layered=True, share=1.0, curves=(SPLINE,)),
        ReferenceStage(setting.ridge, views=names),
    )


def _measure_group(
    group: Sequence[Checkpoint], plan: Plan, setting: Setting, progress: Progress
) -> list[Measurement]:
    stages = _stages(setting, [point.step for point in group])
    views: dict[str, View] = {}
    for point in group:
        views[_name(point.step)] = seen_as(_name(point.step))
        views[_foreign(point.step)] = partial(_seen_elsewhere, _name(point.step))
    models = {_name(point.step): point.subject.model for point in group}
    results = Sweep(plan, models, views, capture, progress).run(
        (stages.own, stages.foreign, stages.losses)
    )
    return [_read(stages, results, point.step) for point in group]


def _seen_elsewhere(
    name: str, context: Context, captures: Mapping[str, Capture]
) -> tuple[Context, Capture]:
    return context.swapped, captures[name]


def _read(stages: _Stages, results: Results, step: int) -> Measurement:
    own, foreign = results[stages.own, _name(step)], results[stages.foreign, _foreign(step)]
    losses = results[stages.losses, _name(step)].sums
    sites = {
        site: SiteReading(
            read(stages.own, own, site, JUDGED),
            read(stages.foreign, foreign, site, JUDGED).chosen(SPLINE),
        )
        for site in own.learned.sites
    }
    return Measurement(
        step,
        classify(sites[OUTPUT].own, Thresholds.load()),
        sites,
        losses["losses"].mean(1),
        losses["sequences"],
    )
