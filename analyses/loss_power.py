"""Which power of the residual do the predictions minimise: squares, or another?

Hypothesis: the in-context objective is a sum of squares. Alternatives: absolute residuals, and the
powers 1.5 and 3, each with its own penalty.
Test statistic: the held-out R^2 of the minimum of each power, or of one gradient step on it, less
that of the best, paired by block; on the task itself, where minima hardly differ, and on
sequences driven by noise, where they do. A law counts where the model's predictions are explained.
Refuted if another power explains more than squares do. Takes minutes: every prediction of another
power is an iteration of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch

from probe.analysis import Bench
from probe.capture import capture_output
from probe.checkpoints.base import Subject
from probe.findings import Finding, LineChart, Metric, Outcome, Series, Table
from probe.loss_power import KIND, Noisy, PowerReading, PowerStage, louder
from probe.rule import Thresholds
from probe.sweep import Sweep
from probe.tasks.base import Task
from probe.views import PLANTED, SUBJECT, all_views

SEQUENCES = 256
PLACES = 4
APART = 3  # positions between places
LAMBDAS = 7
SQUARES = 2.0
OWN, NOISY = "own law", "driven by noise"


@dataclass(frozen=True)
class LossPower:
    """Compares powers on the task and on a louder one."""

    name: str = "loss_power"
    place: int = 101
    question: str = "Which power of the residual do the predictions minimise?"
    thorough: bool = True

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Powers are told apart by noise."""
        return None if isinstance(task, Noisy) else "the task has no noise that could be raised"

    def run(self, bench: Bench) -> Finding:
        """Supports if squares, and no other power, explain the predictions."""
        laws = {OWN: bench.setting.task, NOISY: louder(bench.setting.task)}
        readings = {
            (law, view): reading
            for law, task in laws.items()
            for view, reading in _readings(bench, task).items()
        }
        return conclude(self, Readings(readings, Thresholds.load()))


@dataclass(frozen=True)
class Readings:
    """Readings by law and view.

    Attributes:
        found: The readings.
        thresholds: What counts as explained, and the margin.
    """

    found: dict[tuple[str, str], PowerReading]
    thresholds: Thresholds

    @property
    def telling(self) -> tuple[str, ...]:
        """Laws under which the model is explained, the one that leaves fewest powers first."""
        laws = [law for law, view in self.found if view == SUBJECT]
        explained = [law for law in laws if self._explained(self.found[law, SUBJECT])]
        return tuple(sorted(explained, key=lambda law: len(self._alike(law))))

    @property
    def alike(self) -> list[float]:
        """Powers that no telling law rejects; none if the laws disagree."""
        sets = [set(self._alike(law)) for law in self.telling]
        return sorted(set.intersection(*sets)) if sets else []

    @property
    def law(self) -> str:
        """The law whose numbers are quoted."""
        return self.telling[0] if self.telling else next(iter(self.found))[0]

    def _alike(self, law: str) -> list[float]:
        return self.found[law, SUBJECT].alike(self.thresholds.delta)

    def _explained(self, reading: PowerReading) -> bool:
        return reading.r2(reading.best).value >= self.thresholds.explained


def stage_of(task: Task, low: float, high: float) -> PowerStage:
    """Places from where a few more pairs than dimensions are seen.

    Args:
        task: The task.
        low: The smallest lambda.
        high: The largest.
    """
    first, last = task.windows.judged
    start = max(first, min(first + task.width_out, last - APART * PLACES))
    places = range(start, last, APART)[:PLACES]
    ends = torch.tensor([low, high], dtype=torch.float64).log10().tolist()
    ridges = torch.logspace(ends[0], ends[1], LAMBDAS, dtype=torch.float64)
    return PowerStage(tuple(places), tuple(ridges.tolist()))


def _readings(bench: Bench, task: Task) -> dict[str, PowerReading]:
    knots = bench.setting.knots
    stage = stage_of(task, min(knots[0], bench.setting.ridge) / 3, knots[-1])
    plan = replace(bench.plan, task=task, sequences=min(bench.plan.sequences, SEQUENCES))
    views = all_views(bench.setting.ridge)
    known = {view: views[view] for view in stage.views}
    models = {SUBJECT: bench.subject.model}
    results = Sweep(plan, models, known, capture_output, bench.progress).run((stage,))
    return {view: PowerReading.of(stage, results[stage, view]) for view in stage.views}


