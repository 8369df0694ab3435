"""From numbers to a verdict: the class, the families that cannot be told apart, the evidence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log10

from probe.change_point import Parts
from probe.findings import Finding, Instrument, Verdict
from probe.rule import LEARNERS, Class, Thresholds, classify
from probe.scores import Reading, Score, nulls
from probe.signatures import failed_signatures, narrowing_signatures
from probe.standing import Power, Standing, power, standing

# From the simplest description to the most general; the verdict names the first that is equivalent.
_PREFERRED = {
    "first_order": (
        "gradient_descent",
        "normalised_descent",
        "preconditioned_gd",
        "momentum",
        "chebyshev",
        "polynomial",
    ),
    "least_squares": ("ridge", "newton", "conjugate_gradient"),
}


@dataclass(frozen=True)
class Nudge:
    """Whether the model follows a teacher that is turned a little (see the teacher_nudge analysis).

    Attributes:
        alpha: 1 if it follows the nudged teacher, 0 if it stays with the old one.
        fixed_r2: R^2 of the old teacher's map.
        teachers: How many teachers the task has, if they are few, so that the nudge is judged
            first; 0 if every sequence has its own.
        clipped: How much more of its entries the nudged law clips than the task's own.
    """

    alpha: float
    fixed_r2: float
    teachers: int
    clipped: float


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
        checks.append(Instrument(name, "no learner", found, found not in LEARNERS))
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
        parts: The same positions in two parts, where a change of the algorithm was looked for.
    """

    reading: Reading
    instruments: tuple[Instrument, ...]
    nudge: Nudge | None
    findings: Mapping[str, Finding]
    layers: int
    scope: str
    parts: Parts | None = None


def judge(evidence: Evidence, thresholds: Thresholds) -> Verdict:
    """The verdict. Instruments first, then the nudge, then the rule."""
    broken = [check for check in evidence.instruments if not check.ok]
    if broken:
        names = ", ".join(f"{check.name} reads {check.reads}" for check in broken)
        return _empty(evidence, f"No verdict: the instruments misread ({names}).")
    found = (
        _class_by_nudge(evidence.nudge, thresholds)
        or _mixture(evidence.parts, thresholds)
        or classify(evidence.reading, thresholds)
    )
    able = power(evidence.reading, thresholds)
    if found.name in LEARNERS and not able.enough:
        found = Class("inconclusive", None, able.minimum_detectable - thresholds.delta)
    groups = standing(evidence.reading, thresholds)
    score = _named(found, groups, evidence.reading)
    tested = evidence.findings.get("signatures")
    failed = failed_signatures(tested) if tested else ()
    level = min(_level(found, groups, score, evidence), 1 if failed else 3)
    family = score.family if score else found.null
    open_ = found.name in (*LEARNERS, "inconclusive")
    return Verdict(
        algorithm_class=found.name,
        family=_CONTRACT_NAMES.get(family, family),
        degree=found.degree,
        parameters=dict(score.constants) if score else {},
        equivalent=groups.equivalent if open_ else (),
        undecided=groups.undecided if open_ else (),
        evidence_level=level,
        distance_to_margin=found.distance,
        statement=_statement(found, score, groups, evidence.reading, thresholds.delta)
        + _reservation(found, failed, able, thresholds),
        instruments_ok=True,
        instruments=evidence.instruments,
        scope=_scope(found, evidence),
        confidence=_confidence(found, thresholds),
        minimum_detectable=able.minimum_detectable,
        notes=tuple(f.bearing for f in evidence.findings.values() if f.bearing),
    )


def _scope(found: Class, evidence: Evidence) -> str:
    """The task's own inputs; of a learner, less the changed inputs on which it stops learning."""
    tested = evidence.findings.get("signatures") if found.name in LEARNERS else None
    lost = narrowing_signatures(tested) if tested else ()
    words = ", ".join(name.replace("_", " ") for name in lost)
    return f"{evidence.scope}; not on inputs changed to test {words}" if lost else evidence.scope


def _reservation(found: Class, failed: tuple[str, ...], able: Power, thresholds: Thresholds) -> str:
    """What takes from the sentence before it."""
    if found.name == "inconclusive" and not able.enough:
        return (
            f" These sequences cannot decide: differences of {able.minimum_detectable:.2g} in R^2 "
            f"could hide, more than the margin of {thresholds.delta:g}."
        )
    if not failed or found.name not in LEARNERS:
        return ""
    names = ", ".join(name.replace("_", " ") for name in failed)
    return f" It breaks a symmetry of learners ({names}), which caps the evidence."


