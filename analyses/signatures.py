"""Does the model obey the symmetries of a learning algorithm?

Hypothesis: a learner that predicts C f(G) q treats its context as a set of pairs. Then predictions
do not depend on the order of the pairs, are linear in their values, turn with the states, and
follow the same f when states are scaled or two sequences are spliced into one. Test statistic:
share of the held-out prediction that is what the symmetry says, with f fitted on unchanged
sequences. Refuted by a share below its tolerance. Beside it stands what a model that is blind to
the change would score; where that is within the tolerance too, nothing was tested. On some changed
inputs a failure does not cap a verdict but narrows its scope; signature_tolerances.json says which.
Cost: about nine forward passes of an eighth of the test split.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from probe.analysis import Setting
from probe.findings import Finding, IntervalChart, Metric, Outcome, Table
from probe.response import FINE
from probe.response_stage import OUTPUT, ResponseStage, response_stages
from probe.signature_stage import (
    ContextTrial,
    Products,
    RotationTrial,
    ScaleTrial,
    SignatureStage,
    SpliceTrial,
    Trial,
    ends_of,
    exponent,
)
from probe.signatures import (
    SCALE,
    SCALED,
    SIGNATURES,
    TABLE,
    Reading,
    State,
    read_signature,
)
from probe.stages import Results
from probe.statistics import Interval, bootstrap_interval
from probe.symmetries import (
    can_splice,
    is_isotropic,
    is_linear,
    paired_tokens,
    scales_along,
)
from probe.views import SUBJECT

NO_PAIRS = "neighbouring pairs share their tokens"
NOT_LINEAR = "tokens or features are not linear in the states"
NOT_ISOTROPIC = "turned sequences leave the task's law"
NOT_JOINED = "sequences of this task cannot be joined"
NOT_RUN = "the model cannot be run again"
UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Signatures:
    """Runs the model on changed inputs."""

    name: str = "signatures"
    place: int = 90
    question: str = "Does the model obey the symmetries of a learning algorithm?"

    def stages(self, setting: Setting) -> tuple[ResponseStage, SignatureStage]:
        """The response on unchanged sequences, and the trials that the task allows."""
        trials = tuple(t for t in trials_of(setting).values() if not isinstance(t, str))
        return response_stages(setting)[0], SignatureStage(trials)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if signatures that count are passed and none is failed."""
        response, stage = self.stages(setting)
        members = results[response, SUBJECT].learned.members[OUTPUT, "judged"]
        curve = next(m for m in members if m.family == "spline").weights[:FINE]
        sums = results[stage, SUBJECT].sums
        trials = {t.name: t.products(sums[t.name], curve) for t in stage.trials if t.name in sums}
        reasons = {n: t if isinstance(t, str) else NOT_RUN for n, t in trials_of(setting).items()}
        readings = [
            read_signature(signature, trials[signature.trial])
            if signature.trial in trials
            else Reading(signature, "not testable", reasons[signature.trial])
            for signature in SIGNATURES
        ]
        degrees = _degrees(trials[SCALED]) if SCALED in trials else {}
        return self._finding(readings, degrees)

    def _finding(self, readings: list[Reading], degrees: dict[str, Metric]) -> Finding:
        metrics = dict(_metrics(readings)) | degrees
        controls = {
            r.signature.name: Metric(
                r.blind.value, "blind to the change: the same", r.blind.lo, r.blind.hi
            )
            for r in readings
            if r.blind
        }
        return Finding(
            self.name,
            self.question,
            _outcome(readings),
            _statement(readings),
            metrics,
            controls,
            "Passed signatures are shown by any algorithm on the moments of the pairs, and in part "
            "by what learns nothing; they do not say which algorithm runs. In dynamics every value "
            "is the next pair's key too, and a learner may lean on that.",
            (Table(TABLE, pd.DataFrame(list(_rows(readings)))),),
            (_figure(readings),),
        )


