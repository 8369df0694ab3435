"""What a report says, in the words and order that HTML and Markdown share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probe.findings import Finding, Metric, Reference, Report, Verdict
from probe.report.text import interval, number, scalar, share, words

LEVELS = ("none", "behavioural", "representational", "causal")
MISREAD = "The instruments misread, so no verdict is given."
OUTCOMES = {
    "supports": "supports a learning algorithm",
    "contradicts": "speaks against a learning algorithm",
    "inconclusive": "inconclusive",
}
_LONGEST_VIEW = 40

Controls = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A number as it is printed, with its interval, its meaning and its controls by name."""

    name: str
    value: str
    interval: str
    definition: str
    controls: Controls = ()


def metric_rows(finding: Finding) -> list[Row]:
    """Each metric beside its controls; controls without a metric follow."""
    rows, beside = [], set()
    for name, metric in finding.metrics.items():
        controls = [
            (key, view) for key in finding.controls if (view := _view_of(finding, key, name))
        ]
        beside |= {key for key, _ in controls}
        texts = tuple((_text(key, finding.controls[key]), view) for key, view in controls)
        rows.append(_row(name, metric, controls=texts))
    alone = [(name, entry) for name, entry in finding.controls.items() if name not in beside]
    return rows + [_row(name, control, "control: ") for name, control in alone]


def _row(name: str, metric: Metric, prefix: str = "", controls: Controls = ()) -> Row:
    written = _writer(name, metric)
    ends = interval(metric.lo, metric.hi, written)
    return Row(prefix + words(name), written(metric.value), ends, metric.definition, controls)


def _view_of(finding: Finding, control: str, metric: str) -> str | None:
    """What is seen in the control of a metric: `metric`, `metric (view)` or `some_view_metric`."""
    if control == metric:
        named = finding.controls[control].definition.partition(":")[0].strip(".")
        return named if len(named) < _LONGEST_VIEW else "control"
    view, _, rest = control.removesuffix(f"_{metric}").partition(" (")
    if rest:
        return words(rest.removesuffix(")")) if view == metric else None
    return words(view) if view != control and "_" in view else None


def _text(name: str, control: Metric) -> str:
    row = _row(name, control)
    return f"{row.value} ({row.interval})" if row.interval else row.value


def _writer(name: str, metric: Metric) -> Callable[[float | int | None], str]:
    """Shares of variance have three decimals, other numbers three digits."""
    if isinstance(metric.value, int):
        return number
    return share if "r2" in name or "R²" in metric.definition else number


def reference_rows(reference: Reference) -> list[Row]:
    """The model and the fitted mesa-layer, side by side."""
    ends = interval(reference.excess_lo, reference.excess_hi)

    def row(name: str, value: float | int, definition: str, ends: str = "") -> Row:
        return Row(name, share(value) if "R²" in name else number(value), ends, definition)

    return [
        row(
            "loss of the model", reference.model_loss, "½ mean squared norm of the error, held out"
        ),
        row(
            "loss of the mesa-layer",
            reference.loss,
            f"the same sequences; its λ = {number(reference.ridge)} is fitted on the fit split",
        ),
        row(
            "excess of the model",
            reference.excess_of_model,
            "model minus mesa-layer, paired by sequence; below zero the model is better",
            ends,
        ),
        row(
            "agreement R²",
            reference.agreement_r2,
            "1 − Σ|model − mesa|² / Σ|model|²: high whenever both predict well",
        ),
        row(
            "error R²",
            reference.error_r2,
            "1 − Σ|model − mesa|² / Σ|model − oracle|²: the share of the model's error explained",
        ),
    ]


def verdict_facts(verdict: Verdict) -> list[tuple[str, str]]:
    """What belongs to the verdict beside its sentence."""
    checks = verdict.instruments
    return [
        ("Equivalent", names(verdict.equivalent)),
        ("Undecided", names(verdict.undecided)),
        ("Distance to the margin", f"{share(verdict.distance_to_margin)} of R²"),
        ("Smallest difference seen", f"{share(verdict.minimum_detectable)} of R²"),
        ("Confidence in the class", f"{verdict.confidence:.1%}"),
        ("Instruments", f"{sum(check.ok for check in checks)} of {len(checks)} read true"),
        ("Holds for", verdict.scope),
    ]


def verdict_chips(verdict: Verdict) -> list[str]:
    """Class, family, degree and constants, each in two or three words."""
    chips = [words(verdict.algorithm_class), words(verdict.family)]
    if verdict.degree is not None:
        chips.append(f"degree {verdict.degree}")
    constants = [f"{words(name)} = {number(value)}" for name, value in verdict.parameters.items()]
    return [chip for chip in dict.fromkeys(chips) if chip != "none"] + constants


def names(families: Sequence[str]) -> str:
    """A list of names as words."""
    return ", ".join(words(name) for name in families) or "none"


def details(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """All that is known of subject, task and run, and what did not run, as flat lists."""
    parts = (
        ("Model", report.subject),
        ("Task", report.task),
        ("Analyses that did not run", report.left_out),
        ("Run", report.run),
    )
    return [(title, [*flat(record)]) for title, record in parts if record]


def flat(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested record, each under the names that lead to it."""
    for key, value in record.items():
        name = f"{prefix}{words(str(key))}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(scalar, value)) or "none"
        else:
            yield name, scalar(value)


def files(report: Report) -> list[str]:
    """The files beside the report, as relative paths."""
    tables = [f"tables/{table.name}.csv" for f in report.findings for table in f.tables]
    figures = [f"figures/{figure.name}.svg" for f in report.findings for figure in f.figures]
    return ["results.json", "run.json", "report.md", *sorted(tables), *sorted(figures)]
