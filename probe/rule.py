"""The rule: the class of a predictor, from how well solvers and nulls explain it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probe.scores import Reading, Score, nulls

LEARNERS = ("first_order", "least_squares")
_NULL_CLASS = {
    "memorised_map": "context_free",
    "two_lag_copy": "copy",
    "kernel_smoother": "kernel",
    "nearest_neighbours": "kernel",
    "mean": "kernel",
    "zero": "unexplained",
    "oracle": "unexplained",
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
        mixture: Two algorithms by position must explain this much more than one does.
        transfer: A swapped state must explain this share of what it does to the output.
        level: How often a test may err.
        confidence: Intercept and slope of the log odds that a class is right, over log10 of the
            distance from the margin.
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
    mixture: float
    transfer: float
    level: float
    confidence: Mapping[str, float]

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


def classify(reading: Reading, thresholds: Thresholds) -> Class:
    """The class of a predictor over the judged positions.

    Three numbers decide: S, the best solver with a scalar response; N, the best null; and whether
    S is reached by least squares (ridge, or Newton past the degrees of the polynomials), by a
    polynomial of low degree, by both or by neither. A gradient step on the mean loss depends on t
    as well, so it is first order by itself where no scalar response comes near it.
    """
    value = reading.value
    best_null = max((s for s in reading.scores if s.family in nulls()), key=value)
    response = [s for s in reading.scores if s.family in RESPONSES]
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
RESPONSES = (
    "spline",
    "polynomial",
    "gradient_descent",
    "stepwise_descent",
    "momentum",
    "chebyshev",
    "newton",
    "ridge",
)


def _solver_class(reading: Reading, best: Score, thresholds: Thresholds) -> Class:
    value = reading.value
    level = value(best) - thresholds.tau
    converged, _ = contenders(reading, thresholds)
    least_squares = max(map(value, converged))
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


def contenders(reading: Reading, thresholds: Thresholds) -> tuple[list[Score], list[Score]]:
    """Least squares, with Newton past the degrees of the polynomials; and low polynomials."""
    degree = thresholds.max_degree
    converged = [s for s in reading.members("newton") if s.degree and s.degree > degree]
    iterated = [s for s in reading.members("polynomial") if s.degree and s.degree <= degree]
    return [*reading.members("ridge"), *converged], iterated
