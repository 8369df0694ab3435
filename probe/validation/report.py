"""validation.json and validation.html, and one paragraph for the terminal."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

import probe
from probe.files import write_atomically
from probe.findings import Figure, HeatMap, IntervalChart, LineChart, Series
from probe.report import palette, svg
from probe.report.figures import render
from probe.report.results import plain
from probe.report.templates import environment
from probe.rule import Thresholds
from probe.validation.run import Validation
from probe.validation.summary import Graded, Rate, worst

_HERE = Path(__file__).parent
LEAST_SPREAD = 0.01  # of stated confidences, below which there is nothing to draw
RATES = {
    "false_positive_rate": "non-optimizers called one",
    "class_accuracy": "classes right",
    "accuracy_without_noise": "classes right without weight noise",
    "accuracy_at_noise_5": "classes right where noise costs 5 % of the loss",
    "family_accuracy": "families named, among learners",
    "family_coverage": "families not rejected, among learners",
    "expected_calibration_error": "expected calibration error",
    "brier": "Brier score",
}


def write_report(validation: Validation, out: Path) -> Path:
    """Writes the files into `out`, validation.json last; each appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    drawings = [(figure, Markup(svg.inline(render(figure)))) for figure in figures(validation)]
    values = {
        "summary": validation.summary,
        "rates": RATES,
        "models": len(validation.graded),
        "sequences": validation.sequences,
        "seed": validation.seed,
        "wrong": sum(not g.right for g in validation.graded),
        "worst": worst(validation.graded),
        "tau": Thresholds.load().tau,
        "confidence": statistics.fmean(g.verdict.confidence for g in validation.graded),
        "drawings": drawings,
        "sentence": sentence(validation),
        "light": Markup(palette.css_variables("light")),
        "dark": Markup(palette.css_variables("dark")),
        "version": probe.__version__,
    }
    write_atomically(out / "validation.html", _template().render(values))
    text = json.dumps(to_dict(validation), indent=1, allow_nan=False)
    write_atomically(out / "validation.json", text + "\n")
    return out / "validation.html"


def to_dict(validation: Validation) -> dict[str, object]:
    """The contract: `models` with label, disguise and verdict; `summary` with intervals."""
    summary = validation.summary
    return {
        "mesaprobe_version": probe.__version__,
        "seed": validation.seed,
        "sequences": validation.sequences,
        "models": [_model(g) for g in validation.graded],
        "summary": {
            **{name: _rate(getattr(summary, name)) for name in RATES},
            "by_disguise": {name: _rate(rate) for name, rate in summary.by_disguise.items()},
            "by_family": {name: _rate(rate) for name, rate in summary.by_family.items()},
            "confusion": summary.confusion.to_dict("index"),
            "confidence_bins": [
                {"confidence": plain(c), "accuracy": plain(a), "count": n}
                for c, a, n in summary.bins
            ],
        },
    }


def _model(graded: Graded) -> dict[str, object]:
    label, verdict = graded.label, graded.verdict
    return {
        "name": label.name,
        "planted": label.planted,
        "planted_family": label.family,
        "task": label.task,
        "label": {
            "class": label.truth.algorithm_class,
            "family": label.truth.family,
            "degree": label.truth.degree,
            "also": list(label.truth.also),
            "blurred": list(label.truth.blurred),
        },
        "disguise": list(label.disguises),
        "redrawn": label.redrawn,
        "verdict": {
            "class": verdict.algorithm_class,
            "family": verdict.family,
            "degree": verdict.degree,
            "equivalent": list(verdict.equivalent),
            "undecided": list(verdict.undecided),
            "confidence": plain(verdict.confidence),
            "distance_to_margin": plain(verdict.distance_to_margin),
            "statement": verdict.statement,
        },
        "right": graded.right,
    }


