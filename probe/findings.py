"""What analyses hand on: findings with numbers, tables and figures. Reports read nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import PlainSerializer, PlainValidator

from probe.statistics import Interval

Outcome = Literal["supports", "contradicts", "inconclusive"]
Role = Literal["model", "theory", "control"]


@dataclass(frozen=True)
class Metric:
    """A number with its 95 % interval, where it has one, and what it means."""

    value: float | int
    definition: str
    lo: float | int | None = None
    hi: float | int | None = None

    @classmethod
    def of(cls, interval: Interval, definition: str) -> "Metric":
        """A statistic with its interval."""
        return cls(interval.value, definition, interval.lo, interval.hi)


def _frame_to_plain(frame: pd.DataFrame) -> dict[str, Any]:
    columns = {str(name): column.tolist() for name, column in frame.items()}
    return {"columns": columns, "dtypes": {str(n): str(t) for n, t in frame.dtypes.items()}}


def _frame_of_plain(plain: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(plain["columns"]).astype(plain["dtypes"])


Frame = Annotated[pd.DataFrame, PlainValidator(_frame_of_plain), PlainSerializer(_frame_to_plain)]


@dataclass(frozen=True)
class Table:
    """Rows that a user may want to plot again; written as tables/NAME.csv."""

    name: str
    frame: Frame


@dataclass(frozen=True)
class Series:
    """One line with its band. `role` decides how it is drawn: model, theory or control."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    lo: Sequence[float | int] | None = None
    hi: Sequence[float | int] | None = None
    role: Role = "model"


