"""Sets the thresholds of the verdict on planted families that are not reported on."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from probe import rule
from probe.files import write_atomically
from probe.rule import Thresholds
from probe.validation.run import Observed, Progress, grade, observe
from probe.validation.summary import Graded, Rate

# Candidates; the first of each is kept unless another is better.
GRID = {
    "tau": (0.01, 0.0075, 0.0125, 0.015),
    "explained": (0.9, 0.85, 0.8),
    "null_share": (0.8, 0.9, 0.7),
}
FILE = Path(rule.__file__).with_name("thresholds.json")


def calibrate(
    models: int, seed: int, progress: Progress = lambda done, total: None, workers: int = 2
) -> tuple[Thresholds, Rate]:
    """Chooses thresholds and fits the confidence on the calibration half.

    Args:
        models: How many models to draw.
        seed: Seed of the models and of their data.
        progress: Called with steps done and steps in all.
        workers: Threads.

    Returns:
        The thresholds, and the accuracy on the models that set them.
    """
    observed = observe(models, seed, "calibration", progress, workers)
    chosen = choose(observed, Thresholds.load())
    graded = grade(observed, chosen)
    return replace(chosen, confidence=fit_confidence(graded)), Rate.of(g.right for g in graded)


def choose(observed: Sequence[Observed], start: Thresholds) -> Thresholds:
    """The thresholds with fewest false finds, then most right classes; ties keep the first."""
    best, record = start, (math.inf, math.inf)
    for values in itertools.product(*GRID.values()):
        tau, explained, null_share = values
        thresholds = replace(start, tau=tau, explained=explained, null_share=null_share)
        graded = grade(observed, thresholds)
        found = (sum(g.false_positive for g in graded), sum(not g.right for g in graded))
        if found < record:
            best, record = thresholds, found
    return best


def fit_confidence(graded: Sequence[Graded]) -> dict[str, float]:
    """Log odds of a right class over log10 of the distance from the margin (Platt 1999).

    Each outcome is seen once more on either side, so that a perfect record stays finite.
    """
    claimed = [g for g in graded if g.verdict.algorithm_class != "inconclusive"]
    distances = [min(max(g.verdict.distance_to_margin, 1e-5), 1.0) for g in claimed]
    x = np.log10(np.array(distances))[:, None]
    y = np.array([g.right for g in claimed])
    x, y = np.vstack([x, [[x.mean()]] * 2]), np.append(y, [False, True])
    fit = LogisticRegression().fit(x, y)
    return {
        "intercept": round(float(fit.intercept_[0]), 3),
        "slope": round(max(float(fit.coef_[0, 0]), 0.0), 3),
    }


def write(thresholds: Thresholds) -> Path:
    """Writes the file of thresholds."""
    write_atomically(FILE, json.dumps(asdict(thresholds), indent=2) + "\n")
    return FILE
