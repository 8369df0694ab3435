"""Which function of the context's moments produces the predictions, at the output and by layer?

Hypothesis: predictions are C_t f(G_t) q_t, and the scalar function f names the algorithm.
Test statistic: held-out R^2 of the best f, and of each family's f, over the judged positions.
Refuted if no f explains the predictions, or if a null explains them as well.
Costs one eigendecomposition per position and one Gram matrix of about a hundred columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch

from probe.analysis import Setting
from probe.findings import (
    Figure,
    Finding,
    IntervalChart,
    LineChart,
    Metric,
    Panels,
    Series,
    Table,
)
from probe.response import half_crossing
from probe.response_stage import OUTPUT, ResponseStage, response_stages
from probe.rule import Thresholds, classify
from probe.scores import CurveBand, Reading, curve_band, nulls, read
from probe.stages import Measured, Results
from probe.statistics import Interval
from probe.tasks.base import label
from probe.views import PLANTED, SUBJECT, SWAPPED, TWIN

R2 = "1 - sum |y - yhat|^2 / sum |y|^2, held out, pooled over the judged positions"
ERROR_R2 = "1 - sum |y - yhat|^2 / sum |y - oracle|^2: share of the model's own error explained"


@dataclass(frozen=True)
class SpectralResponse:
    """The signature analysis."""

    name: str = "spectral_response"
    place: int = 10
    rests_on: frozenset[str] = frozenset({"streams"})
    question: str = "Which function of the context's moments produces the predictions?"

    def stages(self, setting: Setting) -> tuple[ResponseStage, ...]:
        """The responses of the subject and of its controls."""
        return response_stages(setting)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if the output reads as a solver."""
        stages = {view: stage for stage in self.stages(setting) for view in stage.views}
        layered = stages[SUBJECT]
        subject = results[layered, SUBJECT]
        output = read(layered, subject, OUTPUT, "judged")
        bands = {site: curve_band(layered, subject, site) for site in subject.learned.sites}
        metrics = _metrics(output) | _effective(layered, bands, setting)
        controls = {
            f"spline_r2 ({view})": _metric(
                _spline_r2(read(stages[view], results[stages[view], view], OUTPUT, "judged")), R2
            )
            for view in (TWIN, SWAPPED, PLANTED)
        }
        found = classify(output, Thresholds.load())
        learner = found.name in ("first_order", "least_squares")
        spline, best = output.chosen("spline"), _best(output)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome="supports" if learner else "contradicts",
            statement=(
                f"The best scalar response explains {output.value(spline):.1%} of the predictions "
                f"and {output.error_r2(spline).value:.1%} of the model's own error; the best named "
                f"family, {best.replace('_', ' ')}, {output.value(output.chosen(best)):.1%}."
            ),
            metrics=metrics,
            controls=controls,
            does_not_show=(
                "A response at a layer shows what can be decoded there, not that the layer holds "
                "an iterate; and families with the same response cannot be told apart by it."
            ),
            tables=(
                Table("spectral_response", pd.DataFrame(_response_rows(layered, bands))),
                Table("families", pd.DataFrame(_family_rows(layered, subject, setting))),
                Table("effective_lambda", pd.DataFrame(_lambda_rows(layered, bands, setting))),
            ),
            figures=_figures(setting, layered, bands, output),
        )


def _best(reading: Reading) -> str:
    named = [name for name in reading.names() if name not in ("spline", "oracle")]
    return max(named, key=lambda name: reading.value(reading.chosen(name)))


def _spline_r2(reading: Reading) -> Interval:
    return reading.r2(reading.chosen("spline"))


def _metric(interval: Interval, definition: str) -> Metric:
    return Metric(interval.value, definition, interval.lo, interval.hi)


def _metrics(output: Reading) -> dict[str, Metric]:
    metrics = {}
    for name in ("spline", "ridge", "newton", "polynomial", "gradient_descent", "oracle"):
        metrics[f"{name}_r2"] = _metric(output.r2(output.chosen(name)), f"{name}: {R2}")
    for name in ("spline", "ridge"):
        score = output.chosen(name)
        metrics[f"{name}_error_r2"] = _metric(output.error_r2(score), f"{name}: {ERROR_R2}")
    return metrics


def _effective(
    stage: ResponseStage, bands: dict[str, CurveBand], setting: Setting
) -> dict[str, Metric]:
    value = half_crossing(stage.mu, bands[OUTPUT].curve, setting.mu_top)
    definition = (
        "smallest mu where the output's shrinkage passes 1/2 upwards; exact ridge: its lambda"
    )
    return {"effective_lambda": Metric(value, definition)}


def _place(site: str, layers: int) -> tuple[int, str]:
    """(layer, kind) of a site; the output stands after the last layer."""
    kind, _, layer = site.partition(":")
    return (int(layer), kind) if layer else (layers, kind)


def _layers(bands: dict[str, CurveBand]) -> int:
    return max((_place(site, 0)[0] for site in bands), default=0)


