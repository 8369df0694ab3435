"""The symmetries of a learner as data: what is compared with what, and how the number is judged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from probe.findings import Finding
from probe.signature_stage import Contrast, Products, exponent
from probe.statistics import Interval, bootstrap_interval

SCALE = 0.5  # above 1 trained models clip, and the knots of the response end
HARDLY = 1e-3
TABLE = "signatures"  # of readings, with their outcome and whether it caps a verdict

State = Literal["passed", "failed", "undecided", "not testable"]


@dataclass(frozen=True)
class Tolerance:
    """How far from its ideal a signature may be, and whether a failure caps the verdict."""

    tolerance: float
    caps: bool


@cache
def tolerances() -> Mapping[str, Tolerance]:
    """By signature; data, set on planted models."""
    file = Path(__file__).with_name("signature_tolerances.json")
    return {name: Tolerance(**row) for name, row in json.loads(file.read_text()).items()}


@dataclass(frozen=True)
class Share:
    """1 - |error|^2 / |energy|^2 of two contrasts of a trial's predictions."""

    error: Contrast
    energy: Contrast

    def read(self, products: Products) -> Interval:
        """With its interval."""
        return products.explained(self.error, self.energy)


@dataclass(frozen=True)
class Moved:
    """|change|^2 / |energy|^2."""

    change: Contrast
    energy: Contrast

    def read(self, products: Products) -> Interval:
        """With its interval."""
        change, energy = products.square(self.change), products.square(self.energy)
        return bootstrap_interval(lambda weights: (weights @ change) / (weights @ energy))


@dataclass(frozen=True)
class ExcessDegree:
    """The model's degree in the scale minus that of the fitted response."""

    scale: float

    def read(self, products: Products) -> Interval:
        """With its interval."""
        own = exponent(products, self.scale, "clean", "changed")
        expected = exponent(products, self.scale, "expected_clean", "expected")
        return bootstrap_interval(lambda weights: own(weights) - expected(weights))


@dataclass(frozen=True)
class Signature:
    """One symmetry.

    Attributes:
        name: Its name; its tolerance has the same.
        meaning: What the number is.
        trial: Where its predictions come from.
        value: The number.
        ideal: What an exact learner scores.
        blind: What a model that is blind to the change scores; None where that is 0.
        reach: The part of the predictions that the change is about.
    """

    name: str
    meaning: str
    trial: str
    value: Share | Moved | ExcessDegree
    ideal: float = 1.0
    blind: Share | None = None
    reach: Contrast | None = None


_CLEAN, _CHANGED = {"clean": 1}, {"changed": 1}
_BY_VALUES = {"clean": 1, "zeroed": -1}
_BLIND = {"clean": 1, "expected": -1}
_AS_EXPECTED = {"changed": 1, "expected": -1}
SCALED = f"scale {SCALE:g}"

SIGNATURES = (
    Signature(
        "permutation_invariance",
        "R^2 of y(v) - y(0) when the context is in another order; the rest depends on the order",
        "context",
        Share({"permuted": 1, "clean": -1}, _BY_VALUES),
        reach=_BY_VALUES,
    ),
    Signature(
        "value_dependence",
        "|y - y(0)|^2 / |y|^2, with y(0) the prediction when the values of the context are zero",
        "context",
        Moved(_BY_VALUES, _CLEAN),
    ),
    Signature(
        "value_homogeneity",
        "R^2 of y(v / 2) - y(0) by (y(v) - y(0)) / 2, with v the values of the context",
        "context",
        Share({"halved": 1, "clean": -0.5, "zeroed": -0.5}, {"clean": 0.5, "zeroed": -0.5}),
        reach=_BY_VALUES,
    ),
    Signature(
        "value_additivity",
        "R^2 of y(v) - y(0) by the sum of the same for two parts of every value, v = v_1 + v_2",
        "context",
        Share({"one": 1, "other": 1, "clean": -1, "zeroed": -1}, _BY_VALUES),
        reach=_BY_VALUES,
    ),
    Signature(
        "mixed_pairs",
        "R^2 on two sequences spliced into one, by the response of unchanged sequences",
        "splice",
        Share(_AS_EXPECTED, _CHANGED),
        blind=Share(_BLIND, _CLEAN),
    ),
    Signature(
        "rotation_equivariance",
        "R^2 of the predictions on turned states by the turned predictions",
        "rotation",
        Share(_AS_EXPECTED, {"expected": 1}),
        blind=Share(_BLIND, {"expected": 1}),
    ),
    Signature(
        "scaling_response",
        f"R^2 on states times {SCALE:g}, by the response of unchanged sequences",
        SCALED,
        Share(_AS_EXPECTED, _CHANGED),
        blind=Share(_BLIND, _CLEAN),
    ),
    Signature(
        "scaling_exponent",
        "degree in the scale of the states, minus that of the response of unchanged sequences",
        SCALED,
        ExcessDegree(SCALE),
        ideal=0.0,
    ),
)


@dataclass(frozen=True)
class Reading:
    """What a signature reads."""

    signature: Signature
    state: State
    reason: str = ""
    value: Interval | None = None
    blind: Interval | None = None

    @property
    def tolerance(self) -> Tolerance:
        """Of the signature."""
        return tolerances()[self.signature.name]


def read_signature(signature: Signature, products: Products) -> Reading:
    """Decides by the interval: inside the tolerance, outside, or across its edge."""
    tolerance = tolerances()[signature.name].tolerance
    value = signature.value.read(products)
    blind = signature.blind.read(products) if signature.blind else None

    def reading(state: State, reason: str = "") -> Reading:
        return Reading(signature, state, reason, value, blind)

    if signature.reach and Moved(signature.reach, _CLEAN).read(products).value < HARDLY:
        return reading("not testable", "the values hardly move the predictions")
    if not value.lo <= value.hi:
        return reading("not testable", "there is no prediction to compare")
    if blind and blind.hi >= signature.ideal - tolerance:
        return reading("not testable", "the change hardly moves what should be predicted")
    low, high = signature.ideal - tolerance, signature.ideal + tolerance
    if low <= value.lo and value.hi <= high:
        return reading("passed")
    if value.hi < low or high < value.lo:
        return reading("failed", _why(products, tolerance))
    return reading("undecided", "the interval crosses the tolerance")


def _why(products: Products, tolerance: float) -> str:
    """A model without a response on its own sequences has none on others."""
    if "expected_clean" not in products.names:
        return ""
    own = products.explained({"clean": 1, "expected_clean": -1}, _CLEAN)
    return f"R^2 {own.value:.2f} on unchanged sequences" if own.hi < 1 - tolerance else ""


def failed_signatures(finding: Finding) -> tuple[str, ...]:
    """Signatures that a learner must show and this model does not: they cap a verdict."""
    return _failed(finding, caps=True)


def narrowing_signatures(finding: Finding) -> tuple[str, ...]:
    """Failed signatures on inputs outside the task's law: they narrow the scope of a verdict."""
    return _failed(finding, caps=False)


def _failed(finding: Finding, caps: bool) -> tuple[str, ...]:
    rows = next(table.frame for table in finding.tables if table.name == TABLE)
    return tuple(rows["signature"][(rows["outcome"] == "failed") & (rows["caps_verdict"] == caps)])
