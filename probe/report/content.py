"""What a report says, in the words and order that HTML and Markdown share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from probe.findings import Finding, Reference, Report
from probe.report.text import MISSING, interval, number, scalar, words

LEVELS = ("none", "behavioural", "representational", "causal")
MISREAD = "The instruments misread, so no verdict is given."
OUTCOMES = {
    "supports": "supports a learning algorithm",
    "contradicts": "speaks against a learning algorithm",
    "inconclusive": "inconclusive",
}
_ORDER = (
    "spectral_response",
    "behaviour",
    "linear_probing",
    "layer_reconstruction",
    "update_law",
    "teacher_nudge",
)


@dataclass(frozen=True)
class Row:
    """A number as it is printed, with its interval, its control and its meaning."""

    name: str
    value: str
    interval: str
    control: str
    definition: str


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The known analyses in the order of an argument, others by name after them."""
    rank = {name: at for at, name in enumerate(_ORDER)}
    return sorted(findings, key=lambda f: (rank.get(f.analysis, len(rank)), f.analysis))


def metric_rows(finding: Finding) -> list[Row]:
    """Each metric beside the control of its name; controls without a metric follow."""
    rows = [
        Row(
            words(name),
            number(metric.value),
            interval(metric.lo, metric.hi),
            _control(finding, name),
            metric.definition,
        )
        for name, metric in finding.metrics.items()
    ]
    alone = [name for name in finding.controls if name not in finding.metrics]
    return rows + [
        Row(words(name), "", "", _control(finding, name), finding.controls[name].definition)
        for name in alone
    ]


def _control(finding: Finding, name: str) -> str:
    control = finding.controls.get(name)
    if control is None:
        return MISSING
    ends = interval(control.lo, control.hi)
    return f"{number(control.value)} ({ends})" if ends else number(control.value)


def reference_rows(reference: Reference) -> list[Row]:
    """The model and the fitted mesa-layer, side by side."""
    ends = interval(reference.excess_lo, reference.excess_hi)

    def row(name: str, value: float, definition: str, ends: str = "") -> Row:
        return Row(name, number(value), ends, "", definition)

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


def verdict_facts(report: Report) -> list[tuple[str, str]]:
    """What belongs to the verdict beside its sentence."""
    verdict, checks = report.verdict, report.verdict.instruments
    return [
        ("Equivalent", names(verdict.equivalent)),
        ("Undecided", names(verdict.undecided)),
        ("Distance to the margin", f"{number(verdict.distance_to_margin)} of R²"),
        ("Instruments", f"{sum(check.ok for check in checks)} of {len(checks)} read true"),
        ("Holds for", verdict.scope),
    ]


def verdict_chips(report: Report) -> list[str]:
    """Class, family, degree and constants, each in two or three words."""
    verdict = report.verdict
    chips = [words(verdict.algorithm_class), words(verdict.family)]
    if verdict.degree is not None:
        chips.append(f"degree {verdict.degree}")
    constants = [f"{words(name)} = {number(value)}" for name, value in verdict.parameters.items()]
    return [chip for chip in dict.fromkeys(chips) if chip != "none"] + constants


def names(families: Sequence[str]) -> str:
    """A list of names as words."""
    return ", ".join(words(name) for name in families) or "none"


def details(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """All that is known of subject, task and run, as flat lists."""
    parts = (("Model", report.subject), ("Task", report.task), ("Run", report.run))
    return [(title, [*flat(record)]) for title, record in parts if record]


def flat(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested record under their dotted names."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(scalar, value)) or "none"
        else:
            yield name, scalar(value)


def files(report: Report) -> list[str]:
    """The files beside the report, as relative paths."""
    tables = [f"tables/{table.name}.csv" for f in report.findings for table in f.tables]
    figures = [f"figures/{figure.name}.svg" for f in report.findings for figure in f.figures]
    return ["results.json", "run.json", "report.md", *sorted(tables), *sorted(figures)]
