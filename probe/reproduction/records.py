"""What a reproduction is: rows, what was left out and why, and the summary."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from probe.reproduction.published import MEANS, PROBES

SPREADS = 3.0
MEAN_TOLERANCE = 0.03
SMALLEST = 1e-6  # below, a published probe loss is rounding
AT_START = "position 0: nothing to learn from; low-rank activations are fitted to rounding"
ROUNDING = f"published mean at most {SMALLEST:g}: rounding"


@dataclass(frozen=True)
class Row:
    """One published number beside ours.

    Attributes:
        checkpoint: File of the checkpoint, or name of the reference algorithm.
        quantity: loss, current, next, preconditioned, control, token_binding, features,
            embedded_features, sensitivity, sensitivity_to_older, interpolated or compressed.
        layer: Blocks before the activations; None where no layer is read.
        position: Position, counted from 0; None for a mean over positions.
        published: Mean over the published seeds, or the number where there is one alone.
        spread: Standard deviation over the published seeds (n - 1); None where not published.
        ours: Mean over our samples: 5, or 25 for a loss averaged over positions.
        own_spread: Standard deviation over our samples.
        source: The published file, and the way in it.
        sequences: Of how many sequences each published seed is the mean.
    """

    checkpoint: str
    quantity: str
    layer: int | None
    position: int | None
    published: float
    spread: float | None
    ours: float
    own_spread: float = 0.0
    source: str = ""
    sequences: int = 256

    @property
    def difference(self) -> float:
        """Ours over published, minus 1."""
        return self.ours / self.published - 1 if self.published else math.inf

    @property
    def within(self) -> bool:
        """Whether ours lies within three published spreads; within ours where none is known."""
        spread = self.own_spread if self.spread is None else self.spread
        return abs(self.ours - self.published) <= SPREADS * spread

    @property
    def averaged(self) -> bool:
        """Whether this is a loss averaged over positions."""
        return self.quantity in MEANS and self.position is None

    @property
    def met(self) -> bool | None:
        """Whether the published number is met: averaged losses to 3 %; None if not judged."""
        if self.excluded is not None:
            return None
        return abs(self.difference) <= MEAN_TOLERANCE if self.averaged else self.within

    @property
    def excluded(self) -> str | None:
        """Why a probe cell is not judged; None if it is, or if this is no probe."""
        if self.quantity not in PROBES:
            return None
        if self.position == 0:
            return AT_START
        return ROUNDING if self.published <= SMALLEST else None

    @property
    def judged(self) -> bool:
        """Whether the row is one of the probe cells that the summary pools."""
        return self.quantity in PROBES and self.excluded is None


@dataclass(frozen=True)
class Skipped:
    """What was not compared, and why.

    Attributes:
        what: Which numbers.
        reason: Why.
        file: The result file that holds them, where it is in the folder.
        numbers: How many they are.
    """

    what: str
    reason: str
    file: str = ""
    numbers: int = 0


@dataclass(frozen=True)
class Unmet:
    """A published number that is not met, and why.

    Attributes:
        row: The number beside ours.
        kind: "rounding", "narrow spread", "chance" or "not explained".
        reason: One sentence with the figures that it rests on.
    """

    row: Row
    kind: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What became of one file.

    Attributes:
        file: Its path in the folder.
        quantities: What it says.
        compared: How many of its numbers are rows, averages over positions among them.
        met: How many of those are met.
        not_judged: How many of those are not judged, such as rounding.
        not_compared: How many of its numbers are no rows.
        notes: Why not, and what else the file is for.
    """

    file: str
    quantities: tuple[str, ...]
    compared: int
    met: int
    not_judged: int
    not_compared: int
    notes: tuple[str, ...]

    @property
    def remarks(self) -> str:
        """What it says, and the notes."""
        return "; ".join(filter(None, (", ".join(self.quantities), *self.notes)))