def _rate(rate: Rate) -> dict[str, object]:
    return {
        "value": plain(rate.value),
        "lo": plain(rate.lo),
        "hi": plain(rate.hi),
        "count": rate.count,
    }


def sentence(validation: Validation) -> str:
    """The outcome in one paragraph."""
    s = validation.summary
    false = s.false_positive_rate
    return (
        f"{len(validation.graded)} models of known algorithm, seed {validation.seed}: "
        f"{round(false.value * false.count)} of {false.count} non-optimizers called one "
        f"(at most {false.hi:.2%} at 95 %), classes right {percent(s.class_accuracy)}, families "
        f"not rejected {percent(s.family_coverage)}, calibration error "
        f"{s.expected_calibration_error.value:.3f}."
    )


def percent(rate: Rate) -> str:
    """A rate with its interval."""
    if math.isnan(rate.value):
        return "n/a"
    return f"{rate.value:.1%} [{rate.lo:.1%}, {rate.hi:.1%}]"


def interval(rate: Rate, digits: int = 1) -> str:
    """The ends of a rate."""
    if math.isnan(rate.value):
        return "none to count"
    return f"{rate.lo:.{digits}%} to {rate.hi:.{digits}%} of {rate.count}"


def figures(validation: Validation) -> list[Figure]:
    """The confusion matrix, the accuracy by disguise and family, and the confidence."""
    summary = validation.summary
    shares = summary.confusion.div(summary.confusion.sum(axis=1), axis=0)
    confusion = HeatMap(
        name="confusion",
        title="Verdicts by planted class",
        caption="Share of the models of each planted class that were read as each class. Untrained "
        "models run nothing that has a name: any reading but a learner is right.",
        x_label="verdict",
        y_label="planted",
        value_label="share",
        x=tuple(_words(name) for name in shares.columns),
        y=tuple(_words(name) for name in shares.index),
        values=tuple(map(tuple, shares.to_numpy().tolist())),
    )
    intervals = "With exact 95 % intervals; the number of models in brackets."
    noise = "A model may have several. Noise n: weight noise that raises the loss by n %."
    return [
        confusion,
        _rates("disguise", summary.by_disguise, f"{intervals} {noise}"),
        _rates("family", summary.by_family, intervals),
        *_confidence(validation),
    ]


def _rates(name: str, rates: Mapping[str, Rate], caption: str) -> IntervalChart:
    rows = sorted(rates.items(), key=lambda row: -row[1].value)
    return IntervalChart(
        name=f"accuracy_by_{name}",
        title=f"Classes right, by {name}",
        caption=caption,
        x_label="share of classes right",
        labels=tuple(f"{_words(label)} ({rate.count})" for label, rate in rows),
        values=tuple(rate.value for _, rate in rows),
        lo=tuple(rate.lo for _, rate in rows),
        hi=tuple(rate.hi for _, rate in rows),
        limits=(max(0.0, min(rate.lo for _, rate in rows) - 0.02), 1.02),
    )


def _confidence(validation: Validation) -> Iterator[LineChart]:
    """Drawn where verdicts state different confidences; else there is one number to compare."""
    bins = validation.summary.bins
    stated, right = [b[0] for b in bins], [b[1] for b in bins]
    if max(stated) - min(stated) < LEAST_SPREAD:
        return
    yield LineChart(
        name="confidence",
        title="Stated confidence and what came true",
        caption="Five bins of equal count, which fall together where many verdicts state the same. "
        "On the line, confidence is deserved.",
        x_label="stated confidence",
        y_label="share of classes right",
        series=(
            Series("verdicts", stated, right),
            Series("deserved", [min(stated), 1.0], [min(stated), 1.0], role="theory"),
        ),
    )


def _words(name: object) -> str:
    return str(name).replace("_", " ")


@cache
def _template() -> Template:
    templates = environment(_HERE)
    templates.filters |= {"percent": percent, "words": _words, "interval": interval}
    return templates.get_template("validation.html.jinja")
