"""Is the frozen model a few-shot learner, and how much of its failure do tuned tokens remove?

Hypothesis: a model that learns in context from sequences also learns from pairs x_i, W x_i, one
token each: its loss falls with the number of pairs towards that of least squares. Bare pairs hold
false transitions from y_i to x_{i+1}; an EOS token between pairs and a prefix before them, tuned
while the model is frozen, may tell it so (von Oswald et al. 2023, few-shot learning).
Test statistic: the share of what least squares gains over predicting nothing, over the last third
of the pairs, of the layout with the lowest loss on sequences of its own. Without pairs nothing can
be gained, since every W is as likely as -W. Refuted if nothing is gained in any layout, unless the
sequences are longer than those of the model's task: then positions may be what it fails on.
Controls: the twin with permuted weights, with tokens tuned on it as long; and an untuned EOS token.
Cost: tuning of two tokens on two models, a few minutes on one core.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pandas as pd

from probe.analysis import Bench
from probe.checkpoints.base import Subject, lacks_weights, transformer_of
from probe.few_shot import procedure
from probe.few_shot.losses import LossByPair
from probe.few_shot.procedure import ARMS, BARE, EOS, PREFIX, RANDOM, Measurement
from probe.few_shot.reading import SMALL_EXCESS, Reading
from probe.few_shot.tuning import Budget, Tuned
from probe.findings import (
    Figure,
    Finding,
    LineChart,
    Metric,
    Outcome,
    Panels,
    Role,
    Series,
    Span,
    Table,
)
from probe.models.attention import BidirectionalAttention
from probe.progress import Phases
from probe.statistics import Interval
from probe.tasks.base import Task
from probe.tasks.linear_dynamics import LinearDynamics, RawTokens

SEQUENCES = 1024  # half of them to fit; a few hundred tell the layouts apart
FALLS, LEARNS, NOTHING_LEARNED = 0.8, 0.5, 0.1
GAIN = "share of what least squares gains over predicting nothing"
NAMES = {
    BARE: "bare pairs",
    EOS: "with a tuned EOS token",
    PREFIX: "with tuned EOS and prefix",
    RANDOM: "with a random EOS token",
    procedure.LEAST_SQUARES: "least squares on the task's pairs",
    procedure.NO_RESET: "least squares on all pairs",
    procedure.FORGETTING: "least squares, forgetting",
    procedure.TRANSITIONS: "least squares on all transitions",
}


@dataclass(frozen=True)
class FewShotLearning:
    """Tunes tokens on the frozen model and measures it on fresh few-shot pairs.

    Attributes:
        budget: How tokens are tuned.
    """

    name: str = "few_shot"
    place: int = 140
    question: str = "Does the frozen model learn from few-shot pairs, with tuned tokens or without?"
    thorough: bool = True
    budget: Budget = field(default_factory=Budget)

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """A way to read pairs as tokens, or room for them."""
        if not (isinstance(task, LinearDynamics) and isinstance(task.layout, RawTokens)):
            return "pairs as tokens need a model of linear dynamics on raw tokens"
        if lacking := lacks_weights(subject):
            return lacking
        config = transformer_of(subject).config
        if any(isinstance(block.attention, BidirectionalAttention) for block in config.blocks):
            return "its attention sees later tokens, so it would see the answers"
        needed = procedure.longest(task.width_out, self.budget)
        if 0 < config.n_ctx < needed:
            return f"few-shot sequences have up to {needed} tokens; it has {config.n_ctx} positions"
        return None

    def run(self, bench: Bench) -> Finding:
        """Supports if the layout chosen beforehand learns and the twin does not."""
        plan = replace(bench.plan, sequences=min(bench.plan.sequences, SEQUENCES))
        phases = Phases(bench.progress, procedure.PHASES)
        measured = procedure.run(transformer_of(bench.subject), plan, self.budget, phases)
        return self._finding(measured, bench.setting.task.length)

    def _finding(self, measured: Measurement, usual: int) -> Finding:
        reading = Reading(measured)
        longest = replace(measured.task, layout=measured.subject.prefix.layout).length
        beyond = longest > usual
        outcome = _outcome(reading, beyond)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome,
            statement=_statement(reading) + (_warning(longest, usual) if beyond else ""),
            metrics=_metrics(reading, self.budget),
            controls=_controls(reading),
            does_not_show="Learning from pairs does not show by which algorithm. A model that "
            "fails here may still learn from the sequences that it was trained on.",
            tables=(_losses_table(measured), _tuning_table(measured)),
            figures=(_figure(measured), _tuning_figure(measured)),
            bearing=_bearing(reading, outcome),
        )


def _outcome(reading: Reading, beyond: bool) -> Outcome:
    """Learning is a falling loss and half of what can be gained; the twin must gain nothing.

    Failure on sequences beyond the usual length may be one of positions: it decides nothing.
    """
    if reading.most_of_twin.hi > NOTHING_LEARNED:
        return "inconclusive"
    if reading.falls.hi < FALLS and reading.gain(reading.best).lo > LEARNS:
        return "supports"
    nothing = all(reading.gain(arm).hi < NOTHING_LEARNED for arm in ARMS)
    return "contradicts" if nothing and not beyond else "inconclusive"


def _statement(reading: Reading) -> str:
    task, best = reading.measured.task, reading.best
    parts = [
        f"After {reading.late.start} of {task.pairs} pairs the frozen model, {NAMES[best]}, gains "
        f"{_percent(reading.gain(best))} of what least squares gains"
    ]
    for arm, words in ((EOS, "the EOS token removes"), (PREFIX, "EOS and prefix remove")):
        parts.append(f"{words} {_percent(reading.removed(arm))} of the bare excess")
    shown = task.pairs - reading.measured.after
    parts.append(
        f"after a task switch it needs {_pairs(reading.recovery(best), shown)} to come near least "
        "squares with a reset, least squares without one "
        f"{_pairs(reading.recovery(procedure.NO_RESET), shown)}"
    )
    if reading.most_of_twin.hi > NOTHING_LEARNED:
        parts.append(f"the twin with permuted weights gains {_percent(reading.most_of_twin)}")
    return "; ".join(parts) + "."


def _warning(longest: int, usual: int) -> str:
    return f" Sequences of its task have {usual} tokens, these up to {longest}."


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.lo:.0f}, {100 * share.hi:.0f}]"


def _pairs(count: Interval, shown: int) -> str:
    if count.value >= shown:
        return f"more than the {shown} pairs shown"
    return f"{count.value:.0f} pairs [{count.lo:.0f}, {count.hi:.0f}]"


def _bearing(reading: Reading, outcome: Outcome) -> str:
    if outcome == "supports":
        return (
            f"Frozen, it also learns from few-shot pairs, {NAMES[reading.best]}: it gains "
            f"{_percent(reading.gain(reading.best))} of what least squares gains."
        )
    if outcome == "contradicts":
        return "Frozen, it learns nothing from few-shot pairs, with tuned tokens or without."
    return ""


def _metrics(reading: Reading, budget: Budget) -> dict[str, Metric]:
    window = f"after {reading.late.start} or more of {reading.measured.task.pairs} pairs"
    found: dict[str, Metric] = {}

    def state(name: str, value: Interval, words: str) -> None:
        found[name] = Metric.of(value, words)

    for arm in (*ARMS, procedure.LEAST_SQUARES, procedure.TRANSITIONS):
        words = f"{NAMES[arm]}: mean of 1/2 |prediction - y|^2 {window}"
        state(f"loss_{arm}", reading.loss(arm), words)
    for arm in ARMS:
        words = f"{NAMES[arm]}: loss minus that of least squares, paired by sequence, {window}"
        state(f"excess_{arm}", reading.excess(arm), words)
        state(f"gain_{arm}", reading.gain(arm), f"{NAMES[arm]}: {GAIN}, {window}")
    for arm in (EOS, PREFIX):
        words = f"share of the bare excess that is gone {NAMES[arm]}, {window}"
        state(f"excess_removed_{arm}", reading.removed(arm), words)
    words = f"{NAMES[reading.best]}: mean loss {window}, over that after fewer than"
    state("late_over_early", reading.falls, f"{words} {reading.early.stop}")
    for learner in (*ARMS, procedure.NO_RESET, procedure.FORGETTING):
        words = f"{NAMES[learner]}: {_recovery_words(reading.measured)}"
        state(f"pairs_to_recover_{learner}", reading.recovery(learner), words)
    subject = reading.measured.subject
    for arm, tuned in ((EOS, subject.eos), (PREFIX, subject.prefix)):
        words = f"{NAMES[arm]}: mean loss over all pairs of {budget.checked} sequences of their own"
        found[f"check_{arm}_start"] = Metric(tuned.start, f"{words}, before the first step")
        found[f"check_{arm}"] = Metric(tuned.check, f"{words}, of the tokens that are kept")
    found["tuning_steps"] = Metric(budget.steps, "steps of Adam for each of EOS and prefix")
    return found


def _recovery_words(measured: Measurement) -> str:
    shown = measured.task.pairs - measured.after
    return (
        f"pairs after a switch at pair {measured.after} until the excess over least squares with a "
        f"reset stays below {SMALL_EXCESS:g} of the loss of predicting nothing; {shown}, all that "
        "are shown: it does not"
    )


def _controls(reading: Reading) -> dict[str, Metric]:
    found = {
        f"gain_{arm}": Metric.of(
            reading.gain_of_twin(arm), f"the twin, {NAMES[arm]} of its own: {GAIN}"
        )
        for arm in ARMS
    }
    words = f"the model {NAMES[RANDOM]}, not tuned: {GAIN}"
    return {**found, f"gain_{RANDOM}": Metric.of(reading.gain(RANDOM), words)}


def _losses_table(measured: Measurement) -> Table:
    rows: list[dict[str, object]] = []
    for course, learners in (
        ("one task", measured.single),
        ("task switch", measured.switch),
        ("one task, twin", measured.control),
    ):
        for name, one in learners.items():
            means, errors = one.mean().tolist(), one.standard_error().tolist()
            rows += [
                {"course": course, "learner": name, "pairs": at, "loss": mean, "loss_se": error}
                for at, (mean, error) in enumerate(zip(means, errors, strict=True))
            ]
    return Table("few_shot", pd.DataFrame(rows))


def _tunings(measured: Measurement) -> Iterator[tuple[str, str, Tuned]]:
    for whose, arms in (("model", measured.subject), ("twin", measured.twin)):
        yield whose, EOS, arms.eos
        yield whose, PREFIX, arms.prefix


def _tuning_table(measured: Measurement) -> Table:
    rows = [
        {"model": whose, "tokens": tokens, "step": step, "loss": loss}
        for whose, tokens, tuned in _tunings(measured)
        for step, loss in enumerate(tuned.curve, 1)
    ]
    return Table("few_shot_tuning", pd.DataFrame(rows, columns=["model", "tokens", "step", "loss"]))


def _series(one: LossByPair, name: str, role: Role = "model") -> Series:
    mean, error = one.mean(), 1.96 * one.standard_error()
    low, high = (mean - error).maximum(0.2 * mean), mean + error
    x = list(range(len(mean)))
    return Series(name, x, mean.tolist(), low.tolist(), high.tolist(), role)


def _figure(measured: Measurement) -> Figure:
    theory = {
        "one task": (procedure.LEAST_SQUARES, procedure.TRANSITIONS),
        "task switch": (procedure.LEAST_SQUARES, procedure.NO_RESET, procedure.FORGETTING),
    }
    charts = []
    for title, learners in (("one task", measured.single), ("task switch", measured.switch)):
        lines = [_series(learners[arm], NAMES[arm]) for arm in ARMS]
        lines += [_series(learners[name], NAMES[name], "theory") for name in theory[title]]
        switch = measured.after
        spans = (Span("task switch", switch, switch, switch),) if title == "task switch" else ()
        if title == "one task":
            twin = measured.control[measured.twin.best]
            lines.append(_series(learners[RANDOM], NAMES[RANDOM], "control"))
            lines.append(_series(twin, "permuted twin, its best layout", "control"))
        charts.append(
            LineChart(
                title.replace(" ", "_"), title.capitalize(), "", "pairs before the query", "loss",
                tuple(lines), log_y=True, spans=spans,
            )
        )  # fmt: skip
    return Panels(
        "few_shot",
        "Few-shot learning by the frozen model",
        "Loss on fresh pairs x, W x by the number of pairs before the query, with 95 % bands. "
        "Least squares on the task's pairs starts anew at the switch; on all pairs it does not "
        "know of it; on all transitions it takes y and the next x for a pair too, as a mesa-layer "
        "must on bare tokens. Tokens were tuned on one task only.",
        tuple(charts),
    )


def _tuning_figure(measured: Measurement) -> Figure:
    names = {EOS: "EOS", PREFIX: "prefix"}
    lines = []
    for whose, tokens, tuned in _tunings(measured):
        window = max(1, len(tuned.curve) // 50)
        smooth = pd.Series(tuned.curve, dtype=float).rolling(window, min_periods=1).mean()
        points = smooth.iloc[window - 1 :: window]
        role: Role = "model" if whose == "model" else "control"
        x = [int(step) + 1 for step in points.index]
        lines.append(Series(f"{names[tokens]}, {whose}", x, points.tolist(), role=role))
    return LineChart(
        "few_shot_tuning",
        "Tuning of the tokens",
        "Mean loss over all queries on the sequences of each step, a running mean; the model is "
        "frozen. The prefix is tuned after the EOS token, starting from copies of it.",
        "step",
        "loss",
        tuple(lines),
    )


NAMED = {"few_shot": FewShotLearning()}