@dataclass(frozen=True)
class Span:
    """A range of the horizontal axis that is marked, with a line at its value, if it has one."""

    label: str
    lo: float | int
    hi: float | int
    value: float | int | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis, and ranges of it that are marked."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class HeatMap:
    """Values on a grid; `values[row][column]` belongs to `y[row]` and `x[column]`.

    `limits` are the ends of the colour scale, where several maps are to be read by one scale.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    value_label: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | int, ...], ...]
    limits: tuple[float | int, float | int] | None = None


@dataclass(frozen=True)
class CategoryMap:
    """Kinds on a grid; `cells[row][column]` is one of `kinds`, or empty where there is nothing.

    `marks` stand in the cells, one for each kind; the first `strong` kinds are drawn to be seen.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    kinds: tuple[str, ...]
    marks: tuple[str, ...]
    strong: int
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SmallMap:
    """One matrix of a grid; `signs[row][column]` stands in the corner of a block of it."""

    title: str
    values: tuple[tuple[float | int, ...], ...]
    signs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class HeatMaps:
    """Rows of small square maps with common blocks and a common scale around zero.

    `blocks` names the equal parts into which rows and columns of each map fall.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    value_label: str
    blocks: tuple[str, ...]
    rows: tuple[tuple[SmallMap, ...], ...]


@dataclass(frozen=True)
class IntervalChart:
    """One value with its interval per row, best first.

    `groups` may name the group of each row: solver, null or bound have marks of their own.
    `limits` are the ends of the axis, where they are not to be found from the values.
    """

    name: str
    title: str
    caption: str
    x_label: str
    labels: tuple[str, ...]
    values: tuple[float | int, ...]
    lo: tuple[float | int, ...]
    hi: tuple[float | int, ...]
    groups: tuple[str, ...] = ()
    limits: tuple[float | int, float | int] | None = None


@dataclass(frozen=True)
class Panels:
    """Small line charts side by side with common axes."""

    name: str
    title: str
    caption: str
    charts: tuple[LineChart, ...]


Figure = LineChart | HeatMap | CategoryMap | HeatMaps | IntervalChart | Panels


@dataclass(frozen=True)
class Finding:
    """The answer of one analysis to its question.

    Attributes:
        analysis: Name of the analysis.
        question: What it asks.
        outcome: Whether the answer supports that the model runs a learning algorithm.
        statement: The answer in one or two sentences.
        metrics: Its numbers.
        controls: The same numbers where nothing should be found.
        does_not_show: What must not be concluded.
        tables: Rows behind the numbers.
        figures: Drawings of them.
        bearing: What it adds to the verdict, or takes from it, as a sentence; empty if nothing.
    """

    analysis: str
    question: str
    outcome: Outcome
    statement: str
    metrics: Mapping[str, Metric]
    controls: Mapping[str, Metric]
    does_not_show: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    bearing: str = ""


@dataclass(frozen=True)
class Instrument:
    """A check of the instrument itself: what it must read, what it read, whether that is right."""

    name: str
    must_read: str
    reads: str
    ok: bool


@dataclass(frozen=True)
class Check(Instrument):
    """A check of the load or the hooks, before anything is claimed.

    Attributes:
        part: What of the model it is about: output, streams, updates, heads, edits, head edits.
        error: The largest error found.
        tolerance: The largest that passes.
    """

    part: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """What the evidence supports. The fields up to `instruments_ok` are those of results.json.

    Attributes:
        algorithm_class: first_order, least_squares, kernel, context_free, copy, lookup, mixture,
            unexplained or inconclusive.
        family: The simplest member of the equivalent set.
        degree: Degree of the polynomial for first_order; None otherwise.
        parameters: Fitted constants of the family.
        equivalent: Families whose held-out R^2 is within the margin of the best.
        undecided: Families that the data can neither accept nor reject.
        evidence_level: 0 none, 1 behavioural, 2 representational, 3 causal.
        distance_to_margin: How far the deciding number is from its threshold, in R^2.
        statement: The verdict in one sentence.
        instruments_ok: Whether every instrument read what it must.
        instruments: The instruments.
        scope: The input law and positions for which the verdict holds.
        confidence: Share of verdicts this far from the margin whose class was right, among models
            with a known algorithm; 0 where no class is claimed.
        minimum_detectable: The largest difference in R^2 that could hide in the comparisons that
            decide between a short iteration and least squares.
        notes: What single analyses add to the statement, or take from it.
    """

    algorithm_class: str
    family: str
    degree: int | None
    parameters: Mapping[str, float | int]
    equivalent: tuple[str, ...]
    undecided: tuple[str, ...]
    evidence_level: int
    distance_to_margin: float | int
    statement: str
    instruments_ok: bool
    instruments: tuple[Instrument, ...]
    scope: str
    confidence: float = 0.0
    minimum_detectable: float = float("nan")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """The mesa-layer fitted on the fit split, beside the model.

    Attributes:
        ridge: Its lambda.
        loss: Its loss, 1/2 mean squared norm over positions.
        model_loss: The model's loss on the same sequences.
        excess_of_model: Model's loss minus the reference's, paired by sequence.
        excess_lo: Lower end of the 95 % interval.
        excess_hi: Upper end.
        agreement_r2: 1 - sum |model - reference|^2 / sum |model|^2.
        error_r2: 1 - sum |model - reference|^2 / sum |model - oracle|^2.
    """

    ridge: float | int
    loss: float | int
    model_loss: float | int
    excess_of_model: float | int
    excess_lo: float | int
    excess_hi: float | int
    agreement_r2: float | int
    error_r2: float | int


@dataclass(frozen=True)
class Report:
    """All that a run has found; the report writers see nothing else.

    Attributes:
        subject: name, format, sha256, layers, parameters.
        task: name, params, sequences, seed.
        verdict: The verdict; None where no task was posed, so that no prediction was judged.
        reference: The fitted mesa-layer, where the task allows one.
        findings: One per analysis, in the order of the report.
        run: Wall time, device, host, versions: what does not follow from the inputs.
        left_out: Why other analyses did not run, by name.
        audit: Checks of the load and the hooks, made before anything is claimed.
    """

    subject: Mapping[str, object]
    task: Mapping[str, object]
    verdict: Verdict | None
    reference: Reference | None
    findings: tuple[Finding, ...]
    run: Mapping[str, object] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    audit: tuple[Check, ...] = ()

    @property
    def answer(self) -> str:
        """What the report says first."""
        if self.verdict is not None:
            return self.verdict.statement
        said = " ".join(finding.statement for finding in self.findings)
        return f"No task was posed, so the model's predictions were not judged. {said}".strip()
