"""From numbers to a verdict: the class, the families that cannot be told apart, the evidence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from probe.findings import Finding, Instrument, Verdict
from probe.scores import Reading, Score, nulls

_LEARNERS = ("first_order", "least_squares")
_NULL_CLASS = {
    "memorised_map": "context_free",
    "two_lag_copy": "copy",
    "kernel_smoother": "kernel",
    "nearest_neighbours": "kernel",
    "mean": "kernel",
    "zero": "unexplained",
    "oracle": "unexplained",
}
# From the simplest description to the most general; the verdict names the first that is equivalent.
_PREFERRED = {
    "first_order": (
        "gradient_descent",
        "normalised_descent",
        "preconditioned_gd",
        "chebyshev",
        "polynomial",
    ),
    "least_squares": ("ridge", "newton", "conjugate_gradient"),
}


@dataclass(frozen=True)
class Thresholds:
    """The numbers of the rule; data, kept in thresholds.json.

    Attributes:
        delta: Margin of equivalence in R^2.
        tau: How far below the best scalar response a class may fall.
        something: Below this R^2 nothing is explained.
        explained: Below this R^2 of the best response the model is not explained by one.
        null_share: A null wins if it leaves less than 1 / null_share of what solvers leave.
        max_degree: Polynomials up to this degree count as first order.
        nudge_follows: Below this alpha a model does not follow a nudged teacher.
        memorised_r2: Above this R^2 of the fixed teacher the map is memorised.
        clipped: An input law that clips this much more of its entries than the task's own law
            narrows no verdict and decides none.
    """

    delta: float
    tau: float
    something: float
    explained: float
    null_share: float
    max_degree: int
    nudge_follows: float
    memorised_r2: float
    clipped: float

    @classmethod
    def load(cls) -> "Thresholds":
        """Reads the file beside this module."""
        return cls(**json.loads(Path(__file__).with_name("thresholds.json").read_text()))


@dataclass(frozen=True)
class Class:
    """A class with the degree, where it has one, and the distance of the deciding number."""

    name: str
    degree: int | None
    distance: float
    null: str = "none"


@dataclass(frozen=True)
class Nudge:
    """Whether the model follows a teacher that is turned a little (see the teacher_nudge analysis).

    Attributes:
        alpha: 1 if it follows the nudged teacher, 0 if it stays with the old one.
        fixed_r2: R^2 of the old teacher's map.
        single: Whether the task has one teacher, so that the nudge is judged first.
        clipped: How much more of its entries the nudged law clips than the task's own.
    """

    alpha: float
    fixed_r2: float
    single: bool
    clipped: float


def classify(reading: Reading, thresholds: Thresholds) -> Class:
    """The class of a predictor over the judged positions.

    Three numbers decide: S, the best solver with a scalar response; N, the best null; and whether
    S is reached by least squares (ridge, or Newton past the degrees of the polynomials), by a
    polynomial of low degree, by both or by neither. A gradient step on the mean loss depends on t
    as well, so it is first order by itself where no scalar response comes near it.
    """
    value = reading.value
    best_null = max((s for s in reading.scores if s.family in nulls()), key=value)
    response = [s for s in reading.scores if s.family in _RESPONSES]
    best_response = max(response, key=value)
    scalar, null = value(best_response), value(best_null)
    step = max(map(value, reading.members(_MEAN_STEP)), default=scalar)
    best = max(scalar, step)
    if not max(best, null) >= thresholds.something:
        return Class("unexplained", None, thresholds.something - max(best, null))
    if 1 - best > thresholds.null_share * (1 - null):
        return Class(_NULL_CLASS[best_null.family], None, null - best, best_null.family)
    if best < thresholds.explained:
        return Class("unexplained", None, thresholds.explained - best)
    if step - scalar > thresholds.tau:
        return Class("first_order", 1, step - scalar - thresholds.tau)
    return _solver_class(reading, best_response, thresholds)


_MEAN_STEP = "normalised_descent"
_RESPONSES = (
    "spline",
    "polynomial",
    "gradient_descent",
    "stepwise_descent",
    "chebyshev",
    "newton",
    "ridge",
)


def _solver_class(reading: Reading, best: Score, thresholds: Thresholds) -> Class:
    value = reading.value
    level = value(best) - thresholds.tau
    converged = [
        s for s in reading.members("newton") if s.degree and s.degree > thresholds.max_degree
    ]
    least_squares = max(map(value, [*reading.members("ridge"), *converged]))
    polynomials = {s.degree: value(s) for s in reading.members("polynomial")}
    reached = [
        d for d, r2 in polynomials.items() if d and r2 >= level and d <= thresholds.max_degree
    ]
    nearest = min(abs(least_squares - level), abs(max(polynomials.values()) - level))
    if least_squares >= level and not reached:
        return Class("least_squares", None, nearest)
    if reached and least_squares < level:
        return Class("first_order", _least_degree(reading, best, thresholds.tau), nearest)
    return Class("inconclusive" if reached else "unexplained", None, nearest)


def _least_degree(reading: Reading, best: Score, tau: float) -> int:
    """The least degree that the data cannot place below the level: heavy tails move the point."""
    return next(
        s.degree
        for s in reading.members("polynomial")
        if s.degree and reading.deficit(s, best).lo <= tau
    )


@dataclass(frozen=True)
class Standing:
    """How the families stand to the best of them: within the margin, outside, or undecided."""

    equivalent: tuple[str, ...]
    undecided: tuple[str, ...]
    rejected: tuple[str, ...]


def standing(reading: Reading, thresholds: Thresholds) -> Standing:
    """Sorts the learners by the interval of their paired deficit against the margin delta."""
    chosen = {name: reading.chosen(name) for name in reading.names() if name not in nulls()}
    best = max(chosen.values(), key=reading.value)
    groups: dict[str, list[str]] = {"equivalent": [], "undecided": [], "rejected": []}
    for name, score in sorted(chosen.items(), key=lambda item: -reading.value(item[1])):
        deficit = reading.deficit(score, best)
        if name != "spline":
            groups[_place(deficit.lo, deficit.hi, thresholds.delta)].append(name)
    return Standing(**{key: tuple(names) for key, names in groups.items()})


def _place(lo: float, hi: float, delta: float) -> str:
    if hi < delta:
        return "equivalent"
    return "rejected" if lo > delta else "undecided"


def check_instruments(
    read: Callable[[str], Reading], thresholds: Thresholds
) -> tuple[Instrument, ...]:
    """What the rule reads where the answer is known; `read` gives a reading by view."""
    planted = classify(read("planted_mesa"), thresholds).name
    reads = "no power" if planted == "inconclusive" else planted
    checks = [
        Instrument(
            "planted mesa-layer", "least_squares", reads, reads in ("least_squares", "no power")
        )
    ]
    for view, name in (
        ("permuted_twin", "twin with permuted weights"),
        ("swapped_context", "moments of another sequence"),
    ):
        found = classify(read(view), thresholds).name
        checks.append(Instrument(name, "no learner", found, found not in _LEARNERS))
    return tuple(checks)


@dataclass(frozen=True)
class Evidence:
    """All that the verdict rests on.

    Attributes:
        reading: Scores at the output over the judged positions.
        instruments: The checks of the instrument.
        nudge: The nudge of the teacher, where the task allows one.
        findings: The findings, by analysis.
        layers: Number of blocks.
        scope: Input law and positions, in words.
    """

    reading: Reading
    instruments: tuple[Instrument, ...]
    nudge: Nudge | None
    findings: Mapping[str, Finding]
    layers: int
    scope: str


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """The verdict. Instruments first, then the nudge, then the rule."""
    broken = [check for check in evidence.instruments if not check.ok]
    if broken:
        names = ", ".join(f"{check.name} reads {check.reads}" for check in broken)
        return _empty(evidence, f"No verdict: the instruments misread ({names}).")
    found = _class_by_nudge(evidence.nudge, thresholds) or classify(evidence.reading, thresholds)
    groups = standing(evidence.reading, thresholds)
    score = _named(found, groups, evidence.reading)
    level = _level(found, groups, score, evidence)
    family = score.family if score else found.null
    learner = found.name in _LEARNERS
    return Verdict(
        algorithm_class=found.name,
        family=_CONTRACT_NAMES.get(family, family),
        degree=found.degree,
        parameters=dict(score.constants) if score else {},
        equivalent=groups.equivalent if learner else (),
        undecided=groups.undecided if learner else (),
        evidence_level=level,
        distance_to_margin=found.distance,
        statement=_statement(found, score, groups, evidence.reading, thresholds.delta),
        instruments_ok=True,
        instruments=evidence.instruments,
        scope=evidence.scope,
    )


_CONTRACT_NAMES = {
    "normalised_descent": "gradient_descent",
    "nearest_neighbours": "kernel_smoother",
    "oracle": "none",
}


def _class_by_nudge(nudge: Nudge | None, thresholds: Thresholds) -> Class | None:
    """One-teacher tasks: a model that ignores a turn of its teacher has memorised it."""
    if nudge is None or not nudge.single or nudge.clipped > thresholds.clipped:
        return None
    if nudge.alpha >= thresholds.nudge_follows:
        return None
    distance = thresholds.nudge_follows - nudge.alpha
    if nudge.fixed_r2 > thresholds.memorised_r2:
        return Class("context_free", None, distance, "memorised_map")
    return Class("unexplained", None, distance)


def _named(found: Class, groups: Standing, reading: Reading) -> Score | None:
    """The simplest equivalent family of the class, with its fitted constants."""
    if found.null != "none":
        return reading.chosen(found.null)
    preferred = _PREFERRED.get(found.name, ())
    open_ = [*groups.equivalent, *groups.undecided]
    name = next((name for name in preferred if name in groups.equivalent), None)
    name = name or next((name for name in preferred if name in open_), None)
    if name is None:
        return None
    if name == "polynomial":
        return next(s for s in reading.members(name) if s.degree == found.degree)
    return reading.chosen(name)


def _level(found: Class, groups: Standing, score: Score | None, evidence: Evidence) -> int:
    """1: a solver equals the free response and beats every null; 2: the inside agrees."""
    if found.name not in _LEARNERS or score is None or score.family not in groups.equivalent:
        return 0
    reading = evidence.reading
    rivals = [s for s in reading.scores if s.family in nulls()]
    if any(reading.deficit(rival, score).lo <= 0 for rival in rivals):
        return 0
    needed = ["layer_reconstruction"]
    if evidence.layers > 1:
        needed += ["linear_probing", "update_law"]
    found_inside = all(
        name in evidence.findings and evidence.findings[name].outcome == "supports"
        for name in needed
    )
    return 2 if found_inside else 1


def _empty(evidence: Evidence, statement: str) -> Verdict:
    return Verdict(
        algorithm_class="inconclusive",
        family="none",
        degree=None,
        parameters={},
        equivalent=(),
        undecided=(),
        evidence_level=0,
        distance_to_margin=float("nan"),
        statement=statement,
        instruments_ok=all(check.ok for check in evidence.instruments),
        instruments=evidence.instruments,
        scope=evidence.scope,
    )


def _statement(
    found: Class, score: Score | None, groups: Standing, reading: Reading, delta: float
) -> str:
    """The verdict in one sentence."""
    if found.name in _LEARNERS:
        runs = "solves least squares"
        if found.name == "first_order":
            one = found.degree == 1
            runs = "runs one gradient step" if one else f"runs a {found.degree}-step iteration"
        return f"The forward pass {runs} on its own context: {_fit(score, groups, reading, delta)}."
    return {
        "context_free": "No learning algorithm found: a fixed map of the query does as well.",
        "copy": "No learning algorithm found: a fixed mixture of the last tokens does as well.",
        "kernel": "No learning algorithm found: a weighted average of the context does as well.",
        "inconclusive": "Inconclusive: a short iteration and least squares fit equally well.",
    }.get(found.name, "No learning algorithm found: no solver explains the predictions.")


def _fit(score: Score | None, groups: Standing, reading: Reading, delta: float) -> str:
    if score is None:
        return "no single family stands out"
    others = [_words(name) for name in groups.equivalent if name != score.family]
    also = f"; within {delta:g} of the best R^2 too: {', '.join(others)}" if others else ""
    shown = {key: value for key, value in score.constants.items() if key != "degree"}
    inside = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
    constants = f" ({inside})" if 0 < len(shown) <= 3 else ""
    share = f"{reading.value(score):.1%} of its predictions"
    return f"{_words(score.family)}{constants} explains {share}{also}"


_WORDS = {
    "ridge": "ridge regression",
    "newton": "Newton's iteration",
    "chebyshev": "Chebyshev iteration",
    "preconditioned_gd": "preconditioned gradient descent",
}


def _words(family: str) -> str:
    return _WORDS.get(family, family.replace("_", " "))
