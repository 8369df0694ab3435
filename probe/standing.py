"""How families stand to the best of them, and what could hide from the comparison."""

from dataclasses import dataclass

from probe.rule import RESPONSES, Thresholds, contenders
from probe.scores import Reading, Score, nulls, simplest
from probe.statistics import against_margin, equivalence_p, holm, minimum_detectable


@dataclass(frozen=True)
class Standing:
    """How the families stand to the best of them: within the margin, outside, or undecided."""

    equivalent: tuple[str, ...]
    undecided: tuple[str, ...]
    rejected: tuple[str, ...]


def standing(reading: Reading, thresholds: Thresholds) -> Standing:
    """Sorts the learners by two one-sided tests of their paired deficit against the margin delta.

    The reference is the learner of least error on the *fit* split. Chosen by its test errors it
    would owe its place to luck there, and every deficit to it would be too large. The spline is
    not taken whatever happens, since families without a scalar response can pass it.

    Equivalence (a deficit within delta of zero) and rejection (one above delta) are adjusted by
    Holm over the families: the chance that any family is wrongly called equivalent is at most
    the level, and so is the chance that any is wrongly rejected.
    """
    chosen = {name: reading.chosen(name) for name in reading.names() if name not in nulls()}
    best = min(chosen.values(), key=lambda score: score.fit_error)
    ranked = sorted(chosen.values(), key=lambda score: -reading.value(score))
    places = _places(reading, [s for s in ranked if s.family != "spline"], best, thresholds)
    return Standing(
        *(
            tuple(name for name, place in places.items() if place == group)
            for group in ("equivalent", "undecided", "rejected")
        )
    )


def _places(
    reading: Reading, scores: list[Score], best: Score, thresholds: Thresholds
) -> dict[str, str]:
    """Where each family stands to the best, after Holm's adjustment over all of them."""
    gaps = [score.error - best.error for score in scores]
    near = holm([equivalence_p(gap, reading.energy, thresholds.delta) for gap in gaps])
    far = holm([against_margin(gap, reading.energy, thresholds.delta).above for gap in gaps])
    return {
        score.family: _place(equivalent, rejected, thresholds.level)
        for score, equivalent, rejected in zip(scores, near, far, strict=True)
    }


def _place(equivalent: float, rejected: float, level: float) -> str:
    """The place that the adjusted p-values give."""
    if equivalent < level:
        return "equivalent"
    return "rejected" if rejected < level else "undecided"


@dataclass(frozen=True)
class Power:
    """Whether the comparisons that decide the class could show a difference as small as delta.

    Attributes:
        minimum_detectable: The largest difference in R^2 that could hide in one of those that the
            data leave undecided; in any of them where all are decided. Found in 80 % of samples
            of this size by a two-sided test at 5 %.
        enough: Whether no undecided comparison hides more than delta.
    """

    minimum_detectable: float
    enough: bool


def power(reading: Reading, thresholds: Thresholds) -> Power:
    """The power of least squares, and of an iteration of low degree, against the best response.

    It bears on classes that rest on these two comparisons: first_order, least_squares, and
    inconclusive between them.
    """
    responses = [score for score in reading.scores if score.family in RESPONSES]
    best = simplest(sorted(responses, key=lambda score: score.free))
    deciding = [simplest(scores) for scores in contenders(reading, thresholds) if scores]
    places = _places(reading, deciding, best, thresholds)
    hidden = {
        score.family: minimum_detectable(score.error - best.error, reading.energy)
        for score in deciding
    }
    undecided = [hidden[name] for name, place in places.items() if place == "undecided"]
    return Power(
        max(undecided or hidden.values()),
        enough=all(difference <= thresholds.delta for difference in undecided),
    )
