"""What was published and is not reproduced, with one reason each."""

from collections.abc import Iterator
from dataclasses import dataclass

from probe.reproduction.published import (
    CHEBYSHEV,
    COMPARED,
    COMPARED_PARTIAL,
    FEATURES_DECODED,
    FULL,
    INTERPOLATION,
    LOSS,
    NONLINEAR,
    PARTIAL,
    Claim,
)


@dataclass(frozen=True)
class NotCovered:
    """Published numbers that are known and not reproduced.

    Attributes:
        file: Where they stand.
        what: Which numbers of the file.
        reason: Why not.
        numbers: How many, means over seeds where seeds were published.
    """

    file: str
    what: str
    reason: str
    numbers: int


def _not_covered() -> Iterator[NotCovered]:
    probes = "probed under another outlier rule and ridge, which no data at hand could confirm"
    for short in ("contracting", "fixedw"):
        file = f"{FULL}/{short}/probing_results_{short}_multi.pkl"
        yield NotCovered(file, "all", probes, 3 * 50 * 7)
        reason = "the settings of its gradient step could not be confirmed"
        file = f"{FULL}/{short}/seqperf_results_{short}_single.pkl"
        yield NotCovered(file, "all", reason, 2 * 50)
    never = "its weights were never published"
    yield NotCovered(COMPARED_PARTIAL, "entry 1, the hybrid mesa model", never, 50)
    partial = f"{PARTIAL}/tokenanalysis_results.pkl"
    yield NotCovered(partial, "partobs_dict_mesa, the hybrid mesa model", never, 8)
    elsewhere = "its weights, nonlinear_seq_fully/model_mesa_fullfledged.pkl, are not at hand"
    yield NotCovered(
        FEATURES_DECODED, "partobs_dict_mesa after layer 0; from layer 3 on repeats", elsewhere, 48
    )
    inside = "lies inside a training run whose weights at that step were not published"
    yield NotCovered(
        INTERPOLATION, "losses of 33 of 35 steps, 5 runs, as trained and interpolated", inside, 330
    )
    for folder, name, models in (
        (FULL, "all", 3),
        (PARTIAL, "all_partobs", 2),
        (NONLINEAR, "all_nonlin", 2),
    ):
        file = f"{folder}/sensitvity_{name}.pkl"
        yield NotCovered(file, "29 of 30 steps, all but the untrained", inside, models * 16 * 29)
    yield NotCovered(
        CHEBYSHEV,
        "entry 2",
        "repeats entry 0 where it claims to be that of partial observation",
        12,
    )
    few_shot = "the few-shot protocol and its trained tokens are outside this reproduction"
    for name in ("model_mesa_fullfledged", "model_sm_7l_fullfledged"):
        yield NotCovered(f"icl/{name}.pkl", "all", few_shot, 0)
    distilled = "needs training runs, not checkpoints"
    yield NotCovered("linearization/linearization_results.pkl", "all", distilled, 0)


NOT_COVERED = tuple(_not_covered())
UNIDENTIFIED = (Claim(LOSS, COMPARED, ("losses", 1)),)
"""Losses of weights that no list names; they are set beside everything that is measured."""