def _response_rows(
    stage: ResponseStage, bands: dict[str, CurveBand]
) -> Iterator[dict[str, object]]:
    for site, band in bands.items():
        layer, kind = _place(site, _layers(bands))
        for i, mu in enumerate(stage.columns.knots):
            yield {
                "layer": layer,
                "mu": mu,
                "shrinkage": float(band.curve[i]),
                "lo": float(band.lo[i]),
                "hi": float(band.hi[i]),
                "site": kind,
            }


def _lambda_rows(
    stage: ResponseStage, bands: dict[str, CurveBand], setting: Setting
) -> Iterator[dict[str, object]]:
    for site, band in bands.items():
        layer, kind = _place(site, _layers(bands))
        crossing = half_crossing(stage.mu, band.curve, setting.mu_top)
        yield {"layer": layer, "site": kind, "effective_lambda": crossing}


def _family_rows(
    stage: ResponseStage, subject: Measured, setting: Setting
) -> Iterator[dict[str, object]]:
    for site, window in subject.learned.members:
        layer, kind = _place(site, setting.layers)
        positions = label(getattr(setting.windows, window))
        reading = read(stage, subject, site, window)
        for score in reading.scores:
            r2, error = reading.r2(score), reading.error_r2(score)
            constants = " ".join(f"{key}={value:.6g}" for key, value in score.constants.items())
            yield {
                "layer": layer,
                "positions": positions,
                "family": score.family,
                "parameters": constants or f"{score.free} fitted",
                "r2": r2.value,
                "r2_lo": r2.lo,
                "r2_hi": r2.hi,
                "error_r2": error.value,
                "site": kind,
                "free_constants": score.free,
            }


def _figures(
    setting: Setting, stage: ResponseStage, bands: dict[str, CurveBand], output: Reading
) -> tuple[Figure, ...]:
    charts = tuple(
        _layer_chart(kind, title, setting, stage, bands, output)
        for kind, title in (
            ("decoded", "decoded by a linear probe"),
            ("readout", "the model's own read-out"),
        )
    )
    panels = Panels(
        "response_layers",
        "Response through the layers",
        "Shrinkage mu f(mu): the share of each direction of the context that is already solved, "
        "with 95 % bands; above 1 it overshoots. Grey: what one gradient step and ridge regression "
        "would do, fitted to the output. Learning shows as curves that rise from right to left, "
        "layer by layer.",
        charts,
    )
    return panels, _ranking(output)


def _layer_chart(
    kind: str,
    title: str,
    setting: Setting,
    stage: ResponseStage,
    bands: dict[str, CurveBand],
    output: Reading,
) -> LineChart:
    shown = (stage.mu >= stage.mu[3]) & (stage.mu <= setting.mu_top)
    mu = stage.mu[shown].tolist()
    series = [
        Series(
            f"layer {_place(site, 0)[0]}",
            mu,
            band.curve[shown].tolist(),
            band.lo[shown].tolist(),
            band.hi[shown].tolist(),
        )
        for site, band in bands.items()
        if site.startswith(kind) and site != f"{kind}:0"
    ]
    for name, constants in _theory(output):
        curve = _curve(name, constants, stage.mu[shown])
        series.append(Series(name, mu, curve.tolist(), role="theory"))
    return LineChart(
        f"response_{kind}",
        title,
        "",
        "eigenvalue mu of the context's moment matrix",
        "shrinkage mu f(mu)",
        tuple(series),
        log_x=True,
    )


def _theory(output: Reading) -> list[tuple[str, dict[str, float | int]]]:
    step = next(s for s in output.members("gradient_descent") if s.constants["steps"] == 1)
    ridge = output.chosen("ridge")
    return [("one gradient step", dict(step.constants)), ("ridge", dict(ridge.constants))]


def _curve(name: str, constants: dict[str, float | int], mu: torch.Tensor) -> torch.Tensor:
    if name == "ridge":
        return mu / (mu + constants["lambda"])
    curve = constants["eta"] * mu
    return torch.where(curve <= 1.25, curve, torch.nan)  # beyond, it only leaves the frame


def _ranking(output: Reading) -> IntervalChart:
    scores = [output.chosen(name) for name in output.names()]
    ordered = sorted(scores, key=lambda score: -output.value(score))
    intervals = [output.r2(score) for score in ordered]
    return IntervalChart(
        "families",
        "Families at the output",
        "Held-out R^2 over the judged positions with 95 % intervals. Full dots: solvers. Hollow "
        "dots: nulls, which learn nothing; the oracle among them knows the teacher. Diamond: the "
        "spline, a freely fitted scalar response: what families with such a response can reach.",
        "R^2 of the model's predictions",
        tuple(score.family for score in ordered),
        tuple(max(interval.value, -0.1) for interval in intervals),
        tuple(max(interval.lo, -0.1) for interval in intervals),
        tuple(max(interval.hi, -0.1) for interval in intervals),
        tuple(_group(score.family) for score in ordered),
    )


def _group(family: str) -> str:
    if family == "spline":
        return "bound"
    return "null" if family in nulls() else "solver"


NAMED = {"spectral_response": SpectralResponse()}
