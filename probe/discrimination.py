"""Do families that the task's own inputs cannot tell apart part under other inputs?

Hypothesis: the model runs one of the families that its own law leaves open, with constants that do
not depend on the data. Then this family, with the constants fitted under the own law, explains the
model under another law too, where the others fall behind. The laws are those under which the
fitted families separate best (`design.py`). Test statistic: the paired deficit in R^2 of each
family, constants carried over, against the best of them. Refuted if none explains the model there.
Costs a small Gram matrix of each candidate law, then a sweep under each law that is chosen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from probe.analysis import Setting
from probe.capture import capture
from probe.columns import Columns
from probe.design import Meeting, Pair, comparable, measure, pairs
from probe.findings import Finding, Metric, Outcome, Table
from probe.input_laws import OWN
from probe.models.hooked import HookedModel
from probe.plan import Plan
from probe.response_stage import OUTPUT, ResponseStage, response_stages
from probe.rule import Thresholds, classify
from probe.scores import Reading, read, scored
from probe.solvers.base import Fitted, Quadratic
from probe.stages import Measured, Results, View
from probe.standing import Standing, standing
from probe.statistics import BLOCKS, Interval
from probe.survey import Law, survey
from probe.sweep import Sweep
from probe.views import SUBJECT

NAME = "discrimination"
QUESTION = "Which of the families that cannot be told apart survive other inputs?"
LAWS = 3
DIVERGENT = 0.25  # of the energy in one block of 64


@dataclass(frozen=True)
class Asked:
    """A predictor that can be run under any input law.

    Attributes:
        models: The models that its view looks at.
        view: How to see it.
    """

    models: Mapping[str, HookedModel]
    view: View


@dataclass(frozen=True)
class Answer:
    """What a predictor said under one law.

    Attributes:
        inputs: Name of the law.
        reading: All families, refitted there.
        members: The members behind the first scores of the reading.
        errors: The error of any weighting of the columns on the fit split.
        stage: The measurement.
        measured: What it measured.
        clipped: Share of entries that the task's clip has changed.
    """

    inputs: str
    reading: Reading
    members: tuple[Fitted, ...]
    errors: Quadratic
    stage: ResponseStage
    measured: Measured
    clipped: float

    def chosen(self, family: str) -> Fitted:
        """The member that stands for a family."""
        score = self.reading.chosen(family)
        return next(
            m for m, s in zip(self.members, self.reading.scores, strict=False) if s is score
        )

    def carried(self, members: tuple[Fitted, ...]) -> Reading:
        """Members with given weights, nothing refitted."""
        oracle = next(m for m in self.members if m.family == "oracle")
        here = tuple(
            replace(m, error=float(self.errors.error(m.weights)) / self.errors.energy)
            for m in (*members, oracle)
        )
        gram = self.measured.sums["gram"][:, self.stage.within("judged")].sum(1)
        return scored(gram, here, gram.shape[-1] - 1)


def ask(asked: Asked, plan: Plan, law: Law, columns: Columns) -> Answer:
    """Runs the predictor under a law."""
    task = law.inputs.task
    stage = ResponseStage(task.windows, columns, 2 / law.top, (SUBJECT,), layered=False)
    sweep = Sweep(replace(plan, task=task), asked.models, {SUBJECT: asked.view}, capture)
    measured = sweep.run((stage,))[stage, SUBJECT]
    learned, place = measured.learned, (OUTPUT, "judged")
    return Answer(
        law.inputs.name,
        read(stage, measured, *place),
        learned.members[place],
        learned.errors[place],
        stage,
        measured,
        sweep.clipped_share,
    )


@dataclass(frozen=True)
class Trial:
    """The families under one law that was chosen to part them.

    Attributes:
        answer: What the model said there.
        carried: The families with their constants of the own law.
        groups: Where these stand to the best of them.
    """

    answer: Answer
    carried: Reading
    groups: Standing

    def survivors(self, explained: float) -> set[str]:
        """The families that are not rejected and explain the model."""
        kept = (*self.groups.equivalent, *self.groups.undecided)
        return {n for n in kept if self.carried.value(self.carried.chosen(n)) >= explained}


@dataclass(frozen=True)
class Parting:
    """What the trials say of the families.

    Attributes:
        members: The families that the own law leaves open, as fitted there.
        own: These members under the own law, on as many sequences.
        trials: One per chosen law.
        inseparable: Pairs that no law under consideration separates.
        skipped: Laws that were left out, and why.
    """

    members: tuple[Fitted, ...]
    own: Reading
    trials: tuple[Trial, ...]
    inseparable: tuple[tuple[str, str], ...]
    skipped: Mapping[str, str]

    def survivors(self, explained: float) -> tuple[str, ...]:
        """The families that survive every trial."""
        sets = [trial.survivors(explained) for trial in self.trials]
        return tuple(m.family for m in self.members if all(m.family in kept for kept in sets))


def part(asked: Asked, plan: Plan, alive: tuple[str, ...], thresholds: Thresholds) -> Parting:
    """Fits the living families under the own law, and tries them under the laws that part them."""
    found = survey(plan, thresholds.clipped)
    shorter = replace(plan, sequences=max(plan.sequences // 4, 4 * BLOCKS))
    own = ask(asked, shorter, found.laws[0], found.columns)
    members = tuple(own.chosen(name) for name in alive)
    grounds = [measure(plan, law, found.columns) for law in found.laws]
    met = pairs(grounds, members, alive, thresholds.delta)
    by_name = {law.inputs.name: law for law in found.laws}
    skipped, trials = dict(found.skipped), []
    for name in _chosen_laws(met, thresholds.delta):
        answer = ask(asked, shorter, by_name[name], found.columns)
        carried = answer.carried(members)
        if answer.clipped - own.clipped > thresholds.clipped:
            skipped[name] = f"clips {answer.clipped:.1%} of the entries"
        elif not carried.energy.max() <= DIVERGENT * carried.energy.sum():
            skipped[name] = "the predictions diverge: a few sequences outweigh all others"
        else:
            trials.append(Trial(answer, carried, standing(carried, thresholds)))
    apart = {pair.names for pair in met if _parting(pair, thresholds.delta)}
    inseparable = tuple(pair.names for pair in met if pair.names not in apart)
    return Parting(members, own.carried(members), tuple(trials), inseparable, skipped)


def _parting(pair: Pair, delta: float) -> Meeting | None:
    """Where a pair parts, if it does in a direction at least."""
    best = pair.best
    if best is None or max(best.first.surplus(delta), best.second.surplus(delta)) <= 0:
        return None
    return best


def _chosen_laws(met: tuple[Pair, ...], delta: float) -> tuple[str, ...]:
    """The laws that part most pairs; the own law has had its say."""
    best = [meeting.inputs for meeting in (_parting(p, delta) for p in met) if meeting]
    names = sorted(dict.fromkeys(best), key=lambda name: -best.count(name))
    return tuple(name for name in names if name != OWN)[:LAWS]


def left_open(reading: Reading, thresholds: Thresholds) -> tuple[str, ...]:
    """The learners that a reading does not reject; none where it shows no learner."""
    if classify(reading, thresholds).name not in ("first_order", "least_squares", "inconclusive"):
        return ()
    groups = standing(reading, thresholds)
    return tuple(n for n in comparable() if n in (*groups.equivalent, *groups.undecided))


def discriminate(model: HookedModel, plan: Plan, setting: Setting, results: Results) -> Finding:
    """Tries the families that the main run leaves open under the inputs that part them."""
    thresholds = Thresholds.load()
    stage = response_stages(setting)[0]
    alive = left_open(read(stage, results[stage, SUBJECT], OUTPUT, "judged"), thresholds)
    if len(alive) < 2:
        return _nothing_to_part(alive)
    asked = Asked({SUBJECT: model}, lambda context, captures: (context, captures[SUBJECT]))
    return conclude(part(asked, plan, alive, thresholds), thresholds)


def _nothing_to_part(alive: tuple[str, ...]) -> Finding:
    left = f"Only {_words(alive)} is" if alive else "No family of solvers is"
    return Finding(
        NAME,
        QUESTION,
        "inconclusive",
        f"{left} left open by the task's own inputs, so there is nothing to tell apart.",
        {"families_left": Metric(len(alive), "families that the task's own inputs leave open")},
        {},
        "Families with trained matrices are not compared.",
    )


def conclude(parting: Parting, thresholds: Thresholds) -> Finding:
    """Supports if a family with carried constants explains the model under the other laws."""
    left = parting.survivors(thresholds.explained)
    worst = {m.family: _worst(parting, m.family) for m in parting.members if parting.trials}
    own = standing(parting.own, thresholds)
    outcome: Outcome = "supports" if parting.trials and left else "inconclusive"
    return Finding(
        analysis=NAME,
        question=QUESTION,
        outcome=outcome,
        statement=_statement(parting, left),
        metrics={
            "families_left": Metric(len(left), "families that survive every trial"),
            **{
                f"{name}_r2": Metric(
                    r2.value,
                    f"{name}, constants carried over: least R^2 of any trial",
                    r2.lo,
                    r2.hi,
                )
                for name, r2 in worst.items()
            },
        },
        controls={
            "families_left (own law)": Metric(
                len((*own.equivalent, *own.undecided)),
                "families that as many sequences of the task's own law leave",
            )
        },
        does_not_show=(
            "A model may leave its algorithm outside its own law; so a family that fails here may "
            "still be what it runs there. Families with trained matrices are not compared."
        ),
        tables=(
            Table(NAME, pd.DataFrame(_rows(parting), columns=_COLUMNS)),
            Table(f"{NAME}_left_out", pd.DataFrame(_left_out(parting), columns=["what", "why"])),
        ),
    )


def _worst(parting: Parting, family: str) -> Interval:
    intervals = [t.carried.r2(t.carried.chosen(family)) for t in parting.trials]
    return min(intervals, key=lambda interval: interval.value)


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _statement(parting: Parting, left: tuple[str, ...]) -> str:
    families = tuple(member.family for member in parting.members)
    if not parting.trials:
        return f"No input that the model can take tells {_words(families)} apart."
    laws = "; ".join(trial.answer.inputs for trial in parting.trials)
    if not left:
        return (
            f"Of {_words(families)}, none explains the model under inputs that part them ({laws})."
        )
    return f"Of {_words(families)}, inputs that part them ({laws}) leave {_words(left)}."


_COLUMNS = ["inputs", "family", "parameters", "carried_r2", "r2_lo", "r2_hi", "refit_r2", "stands"]


def _rows(parting: Parting) -> Iterator[dict[str, object]]:
    for trial in parting.trials:
        places = {name: key for key, names in vars(trial.groups).items() for name in names}
        refitted = trial.answer.reading
        for member in parting.members:
            r2 = trial.carried.r2(trial.carried.chosen(member.family))
            yield {
                "inputs": trial.answer.inputs,
                "family": member.family,
                "parameters": " ".join(f"{k}={v:.6g}" for k, v in member.constants.items()),
                "carried_r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
                "refit_r2": refitted.value(refitted.chosen(member.family)),
                "stands": places[member.family],
            }


def _left_out(parting: Parting) -> Iterator[dict[str, str]]:
    for first, second in parting.inseparable:
        yield {"what": f"{first} | {second}", "why": "no input under consideration parts them"}
    for name, reason in parting.skipped.items():
        yield {"what": name, "why": reason}
