"""Tables of a comparison, and the rows that the terminal shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from probe.comparison.groups import Obstacle
from probe.comparison.layers import LayerReading
from probe.comparison.losses import Solvers
from probe.comparison.run import Comparison, Model, Side
from probe.comparison.similarity import Similarity, highest
from probe.findings import Table
from probe.report.text import MISSING, estimate, interval, number, words
from probe.statistics import Interval


def summary(side: Side) -> pd.DataFrame:
    """One row per model as it is read: size, loss and how far it is from the others."""
    return pd.DataFrame([_summary_row(model) for model in side.models])


def _summary_row(model: Model) -> dict[str, object]:
    gaps = _gaps(model)
    return {
        "model": model.label,
        "layers": model.subject["layers"],
        "parameters": model.subject["parameters"],
        "loss": (model.reference or {}).get("model_loss", float("nan")),
        "minus the first": _text(gaps["minus_first"]),
        "over the mesa-layer": _text(gaps["over_mesa"]),
        "over the best solver": _text(gaps["over_solver"]),
    }


def models(side: Side) -> pd.DataFrame:
    """One row per model with all ends of intervals."""
    return pd.DataFrame([_model_row(model) for model in side.models])


def _model_row(model: Model) -> dict[str, object]:
    row = {
        "model": model.label,
        "from": model.source,
        "layers": model.subject["layers"],
        "parameters": model.subject["parameters"],
        "loss": (model.reference or {}).get("model_loss", float("nan")),
    }
    for name, gap in _gaps(model).items():
        row |= {name: gap.value, f"{name}_lo": gap.lo, f"{name}_hi": gap.hi} if gap else {}
    return row


def _gaps(model: Model) -> dict[str, Interval | None]:
    """How far the loss is from that of the first model, the mesa-layer and the best solver."""
    reference, losses = model.reference, model.losses
    ends = ("excess_of_model", "excess_lo", "excess_hi")
    return {
        "minus_first": losses.difference if losses else None,
        "over_mesa": Interval(*(reference[key] for key in ends)) if reference else None,
        "over_solver": losses.over_solver if losses else None,
    }


def _text(gap: Interval | None) -> str:
    return estimate(gap) if gap else MISSING


def losses(side: Side) -> pd.DataFrame:
    """Every model and predictor at every position, with the paired difference to the first."""
    return pd.DataFrame(
        [*_measured_losses(side), *_theory(side), *_recorded_losses(side)],
        columns=_LOSS_COLUMNS,
    )


_LOSS_COLUMNS = ("model", "position", "loss", "lo", "hi", "minus_first", "minus_lo", "minus_hi")


def _measured_losses(side: Side) -> Iterator[tuple[object, ...]]:
    for model in side.models:
        if model.losses is None:
            continue
        bands = [model.losses.by_position, model.losses.difference_by_position]
        numbers = [end.tolist() for band in bands if band for end in (band.mean, band.lo, band.hi)]
        for at, row in enumerate(zip(*numbers, strict=True)):
            yield (model.label, at + 1, *row, *[float("nan")] * (6 - len(row)))


def _theory(side: Side) -> Iterator[tuple[object, ...]]:
    for name, loss in side.measured.theory.items() if side.measured else ():
        for at, value in enumerate(loss.tolist()):
            yield (name, at + 1, value, *[float("nan")] * 5)


def _recorded_losses(side: Side) -> Iterator[tuple[object, ...]]:
    for model in side.models:
        if model.losses is None and "behaviour" in model.tables:
            table = model.tables["behaviour"]
            part = table[table["predictor"] == "model"]
            for position, loss, error in zip(
                part["position"], part["loss"], part["loss_se"], strict=True
            ):
                reach = 1.96 * error
                nothing = [float("nan")] * 3
                yield (model.label, position, loss, loss - reach, loss + reach, *nothing)


def solvers(ranked: Solvers) -> pd.DataFrame:
    """Families fitted to the targets, best on the fit split first."""
    return pd.DataFrame(
        [
            {
                "solver": words(solver.family),
                "constants": _constants(solver.constants),
                "loss": solver.loss.value,
                "95 %": interval(solver.loss.lo, solver.loss.hi),
            }
            for solver in ranked.ranked
        ]
    )


def _constants(constants: Mapping[str, float | int]) -> str:
    shown = [f"{words(name)} {number(value)}" for name, value in constants.items()]
    return ", ".join(shown) if 0 < len(shown) <= 4 else f"{len(shown) or 'a matrix'} fitted"


def verdicts(compared: Sequence[Model]) -> Table | None:
    """The verdict of each model; None where none was asked for."""
    rows = [
        {
            "model": model.label,
            "class": words(model.verdict["class"]),
            "family": words(model.verdict["family"]),
            "degree": MISSING if model.verdict["degree"] is None else model.verdict["degree"],
            "evidence": model.verdict["evidence_level"],
            "confidence": f"{model.verdict['confidence'] or 0:.1%}",
            "verdict": model.verdict["statement"],
        }
        for model in compared
        if model.verdict
    ]
    return Table("verdicts", pd.DataFrame(rows)) if rows else None


def layers(readings: Mapping[str, tuple[LayerReading, ...]]) -> pd.DataFrame:
    """One row per model, site and layer that says anything."""
    rows = [
        {
            "model": model,
            "site": reading.site,
            "layer": reading.layer,
            "effective lambda": reading.effective_lambda,
            "gradient steps": float("nan") if reading.steps is None else reading.steps,
            "degree": float("nan") if reading.degree is None else reading.degree,
            "R^2 of the response": reading.spline_r2,
        }
        for model, found in readings.items()
        for reading in found
        if reading.spline_r2 == reading.spline_r2
    ]
    return pd.DataFrame(rows, dtype=object)  # so that counts stay whole beside gaps


def cka_summary(pairs: Sequence[Similarity]) -> pd.DataFrame:
    """One row per pair of models, beside the controls."""
    return pd.DataFrame(
        [
            {
                "models": f"{pair.first}, {pair.second}",
                "last layers": float(pair.values[-1, -1]),
                "last layers, twin": float(pair.twin[-1, -1]),
                "highest after a block": highest(pair.values),
                "highest, twin": highest(pair.twin),
                "highest, another sequence": highest(pair.another),
            }
            for pair in pairs
        ]
    )


def cka(pairs: Sequence[Similarity]) -> pd.DataFrame:
    """One row per pair of layers."""
    rows = []
    for pair in pairs:
        for row in range(pair.values.shape[0]):
            for column in range(pair.values.shape[1]):
                rows.append(
                    {
                        "model": pair.first,
                        "layer": row,
                        "other": pair.second,
                        "other_layer": column,
                        "cka": float(pair.values[row, column]),
                        "another_sequence": float(pair.another[row, column]),
                        "permuted_twin": float(pair.twin[row, column]),
                    }
                )
    return pd.DataFrame(rows)


def not_compared(obstacles: Sequence[Obstacle]) -> pd.DataFrame:
    """One row per comparison that was not made."""
    names = {"model": "model", "other": "with", "missing": "not compared", "why": "why"}
    return pd.DataFrame([asdict(obstacle) for obstacle in obstacles]).rename(columns=names)


TERMINAL_COLUMNS = (
    "model",
    "parameters",
    "loss",
    "minus the first",
    "over mesa-layer",
    "over best solver",
    "class",
)


def terminal_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row per model, as text."""
    return [_terminal_row(model) for model in comparison.models]


def _terminal_row(model: Model) -> tuple[str, ...]:
    return (
        model.label,
        f"{model.subject['parameters']:,}",
        f"{model.reference['model_loss']:.4f}" if model.reference else MISSING,
        *(_fixed(gap) if gap else MISSING for gap in _gaps(model).values()),
        words(model.verdict["class"]) if model.verdict else MISSING,
    )


def _fixed(gap: Interval) -> str:
    return f"{gap.value:.4f}\n[{gap.lo:.4f}, {gap.hi:.4f}]"