def conclude(analysis: LossPower, readings: Readings) -> Finding:
    """The finding from readings."""
    model, planted = (readings.found[readings.law, view] for view in (SUBJECT, PLANTED))
    return Finding(
        analysis=analysis.name,
        question=analysis.question,
        outcome=_outcome(readings),
        statement=_statement(readings, model),
        metrics=_metrics(model, f"the model, {readings.law}"),
        controls={
            f"{name} (planted mesa-layer)": metric
            for name, metric in _metrics(planted, "a mesa-layer, which minimises squares").items()
        },
        does_not_show=(
            "That another power would not do as well where all have nearly the same minimum: "
            "sequences driven by noise, which part the minima, lie outside the training law."
        ),
        tables=(Table(analysis.name, pd.DataFrame(list(_rows(readings)))),),
        figures=(_chart(readings),),
        bearing=_bearing(readings.alike),
    )


def _outcome(readings: Readings) -> Outcome:
    if len(readings.alike) != 1:
        return "inconclusive"
    return "supports" if readings.alike == [SQUARES] else "contradicts"


def _statement(readings: Readings, model: PowerReading) -> str:
    best, kind = model.r2(model.best).value, KIND[model.kind]
    if not readings.telling:
        return (
            "Cannot tell: neither a minimum nor a step of any power explains the predictions (the "
            f"best, the {kind} of p = {model.powers[model.best]:g}, R^2 {best:.2f})."
        )
    where = f"{readings.law}: R^2 {best:.3f}"
    free = f"fitted freely, p = {model.fitted.value:.2f} [{model.fitted.lo:.2f}, "
    free += f"{model.fitted.hi:.2f}]"
    if len(readings.alike) != 1:
        names = ", ".join(f"{one:g}" for one in readings.alike) or "no power under both laws"
        worse = [f"{one:g}" for one in model.powers if one not in readings.alike]
        names += f", not for {', '.join(worse)}" if readings.alike and worse else ""
        return (
            f"Cannot tell: the {kind} of sum_j |v_j - W k_j|^p explains the predictions alike for "
            f"p = {names} ({where}; {free})."
        )
    lost = min(model.deficit(i).value for i in range(len(model.powers)) if i != model.best)
    return (
        f"The {kind} of sum_j |v_j - W k_j|^p explains the predictions with p = "
        f"{readings.alike[0]:g} ({where}), every other power {lost:.3f} or more worse; {free}."
    )


def _bearing(alike: list[float]) -> str:
    if len(alike) != 1:
        return ""
    if alike == [SQUARES]:
        return "What it minimises is a sum of squares: other powers of the residual fit worse."
    return f"What it minimises is no sum of squares: the power {alike[0]:g} fits better."


def _metrics(reading: PowerReading, whose: str) -> dict[str, Metric]:
    metrics = {
        f"r2 p = {power:g}": Metric.of(
            reading.r2(place), f"{whose}: R^2 of the {KIND[reading.kind]} of power {power:g}"
        )
        for place, power in enumerate(reading.powers)
    }
    return metrics | {"power": Metric.of(reading.fitted, f"{whose}: the power of least error")}


def _rows(readings: Readings) -> Iterator[dict[str, object]]:
    for (law, view), reading in readings.found.items():
        for place, power in enumerate(reading.powers):
            r2, deficit = reading.r2(place), reading.deficit(place)
            yield {
                "law": law,
                "predictor": view,
                "kind": KIND[reading.kind],
                "power": power,
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
                "below_best": deficit.value,
                "below_best_hi": deficit.hi,
            }


def _chart(readings: Readings) -> LineChart:
    series = []
    for (law, view), reading in readings.found.items():
        places = range(len(reading.powers))
        below = [reading.deficit(place) for place in places]
        y, lo, hi = ([-getattr(one, end) for one in below] for end in ("value", "hi", "lo"))
        powers = list(reading.powers)
        if view == SUBJECT:
            series.append(Series(f"model, {law}", powers, y, lo, hi))
        else:
            series.append(Series(f"mesa-layer, {law}", powers, y, lo, hi, "control"))
    return LineChart(
        "loss_power",
        "Which power of the residual is minimised?",
        "Held-out R^2 of the minimum of each power, or of one step on it, less that of the best, "
        "with 95 % intervals. The planted mesa-layer minimises squares. Without noise all powers "
        "share a minimum, so the task's own law hardly tells them apart.",
        "power p",
        "R^2 less that of the best",
        tuple(series),
    )


NAMED = {"loss_power": LossPower()}
