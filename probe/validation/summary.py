"""What the grades add up to: error rates with intervals, and whether confidence is deserved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from probe.findings import Verdict
from probe.rule import LEARNERS
from probe.scores import Reading, nulls
from probe.validation.specimens import Label

BINS = 5
DRAWS = 2000


@dataclass(frozen=True)
class Graded:
    """A model with the verdict that was given without sight of its truth."""

    label: Label
    verdict: Verdict
    reading: Reading

    @property
    def right(self) -> bool:
        """Whether the class is the planted one."""
        truth = self.label.truth
        return self.verdict.algorithm_class in (truth.algorithm_class, *truth.also)

    @property
    def is_learner(self) -> bool:
        """Whether one solver was planted."""
        return self.label.truth.algorithm_class in LEARNERS

    @property
    def may_be_false(self) -> bool:
        """Whether calling it a learner would be a false find; a mixture holds a solver."""
        return not self.is_learner and self.label.truth.algorithm_class != "mixture"

    @property
    def false_positive(self) -> bool:
        """A non-optimizer called one."""
        return self.may_be_false and self.verdict.algorithm_class in LEARNERS

    @property
    def covered(self) -> bool:
        """Whether the planted family, or one that holds it since it was blurred, stands."""
        truth = self.label.truth
        open_ = {*self.verdict.equivalent, *self.verdict.undecided}
        return not open_.isdisjoint((truth.family, *truth.blurred))

    @property
    def disguises(self) -> tuple[str, ...]:
        """What hides it; "plain" if nothing does."""
        return self.label.disguises or ("plain",)

    def explained(self) -> str:
        """What the verdict weighed, in numbers."""
        best = {name: self.reading.chosen(name) for name in self.reading.names()}
        shares = {name: self.reading.value(score) for name, score in best.items()}
        solvers = {n: v for n, v in shares.items() if n not in nulls()}
        others = {n: v for n, v in shares.items() if n in nulls()}
        shown = [max(group.items(), key=lambda item: item[1]) for group in (solvers, others)]
        weighed = ("ridge", "newton", "polynomial")
        named = {name: shares[name] for name in weighed} | dict(shown)
        truth = self.label.truth.family
        if truth in shares:
            named[truth] = shares[truth]
        ordered = sorted(named.items(), key=lambda item: -item[1])
        return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in ordered)

    @property
    def noisy(self) -> bool:
        """Whether its weights were changed by noise."""
        return any(name.startswith("noise") for name in self.disguises)


@dataclass(frozen=True)
class Rate:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""

    value: float
    lo: float
    hi: float
    count: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> "Rate":
        """The share of hits; NaN where there is nothing to count."""
        found = list(hits)
        if not found:
            return cls(float("nan"), 0.0, 1.0, 0)
        interval = binomtest(sum(found), len(found)).proportion_ci(0.95, "exact")
        return cls(sum(found) / len(found), interval.low, interval.high, len(found))


@dataclass(frozen=True)
class Summary:
    """The grades of a run.

    Attributes:
        false_positive_rate: Non-optimizers called first_order or least_squares.
        class_accuracy: Classes that are right.
        accuracy_without_noise: The same among models without weight noise.
        accuracy_at_noise_5: The same where noise costs 5 % of the loss.
        family_accuracy: Learners whose family is named.
        family_coverage: Learners whose family is not rejected.
        expected_calibration_error: Mean distance of confidence and accuracy over five bins of
            equal count, with its bootstrap interval.
        brier: Mean squared distance of confidence and outcome.
        by_disguise: Class accuracy by disguise.
        by_family: Class accuracy by planted family.
        confusion: Counts of planted class against verdict.
        bins: (mean confidence, accuracy, count) of each bin.
    """

    false_positive_rate: Rate
    class_accuracy: Rate
    accuracy_without_noise: Rate
    accuracy_at_noise_5: Rate
    family_accuracy: Rate
    family_coverage: Rate
    expected_calibration_error: Rate
    brier: Rate
    by_disguise: Mapping[str, Rate]
    by_family: Mapping[str, Rate]
    confusion: pd.DataFrame
    bins: tuple[tuple[float, float, int], ...]


def worst(graded: Sequence[Graded], count: int = 12) -> list[Graded]:
    """Wrong verdicts: false finds first, then by how sure they were."""
    wrong = [g for g in graded if not g.right]
    return sorted(wrong, key=lambda g: (not g.false_positive, -g.verdict.confidence))[:count]


def summarise(graded: Sequence[Graded]) -> Summary:
    """Counts everything."""
    right = np.array([g.right for g in graded], float)
    confidence = np.array([g.verdict.confidence for g in graded], float)
    learners = [g for g in graded if g.is_learner]
    disguises = sorted({name for g in graded for name in g.disguises})
    families = sorted({g.label.family for g in graded})
    return Summary(
        false_positive_rate=Rate.of(g.false_positive for g in graded if g.may_be_false),
        class_accuracy=Rate.of(g.right for g in graded),
        accuracy_without_noise=Rate.of(g.right for g in graded if not g.noisy),
        accuracy_at_noise_5=Rate.of(g.right for g in graded if "noise_5" in g.disguises),
        family_accuracy=Rate.of(_named(g) for g in learners),
        family_coverage=Rate.of(g.covered for g in learners),
        expected_calibration_error=_resampled(calibration_error, confidence, right),
        brier=_resampled(lambda c, r: float(((c - r) ** 2).mean()), confidence, right),
        by_disguise={
            name: Rate.of(g.right for g in graded if name in g.disguises) for name in disguises
        },
        by_family={
            name: Rate.of(g.right for g in graded if g.label.family == name) for name in families
        },
        confusion=_confusion(graded),
        bins=tuple(_bins(confidence, right)),
    )


def _named(graded: Graded) -> bool:
    return graded.verdict.family == graded.label.truth.family


def _confusion(graded: Sequence[Graded]) -> pd.DataFrame:
    planted = [g.label.truth.algorithm_class for g in graded]
    read = [g.verdict.algorithm_class for g in graded]
    return pd.crosstab(pd.Series(planted, name="planted"), pd.Series(read, name="verdict"))


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Expected calibration error over bins of equal count (Naeini et al. 2015)."""
    parts = [abs(c - r) * n for c, r, n in _bins(confidence, right)]
    return sum(parts) / len(right)


def _bins(
    confidence: NDArray[np.float64], right: NDArray[np.float64]
) -> list[tuple[float, float, int]]:
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return [(float(confidence[p].mean()), float(right[p].mean()), len(p)) for p in parts]


def _resampled(
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    confidence: NDArray[np.float64],
    right: NDArray[np.float64],
) -> Rate:
    """A statistic with its percentile interval over resampled models."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(right), size=(DRAWS, len(right)))
    found = [statistic(confidence[d], right[d]) for d in draws]
    lo, hi = np.quantile(found, [0.025, 0.975])
    return Rate(statistic(confidence, right), float(lo), float(hi), len(right))