@dataclass(frozen=True)
class MeanLoss:
    """The loss of a model, averaged over positions."""

    checkpoint: str
    quantity: str
    source: str
    published: float
    ours: float
    difference: float


@dataclass(frozen=True)
class Pooled:
    """How well the cells of one quantity agree."""

    quantity: str
    cells: int
    within_3_spreads: float
    median_difference: float


@dataclass(frozen=True)
class Summary:
    """The numbers on top.

    Attributes:
        rows: Number of rows.
        met: Rows that are met.
        unmet: Rows that are not; the others are not judged.
        judged: Probe cells at position >= 1 whose published mean exceeds 1e-6.
        within_3_spreads: Share of judged cells within three published spreads; NaN without any.
        median_difference: Median of |ours / published - 1| over judged cells.
        worst_mean_difference: Largest |ours / published - 1| of a loss averaged over positions.
        worst_checkpoint: Whose loss that is.
        means: The averaged losses.
        quantities: Agreement by quantity; probes by their judged cells, others by all rows.
        excluded: Probe cells that are not judged, by reason.
        skipped: What was not compared, with reasons.
        files: What became of every file of the folder.
        unknown_files: Files in the folder that belong to nothing we know.
    """

    rows: int
    met: int
    unmet: int
    judged: int
    within_3_spreads: float
    median_difference: float
    worst_mean_difference: float
    worst_checkpoint: str
    means: tuple[MeanLoss, ...]
    quantities: tuple[Pooled, ...]
    excluded: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    files: tuple[Coverage, ...]
    unknown_files: int


@dataclass(frozen=True)
class Reproduction:
    """The outcome of `reproduce`."""

    seed: int
    rows: tuple[Row, ...]
    unmet: tuple[Unmet, ...]
    summary: Summary

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; what is not a number becomes null."""
        why = {
            entry.row: {"reason_kind": entry.kind, "reason": entry.reason} for entry in self.unmet
        }
        rows = [
            asdict(row) | {"excluded": row.excluded, "met": row.met} | why.get(row, {})
            for row in self.rows
        ]
        plain = {"seed": self.seed, "summary": asdict(self.summary), "rows": rows}
        return {key: _plain(value) for key, value in plain.items()}


def summarised(
    rows: tuple[Row, ...],
    skipped: tuple[Skipped, ...],
    unknown_files: int,
    files: tuple[Coverage, ...],
) -> Summary:
    """Counts and pools."""
    judged = [row for row in rows if row.judged]
    pooled = _pool("all probes", judged)
    means = _means(rows)
    worst = max(means, key=lambda mean: abs(mean.difference), default=None)
    placed = [row for row in rows if not row.averaged]
    quantities = dict.fromkeys(row.quantity for row in placed)
    return Summary(
        rows=len(rows),
        met=sum(row.met is True for row in rows),
        unmet=sum(row.met is False for row in rows),
        judged=len(judged),
        within_3_spreads=pooled.within_3_spreads,
        median_difference=pooled.median_difference,
        worst_mean_difference=abs(worst.difference) if worst else math.nan,
        worst_checkpoint=worst.checkpoint if worst else "",
        means=means,
        quantities=tuple(
            _pool(name, [r for r in placed if r.quantity == name and r.excluded is None])
            for name in quantities
        ),
        excluded=dict(Counter(row.excluded for row in rows if row.excluded)),
        skipped=skipped,
        files=files,
        unknown_files=unknown_files,
    )


def _pool(name: str, rows: list[Row]) -> Pooled:
    if not rows:
        return Pooled(name, 0, math.nan, math.nan)
    share = sum(row.within for row in rows) / len(rows)
    return Pooled(name, len(rows), share, statistics.median(abs(r.difference) for r in rows))


def _means(rows: tuple[Row, ...]) -> tuple[MeanLoss, ...]:
    return tuple(
        MeanLoss(row.checkpoint, row.quantity, row.source, row.published, row.ours, row.difference)
        for row in rows
        if row.averaged
    )


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