def trials_of(setting: Setting) -> dict[str, Trial | str]:
    """The trials, by name, or why the task allows none."""
    task, knots, windows = setting.task, setting.knots, setting.windows
    pairs, linear = paired_tokens(task), is_linear(task)
    turns = RotationTrial(windows.judged) if is_isotropic(task) else NOT_ISOTROPIC
    return {
        "context": ContextTrial(pairs, ends_of(windows.judged)) if pairs else NO_PAIRS,
        # While pairs are few, those of two teachers have no least-squares solution of modest size.
        "splice": SpliceTrial(task, knots, windows.solved) if can_splice(task) else NOT_JOINED,
        "rotation": turns if linear else NOT_LINEAR,
        SCALED: ScaleTrial(SCALE, knots, windows.judged) if scales_along(task) else NOT_LINEAR,
    }


def _degrees(scaled: Products) -> dict[str, Metric]:
    """The degrees whose difference is a signature."""
    pairs = {
        "scaling_degree": ("clean", "changed", "the model"),
        "expected_scaling_degree": ("expected_clean", "expected", "the response"),
    }
    degrees = {
        name: (bootstrap_interval(exponent(scaled, SCALE, one, other)), whose)
        for name, (one, other, whose) in pairs.items()
    }
    return {
        name: Metric(
            degree.value,
            f"log of what the predictions of {whose} are scaled by, over the log of {SCALE:g}",
            degree.lo,
            degree.hi,
        )
        for name, (degree, whose) in degrees.items()
    }


def _metrics(readings: list[Reading]) -> Iterator[tuple[str, Metric]]:
    for reading in readings:
        signature, value = reading.signature, reading.value
        if value is None:
            continue
        yield signature.name, Metric(value.value, signature.meaning, value.lo, value.hi)


def _outcome(readings: list[Reading]) -> Outcome:
    counting = [reading.state for reading in readings if reading.tolerance.caps]
    if "failed" in counting:
        return "contradicts"
    return "supports" if "passed" in counting else "inconclusive"


def _statement(readings: list[Reading]) -> str:
    def named(state: State, caps: tuple[bool, ...] = (True, False)) -> list[str]:
        found = [r for r in readings if r.state == state and r.tolerance.caps in caps]
        return [reading.signature.name.replace("_", " ") for reading in found]

    tested = [reading for reading in readings if reading.state != "not testable"]
    if not tested:
        return "None of the signatures can be tested on this task."
    parts = [f"{len(named('passed'))} of {len(tested)} signatures that can be tested hold"]
    if failed := named("failed", (True,)):
        parts.append(f"failed: {', '.join(failed)}")
    if narrowing := named("failed", (False,)):
        parts.append(f"failed on inputs unlike the task's: {', '.join(narrowing)}")
    if undecided := named("undecided"):
        parts.append(f"undecided: {', '.join(undecided)}")
    return "; ".join(parts) + "."


def _rows(readings: list[Reading]) -> Iterator[dict[str, object]]:
    for reading in readings:
        value = reading.value or UNKNOWN
        yield {
            "signature": reading.signature.name,
            "value": value.value,
            "lo": value.lo,
            "hi": value.hi,
            "ideal": reading.signature.ideal,
            "tolerance": reading.tolerance.tolerance,
            "if_blind": (reading.blind or UNKNOWN).value,
            "outcome": reading.state,
            "caps_verdict": reading.tolerance.caps,
            "reason": reading.reason,
        }


def _figure(readings: list[Reading]) -> IntervalChart:
    shown = [(r, r.value) for r in readings if r.value and r.signature.ideal == 1]
    shown = [(r, value) for r, value in shown if value.lo <= value.hi]
    shown.sort(key=lambda row: -row[1].value)
    return IntervalChart(
        "signatures",
        "Symmetries of a learning algorithm",
        "Share of the predictions on changed inputs that is what the symmetry says, with 95 % "
        "intervals: 1 is an exact learner. Values below -0.1 are drawn there.",
        "share as the symmetry says",
        tuple(f"{r.signature.name.replace('_', ' ')}: {r.state}" for r, _ in shown),
        *(
            tuple(max(getattr(value, end), -0.1) for _, value in shown)
            for end in ("value", "lo", "hi")
        ),
    )


NAMED = {"signatures": Signatures()}
