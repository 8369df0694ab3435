"""Which solver families can be told apart, and on which inputs best?

Every solver here is a weighting of the same columns (hats of the response, and the ready
predictions of conjugate gradient and its like). So one Gram matrix of an input law tells how well
any family can imitate any other under that law: a family is planted as the truth, a rival is
fitted to its predictions on the fit split, and the R^2 that the rival lacks on the test split is
their separation. Families with trained matrices are left out.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Capture, capture, predictor_only
from probe.columns import Columns
from probe.errors import InputError
from probe.files import read_text
from probe.input_laws import OWN
from probe.plan import Plan
from probe.response_stage import OUTPUT, ResponseStage
from probe.solvers.base import Fitted, MapFamily, Quadratic, families
from probe.stages import Context, View
from probe.statistics import minimum_detectable, standard_error
from probe.survey import SEARCHED, Law, plan_under, survey
from probe.sweep import Sweep

SHORT = 3
SAME = 1e-6  # of R^2: the columns are products of float32


def comparable() -> tuple[str, ...]:
    """The learners that are weightings of columns; the spline contains them all."""
    return tuple(
        name
        for name, family in families().items()
        if not family.is_null and not isinstance(family, MapFamily) and name != "spline"
    )


@dataclass(frozen=True)
class Separation:
    """How far the rival stays behind the truth under some inputs.

    Attributes:
        truth: The family that makes the predictions.
        constants: Its constants.
        rival: The family that is fitted to them.
        inputs: Name of the input law.
        value: The R^2 that the best member of the rival lacks.
        error: Its standard error with as many sequences as were planned.
        detectable: The least difference that they show (5 %, power 80 %).
    """

    truth: str
    constants: Mapping[str, float | int]
    rival: str
    inputs: str
    value: float
    error: float
    detectable: float

    def surplus(self, delta: float) -> float:
        """By how much it exceeds both the margin of equivalence and what can be detected.

        A rival that diverges on a rare eigenvalue lacks more than everything, but shows no more.
        """
        return min(self.value, 1.0) - max(delta, self.detectable)


@dataclass(frozen=True)
class Ground:
    """The products of all columns under one law, on which solvers meet.

    Attributes:
        law: The law.
        columns: The columns.
        rows: How many numbers the fit split predicts.
        fit: Products over the fit split.
        test: Products over the test split, by block.
        targets: The error of any solver as a learner of the task, on the fit split.
        scale: Standard errors with the planned number of sequences, as a share of those here.
    """

    law: Law
    columns: Columns
    rows: int
    fit: Float[Tensor, "columns columns"]
    test: Float[Tensor, "blocks columns columns"]
    targets: Quadratic
    scale: float

    def fitted(self, errors: Quadratic) -> tuple[Fitted, ...]:
        """All families, fitted."""
        return self.columns.fit(errors, self.rows, 2 / self.law.top)

    def separations(self, truth: Fitted, rivals: Iterable[str]) -> list[Separation]:
        """The truth beside the best member of each rival family."""
        weights = truth.weights
        cross = self.fit @ weights
        members = self.fitted(Quadratic(self.fit, cross, float(weights @ cross)))
        energy = _energy(self.test, weights)
        found = []
        for rival in rivals:
            best = min((m for m in members if m.family == rival), key=lambda m: m.error)
            lost = _energy(self.test, best.weights - weights)
            found.append(
                Separation(
                    truth.family,
                    truth.constants,
                    rival,
                    self.law.inputs.name,
                    float(lost.sum() / energy.sum()),
                    self.scale * standard_error(lost, energy),
                    self.scale * minimum_detectable(lost, energy),
                )
            )
        return found


def _energy(
    gram: Float[Tensor, "blocks columns columns"], weights: Float[Tensor, " columns"]
) -> Float[Tensor, " blocks"]:
    return torch.einsum("c,bcd,d->b", weights, gram, weights)


def measure(plan: Plan, law: Law, columns: Columns) -> Ground:
    """Products of the columns over sequences of the law, at most 512 of them."""
    used = min(plan.sequences, SEARCHED)
    task = law.inputs.task
    stage = ResponseStage(task.windows, columns, 2 / law.top, ("targets",), layered=False)
    view: dict[str, View] = {"targets": _see_targets}
    sweep = Sweep(plan_under(plan, law.inputs, used), {}, view, capture)
    measured = sweep.run((stage,))[stage, "targets"]
    targets: Quadratic = measured.learned.errors[OUTPUT, "judged"]
    first, stop = task.windows.judged
    gram = measured.sums["gram"][:, stage.within("judged")].sum(1)
    return Ground(
        law,
        columns,
        (used - used // 2) * (stop - first) * task.width_out,
        targets.gram,
        gram[:, : columns.width, : columns.width],
        targets,
        (used / plan.sequences) ** 0.5,
    )


def _see_targets(context: Context, _: Mapping[str, Capture]) -> tuple[Context, Capture]:
    return context, predictor_only(context.problem.targets)


def representatives(own: Ground, alive: Sequence[str]) -> tuple[Fitted, ...]:
    """Members tuned to the task, as training would: of three steps or more, and the best."""
    members = own.fitted(own.targets)
    chosen = []
    for name in alive:
        family = [m for m in members if m.family == name]
        best = min(family, key=lambda m: m.error)
        short = next((m for m in family if m.constants.get("steps", 0) >= SHORT), best)
        chosen += [short, best] if short is not best else [best]
    return tuple(chosen)


@dataclass(frozen=True)
class Meeting:
    """Two families under one law: the second as the rival of the first, and the other way."""

    inputs: str
    first: Separation
    second: Separation


@dataclass(frozen=True)
class Pair:
    """Two families under the own law, and where they separate best.

    Attributes:
        own: Under the task's own law.
        best: Under the law of the largest surplus in the worse direction; directions in which one
            family contains the other are left out. None if no law separates them at all.
        contained: Families of the two that the other equals on all inputs that were tried.
    """

    own: Meeting
    best: Meeting | None
    contained: tuple[str, ...]

    @property
    def names(self) -> tuple[str, str]:
        """The two families."""
        return self.own.first.truth, self.own.second.truth

    def separable(self, meeting: Meeting | None, delta: float) -> str:
        """`yes`, `if NAME` where only the truth of that name excludes the other, or `no`."""
        if meeting is None:
            return "on no input"
        shown = [s.truth for s in (meeting.first, meeting.second) if s.surplus(delta) > 0]
        return "yes" if len(shown) == 2 else f"if {shown[0]}" if shown else "no"


def pairs(
    grounds: Sequence[Ground], truths: Sequence[Fitted], alive: Sequence[str], delta: float
) -> tuple[Pair, ...]:
    """Every pair of living families, under every law; the own law is the first ground."""
    met: dict[tuple[str, str], list[Separation]] = {}
    for ground in grounds:
        for truth in truths:
            for found in ground.separations(truth, [n for n in alive if n != truth.family]):
                met.setdefault((truth.family, found.rival), []).append(found)
    return tuple(
        _pair(
            [
                Meeting(g.law.inputs.name, _least(met[a, b], g), _least(met[b, a], g))
                for g in grounds
            ],
            delta,
        )
        for a, b in combinations(alive, 2)
    )


def _least(separations: list[Separation], ground: Ground) -> Separation:
    """The members of the truth that the rival imitates best."""
    here = [s for s in separations if s.inputs == ground.law.inputs.name]
    return min(here, key=lambda s: s.value)


def _pair(meetings: list[Meeting], delta: float) -> Pair:
    contained = tuple(
        getattr(meetings[0], side).truth
        for side in ("first", "second")
        if max(getattr(m, side).value for m in meetings) < SAME
    )

    def surplus(meeting: Meeting) -> float:
        open_ = [s for s in (meeting.first, meeting.second) if s.truth not in contained]
        return min(s.surplus(delta) for s in open_)

    best = max(meetings, key=surplus) if len(contained) < 2 else None
    return Pair(meetings[0], best, contained)


@dataclass(frozen=True)
class Design:
    """What an experiment can tell apart.

    Attributes:
        task: Name of the task.
        sequences: The planned number of sequences.
        delta: The margin of equivalence.
        pairs: The pairs of families.
        skipped: Input laws that were left out, and why.
    """

    task: str
    sequences: int
    delta: float
    pairs: tuple[Pair, ...]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "task": self.task,
            "sequences": self.sequences,
            "delta": self.delta,
            "pairs": [
                {
                    "families": pair.names,
                    "contained": pair.contained,
                    OWN.replace(" ", "_"): _meeting_dict(pair.own),
                    "best": _meeting_dict(pair.best) if pair.best else None,
                    "separable": pair.separable(pair.own, self.delta),
                    "separable_at_best": pair.separable(pair.best, self.delta),
                }
                for pair in self.pairs
            ],
            "skipped": dict(self.skipped),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """One row per pair."""
        return [
            (
                " | ".join(name.replace("_", " ") for name in pair.names),
                *_cells(pair, pair.own, self.delta),
                pair.best.inputs if pair.best else "none",
                *(_cells(pair, pair.best, self.delta) if pair.best else ("", "", "on no input")),
            )
            for pair in self.pairs
        ]


COLUMNS = ("A | B", "A by B", "B by A", "apart?", "best inputs", "A by B", "B by A", "apart?")


def _cells(pair: Pair, meeting: Meeting, delta: float) -> tuple[str, str, str]:
    first, second = (
        "same" if s.truth in pair.contained else f"{s.value:.3g} ±{s.error:.1g}"
        for s in (meeting.first, meeting.second)
    )
    return first, second, pair.separable(meeting, delta).replace("_", " ")


def _meeting_dict(meeting: Meeting) -> dict[str, object]:
    sides = {"first": meeting.first, "second": meeting.second}
    return {"inputs": meeting.inputs, **{side: vars(found) for side, found in sides.items()}}


def design(
    plan: Plan,
    alive: Sequence[str],
    delta: float,
    clipped: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Design:
    """Measures every pair of families under every law that a model of the task can take.

    Args:
        plan: The task and the planned number of sequences.
        alive: The families to be told apart.
        delta: The margin of equivalence in R^2.
        clipped: How much more of its entries than the own law another may clip.
        progress: Called with (laws done, laws in all).

    Raises:
        InputError: Fewer than two families, or a family that no column carries.
    """
    unknown = sorted(set(alive) - set(comparable()))
    if unknown:
        raise InputError(f"cannot compare {', '.join(unknown)}; known: {', '.join(comparable())}")
    if len(set(alive)) < 2:
        raise InputError("two families at least are needed to be told apart")
    found = survey(plan, clipped)
    grounds = []
    for law in found.laws:
        grounds.append(measure(plan, law, found.columns))
        progress(len(grounds), len(found.laws))
    truths = representatives(grounds[0], alive)
    met = pairs(grounds, truths, alive, delta)
    return Design(plan.task.name, plan.sequences, delta, met, found.skipped)


@dataclass(frozen=True)
class Open:
    """What a finished run leaves to be told apart."""

    task: str
    families: tuple[str, ...]


def left_open(path: Path) -> Open:
    """The task and the families that a results.json does not reject.

    Raises:
        InputError: No such file, or not the results of a run, or nothing is left open.
    """
    try:
        results = json.loads(read_text(path))
        verdict, task = results["verdict"], results["task"]["name"]
        names = [*verdict["equivalent"], *verdict["undecided"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: no results of a run ({error})") from error
    alive = tuple(name for name in comparable() if name in names)
    if len(alive) < 2:
        raise InputError(f"{path}: leaves no two families to be told apart")
    return Open(task, alive)
