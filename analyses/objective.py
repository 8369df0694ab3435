"""Which least-squares objective do the predictions solve?

Hypothesis: the plain sum over all pairs, each of equal weight, in the coordinates of the tokens.
Alternatives: pairs that fade with their age by a factor gamma per position, and keys and queries
that a fixed matrix has changed, here the whitening of the task's keys.
Test statistic: the held-out R^2 that the response of the best alternative, chosen on the fit
split, gains over that of plain least squares, paired by block.
Refuted if one gains more than the margin delta. Costs one eigendecomposition per objective at every
third position of some of the sequences.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from probe.analysis import Setting
from probe.extensions import ExtensionStage, Forgetting, Objective, Preconditioned, extension_stage
from probe.findings import Finding, Metric, Outcome, Table
from probe.response import FINE
from probe.rule import Thresholds
from probe.solvers.base import Fitted
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.sweep import Measured, Results
from probe.views import PLANTED, SUBJECT

PLAIN = 0


@dataclass(frozen=True)
class Alternative:
    """An objective beside the plain one, and what its response gains in R^2."""

    objective: Objective
    gain: Interval

    def named(self, delta: float) -> bool:
        """Whether it matters: it gains more than the margin."""
        return self.gain.lo > delta


@dataclass(frozen=True)
class ObjectiveAnalysis:
    """Fits the response under each objective."""

    name: str = "objective"
    place: int = 100
    question: str = "Which least-squares objective do the predictions solve?"

    def stages(self, setting: Setting) -> tuple[ExtensionStage, ...]:
        """The responses under all objectives."""
        return (extension_stage(setting),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if a response explains the predictions and no alternative gains delta."""
        (stage,) = self.stages(setting)
        thresholds = Thresholds.load()
        subject = results[stage, SUBJECT]
        found = alternatives(stage, subject)
        plain = _r2(subject, PLAIN, "spline")
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=_outcome(plain, found, thresholds),
            statement=_statement(plain, found, thresholds),
            metrics={
                "plain_r2": Metric(
                    plain.value,
                    "R^2 of the best response of plain least squares",
                    plain.lo,
                    plain.hi,
                ),
                **_metrics(found),
            },
            controls={
                f"{name} (planted mesa-layer)": metric
                for name, metric in _metrics(alternatives(stage, results[stage, PLANTED])).items()
                if name.endswith("gain")
            },
            does_not_show=(
                "An objective that gains nothing may still be the one that is solved, where the "
                "task makes both the same; and only one fixed matrix is tried."
            ),
            tables=(Table(self.name, pd.DataFrame(_rows(stage, subject))),),
        )


def alternatives(stage: ExtensionStage, measured: Measured) -> dict[str, Alternative]:
    """The rate of forgetting of least error on the fit split, and the preconditioner."""
    kinds = {"forgetting": Forgetting, "preconditioner": Preconditioned}
    found = {}
    for kind, type_ in kinds.items():
        places = [i for i, o in enumerate(stage.objectives) if i != PLAIN and isinstance(o, type_)]
        best = min(places, key=lambda i: _spline(measured, i).error)
        found[kind] = Alternative(stage.objectives[best], _gain(measured, best))
    return found


def _spline(measured: Measured, place: int) -> Fitted:
    return _member(measured, place, "spline")


def _member(measured: Measured, place: int, family: str) -> Fitted:
    """The member of a family of least error on the fit split."""
    members: tuple[Fitted, ...] = measured.learned[place]
    return min((m for m in members if m.family == family), key=lambda m: m.error)


def _error(measured: Measured, place: int, member: Fitted) -> tuple[Tensor, Tensor]:
    """Summed squared error and energy on the test split, by block."""
    gram = measured.sums["gram"][:, place]
    weights = torch.cat([member.weights, torch.tensor([-1.0], dtype=torch.float64)])
    return torch.einsum("c,bcd,d->b", weights, gram, weights), gram[:, FINE, FINE]


def _gain(measured: Measured, place: int) -> Interval:
    """R^2 of the response under an objective minus that of plain least squares."""
    plain, energy = _error(measured, PLAIN, _spline(measured, PLAIN))
    other, _ = _error(measured, place, _spline(measured, place))
    return bootstrap_interval(lambda weights: (weights @ (plain - other)) / (weights @ energy))


def _r2(measured: Measured, place: int, family: str) -> Interval:
    return share_explained(*_error(measured, place, _member(measured, place, family)))


def _outcome(plain: Interval, found: Mapping[str, Alternative], thresholds: Thresholds) -> Outcome:
    explained = plain.value >= thresholds.explained
    close = all(alternative.gain.hi < thresholds.delta for alternative in found.values())
    return "supports" if explained and close else "inconclusive"


def _statement(plain: Interval, found: Mapping[str, Alternative], thresholds: Thresholds) -> str:
    delta = thresholds.delta
    best = plain.value + max(0.0, *(alternative.gain.value for alternative in found.values()))
    if not best >= thresholds.something:
        return "No response explains the predictions, so there is no objective to name."
    named = [kind for kind, alternative in found.items() if alternative.named(delta)]
    share = f"plain least squares explains {plain.value:.1%} of the predictions"
    if not named:
        return f"A response of {share}; neither forgetting nor a preconditioner adds {delta:g}."
    gains = " and ".join(_words(kind, found[kind]) for kind in named)
    return f"A response of {share}; {gains}."


def _words(kind: str, alternative: Alternative) -> str:
    gain = f"adds {alternative.gain.value:.3f}"
    if isinstance(alternative.objective, Forgetting):
        return f"forgetting by {alternative.objective.gamma:g} per position {gain}"
    return f"whitening keys and queries {gain}"


def _metrics(found: Mapping[str, Alternative]) -> dict[str, Metric]:
    metrics = {}
    for kind, alternative in found.items():
        gain = alternative.gain
        metrics[f"{kind}_gain"] = Metric(
            gain.value, f"R^2 that {kind} adds to the best plain response", gain.lo, gain.hi
        )
        if isinstance(alternative.objective, Forgetting):
            metrics["gamma"] = Metric(
                alternative.objective.gamma,
                "the factor below 1 by which pairs fade per position that fits best",
            )
    return metrics


def _rows(stage: ExtensionStage, measured: Measured) -> Iterator[dict[str, object]]:
    for place, objective in enumerate(stage.objectives):
        for family in dict.fromkeys(member.family for member in measured.learned[place]):
            r2 = _r2(measured, place, family)
            yield {
                "objective": objective.name,
                "family": family,
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
            }


NAMED = {"objective": ObjectiveAnalysis()}
