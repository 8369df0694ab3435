"""The rows of a track: checkpoints, layers, onsets."""

from collections.abc import Iterator

import pandas as pd
import torch

from probe.findings import Table
from probe.report.text import words
from probe.response_stage import OUTPUT
from probe.rule import Class
from probe.scores import Reading, Score
from probe.statistics import BLOCKS
from probe.tracking.conclusion import Conclusion, onset_words
from probe.tracking.measure import Measurement, Track
from probe.tracking.onset import Onset, Present, Rises

Row = dict[str, object]
EXPLAINED = ("spline", "ridge", "one_gradient_step")
NULLS = ("oracle", "memorised_map", "kernel_smoother", "two_lag_copy", "mean", "zero")


def score_of(reading: Reading, name: str) -> Score:
    """The member of a family that stands for it; `one_gradient_step` is gradient descent's first.

    Raises:
        StopIteration: The family was not fitted.
    """
    if name != "one_gradient_step":
        return reading.chosen(name)
    return next(s for s in reading.members("gradient_descent") if s.constants["steps"] == 1)


def class_words(found: Class) -> str:
    """A class with its degree, where it has one."""
    degree = f" (degree {found.degree})" if found.degree else ""
    return f"{words(found.name)}{degree}"


def place(site: str) -> tuple[int, str]:
    """(layer, kind) of a site that is no output."""
    kind, _, layer = site.partition(":")
    return int(layer), kind


def layer_sites(track: Track) -> list[str]:
    """The sites that belong to a layer."""
    return [site for site in track.measurements[0].sites if site != OUTPUT]


def checkpoint_table(track: Track, found: Conclusion) -> Table:
    """track.csv: one row per checkpoint; a copy has no numbers of its own."""
    strengths = dict(
        zip([m.step for m in track.measurements], found.strengths[OUTPUT].intervals, strict=True)
    )
    measured = {m.step: m for m in track.measurements}
    rows = []
    for point in track.series.checkpoints:
        row: Row = {"step": point.step, "checkpoint": point.subject.name}
        if point.step in measured:
            row |= _numbers(measured[point.step])
            strength = strengths[point.step]
            row |= {
                "strength": strength.value,
                "strength_lo": strength.lo,
                "strength_hi": strength.hi,
                "class": measured[point.step].found.name,
                "degree": measured[point.step].found.degree,
            }
        row |= {"sha256": point.subject.sha256, "duplicate_of": point.copy_of}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return Table("track", frame.astype({"degree": "Int64", "duplicate_of": "Int64"}))


def _numbers(measurement: Measurement) -> Row:
    loss, site = measurement.loss(), measurement.output
    row: Row = {"loss": loss.value, "loss_lo": loss.lo, "loss_hi": loss.hi}
    for name in EXPLAINED:
        score = score_of(site.own, name)
        r2 = site.own.r2(score)
        row |= {f"{name}_r2": r2.value, f"{name}_r2_lo": r2.lo, f"{name}_r2_hi": r2.hi}
        row[f"{name}_error_r2"] = site.own.error_r2(score).value
    for name in NULLS:
        row[f"{name}_r2"] = site.own.value(score_of(site.own, name))
    null, foreign = site.own.r2(site.null), site.own.r2(site.foreign)
    return row | {
        "best_null": site.null.family,
        "best_null_r2": null.value,
        "foreign_moments_r2": foreign.value,
        "foreign_moments_r2_lo": foreign.lo,
        "foreign_moments_r2_hi": foreign.hi,
    }


def short_table(track: Track) -> Table:
    """The same, as it stands on the page."""
    rows = [
        {
            "step": m.step,
            "loss": m.loss().value,
            "response R²": m.output.own.value(m.output.response),
            "one step R²": m.output.own.value(score_of(m.output.own, "one_gradient_step")),
            "best null R²": m.output.own.value(m.output.null),
            "best null": m.output.null.family,
            "foreign moments R²": m.output.own.value(m.output.foreign),
            "strength": float(m.output.strength(_once())[0]),
            "class": class_words(m.found),
        }
        for m in track.measurements
    ]
    return Table("steps", _rounded(rows))


def _rounded(rows: list[Row]) -> pd.DataFrame:
    """Three decimals, and no zero with a sign."""
    frame = pd.DataFrame(rows).round(3)
    numbers = frame.select_dtypes("float").columns
    return frame.assign(**{name: frame[name] + 0.0 for name in numbers})


def _once() -> torch.Tensor:
    return torch.ones(1, BLOCKS, dtype=torch.float64)


def layer_table(track: Track, found: Conclusion) -> Table:
    """layers.csv: one row per checkpoint, layer and kind of site."""
    return Table("layers", pd.DataFrame(_layer_rows(track, found)))


def _layer_rows(track: Track, found: Conclusion) -> Iterator[Row]:
    for site in layer_sites(track):
        layer, kind = place(site)
        strengths = found.strengths[site].intervals
        for measurement, strength in zip(track.measurements, strengths, strict=True):
            reading = measurement.sites[site]
            r2 = reading.own.r2(reading.response)
            yield {
                "step": measurement.step,
                "layer": layer,
                "site": kind,
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
                "best_null": reading.null.family,
                "best_null_r2": reading.own.value(reading.null),
                "foreign_moments_r2": reading.own.value(reading.foreign),
                "strength": strength.value,
                "strength_lo": strength.lo,
                "strength_hi": strength.hi,
            }


def onset_table(track: Track, found: Conclusion) -> Table:
    """onsets.csv: when the response rises at each site; sites that never rise have no step."""
    rows = [
        {"layer": layer, "site": kind, **onset_row(found.onsets[site])}
        for site in layer_sites(track)
        for layer, kind in (place(site),)
    ]
    return Table("onsets", pd.DataFrame(rows))


def short_onset_table(track: Track, found: Conclusion) -> Table:
    """The same in words, beside what is read at the last checkpoint."""
    rows: list[Row] = []
    for site in layer_sites(track):
        layer, kind = place(site)
        last = track.measurements[-1].sites[site]
        rows.append(
            {
                "layer": layer,
                "site": kind,
                "response rises at step": onset_words(found.onsets[site]),
                "R² at the last": last.own.value(last.response),
                "foreign moments R²": last.own.value(last.foreign),
                "strength": found.strengths[site].intervals[-1].value,
            }
        )
    return Table("layer_onsets", _rounded(rows))


def onset_row(onset: Onset) -> Row:
    """An onset as plain values."""
    if isinstance(onset, Rises):
        return {"rises": "within", "step": onset.step, "lo": onset.lo, "hi": onset.hi}
    nan = float("nan")
    if isinstance(onset, Present):
        return {"rises": "before the first", "step": nan, "lo": nan, "hi": onset.step}
    return {"rises": "never", "step": nan, "lo": nan, "hi": nan}