def _confidence(found: Class, thresholds: Thresholds) -> float:
    """How often a class this far from the margin is right; none where no class is claimed."""
    if found.name == "inconclusive":
        return 0.0
    distance = min(max(found.distance, 1e-5), 1.0)
    odds = thresholds.confidence["intercept"] + thresholds.confidence["slope"] * log10(distance)
    return 1 / (1 + exp(-odds))


_CONTRACT_NAMES = {
    "normalised_descent": "gradient_descent",
    "nearest_neighbours": "kernel_smoother",
    "oracle": "none",
}


def _class_by_nudge(nudge: Nudge | None, thresholds: Thresholds) -> Class | None:
    """Tasks of few teachers: a model that ignores a turn of its teacher has memorised them."""
    if nudge is None or not nudge.teachers or nudge.clipped > thresholds.clipped:
        return None
    if nudge.alpha >= thresholds.nudge_follows:
        return None
    distance = thresholds.nudge_follows - nudge.alpha
    if nudge.fixed_r2 > thresholds.memorised_r2:
        if nudge.teachers > 1:
            return Class("lookup", None, distance, "pool_lookup")
        return Class("context_free", None, distance, "memorised_map")
    return Class("unexplained", None, distance)


def _mixture(parts: Parts | None, thresholds: Thresholds) -> Class | None:
    """Two algorithms by position: together they explain what no single one does."""
    if parts is None or parts.explained < thresholds.explained:
        return None
    distance = parts.gain.lo - thresholds.mixture
    return Class("mixture", None, distance) if distance > 0 else None


def _named(found: Class, groups: Standing, reading: Reading) -> Score | None:
    """The simplest equivalent family of the class, with its fitted constants."""
    if found.name == "lookup":
        return None
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
    """1: a solver equals the free response and beats every null; 2: the inside agrees.

    3: edits of the inside agree too, of a state in the stream or of the pairs and queries of the
    last block.
    """
    if found.name not in LEARNERS or score is None or score.family not in groups.equivalent:
        return 0
    reading = evidence.reading
    rivals = [s for s in reading.scores if s.family in nulls()]
    if any(reading.deficit(rival, score).lo <= 0 for rival in rivals):
        return 0
    outcomes = {name: finding.outcome for name, finding in evidence.findings.items()}
    # A last block that follows edits of its pairs and queries makes the prediction alone: it is a
    # learner of one layer behind blocks that copy, and no state passes between layers.
    alone = evidence.layers == 1 or outcomes.get("pair_edits") == "supports"
    needed = ("layer_reconstruction",) if alone else _INSIDE
    # A closed form of the weights whose network agrees with the model says what every layer does.
    read = outcomes.get("weights") == "supports"
    inside = read or all(outcomes.get(name) == "supports" for name in needed)
    if not inside or any(outcomes.get(name) == "contradicts" for name in _MECHANISM):
        return 1
    edits = [outcomes.get(name) for name in _CAUSAL]
    return 3 if "supports" in edits and "contradicts" not in edits else 2


_INSIDE = ("layer_reconstruction", "linear_probing", "update_law")
_MECHANISM = ("token_binding", "features", "weights")  # without pairs or features nothing can learn
_CAUSAL = ("interchange", "pair_edits", "ablation")


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
    if found.name in LEARNERS:
        runs = "solves least squares"
        if found.name == "first_order":
            one = found.degree == 1
            runs = "runs one gradient step" if one else f"runs a {found.degree}-step iteration"
        return f"The forward pass {runs} on its own context: {_fit(score, groups, reading, delta)}."
    return {
        "context_free": "No learning algorithm found: a fixed map of the query does as well.",
        "copy": "No learning algorithm found: a fixed mixture of the last tokens does as well.",
        "kernel": "No learning algorithm found: a weighted average of the context does as well.",
        "lookup": (
            "No learning algorithm found: the model recognises which of its training teachers "
            "made the sequence."
        ),
        "mixture": "More than one algorithm: no single one explains early and late positions.",
        "inconclusive": "Inconclusive: a short iteration and least squares are not told apart.",
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
    "momentum": "gradient descent with momentum",
    "chebyshev": "Chebyshev iteration",
    "preconditioned_gd": "preconditioned gradient descent",
}


def _words(family: str) -> str:
    return _WORDS.get(family, family.replace("_", " "))
