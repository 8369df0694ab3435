"""A comparison as plain values: what compare.json holds."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from probe.comparison.layers import LayerReading
from probe.comparison.losses import Losses
from probe.comparison.measure import Measured
from probe.comparison.run import Comparison, Model
from probe.comparison.similarity import Similarity
from probe.report.results import plain
from probe.statistics import Interval

VERSION = 1

Readings = Mapping[str, tuple[LayerReading, ...]]


def to_dict(comparison: Comparison, readings: Readings) -> dict[str, Any]:
    """Models in groups that share their sequences, and what could not be compared."""
    return {
        "comparison_version": VERSION,
        "sequences": comparison.sequences,
        "seed": comparison.seed,
        "groups": [
            {
                "first": side.first,
                "models": [_model(model, readings[model.label]) for model in side.models],
                **(_measured(side.measured) if side.measured else {}),
            }
            for side in comparison.sides
        ],
        "not_compared": [asdict(obstacle) for obstacle in comparison.obstacles],
    }


def _model(model: Model, readings: tuple[LayerReading, ...]) -> dict[str, Any]:
    return {
        "label": model.label,
        "source": model.source,
        "subject": plain(model.subject),
        "task": plain(model.task),
        "reference": model.reference,
        "verdict": model.verdict,
        "losses": _losses(model.losses) if model.losses else None,
        "by_layer": [plain(asdict(reading)) for reading in readings],
    }


def _losses(losses: Losses) -> dict[str, Any]:
    return {
        "loss": _interval(losses.loss),
        "difference_to_first": _interval(losses.difference) if losses.difference else None,
        "judged": _interval(losses.judged),
        "excess_over_best_solver": _interval(losses.over_solver),
    }


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "solvers": [
            {
                "family": solver.family,
                "constants": plain(solver.constants),
                "loss": _interval(solver.loss),
            }
            for solver in measured.solvers.ranked
        ],
        "cka": [_similarity(pair) for pair in measured.similarities],
    }


def _similarity(pair: Similarity) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "tokens": pair.tokens,
        "values": plain(pair.values.tolist()),
        "another_sequence": plain(pair.another.tolist()),
        "permuted_twin": plain(pair.twin.tolist()),
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "value": plain(interval.value),
        "lo": plain(interval.lo),
        "hi": plain(interval.hi),
    }
