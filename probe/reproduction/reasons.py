"""Why a number was not met: what its own figures say, and nothing that they do not say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from probe.reproduction.measure import SEEDS
from probe.reproduction.records import SMALLEST, SPREADS, Row, Unmet

ROUNDING = 1e-6  # float32: a spread of this share of the mean is the rounding of the loss
LEVEL = 0.05  # of any number beyond this, where all are met
KINDS = {
    "rounding": "what was published is rounding, in its mean or in its spread",
    "narrow spread": "the five published seeds lie closer together than samples of this size do: "
    "by the spread of our own samples the difference is within three standard errors",
    "chance": "no further off than chance puts one of so many numbers, when a spread is estimated "
    "from five (t with 4 degrees of freedom, Bonferroni at 0.05); averages over positions: within "
    "three standard errors",
    "not explained": "no figure at hand explains it",
}


def error_in_spreads(sequences: int) -> float:
    """Standard error of ours minus published, in units of the published spread.

    Both are means of five, ours of 256 sequences each and theirs of `sequences`.
    """
    return ((1 + sequences / 256) / SEEDS) ** 0.5


def expected_outside(sequences: int = 256) -> float:
    """Share of numbers that chance alone leaves outside three published spreads.

    The published spread is itself an estimate from five: the ratio follows t with 4 degrees of
    freedom if losses are Gaussian. Theirs are not, so this is a lower bound.
    """
    return float(2 * stats.t.sf(SPREADS / error_in_spreads(sequences), SEEDS - 1))


@dataclass(frozen=True)
class UnmetRun:
    """Neighbouring positions that are not met for one kind of reason; they share their sequences.

    Attributes:
        entries: In the order of their positions.
    """

    entries: tuple[Unmet, ...]

    @property
    def worst(self) -> Unmet:
        """That with the largest relative difference."""
        return max(self.entries, key=lambda entry: abs(entry.row.difference))

    @property
    def positions(self) -> str:
        """First and last position, counted from 0; "mean" of an average over positions."""
        first, last = (self.entries[end].row.position for end in (0, -1))
        if first is None:
            return "mean"
        return str(first) if first == last else f"{first} to {last}"


def grouped(entries: Sequence[Unmet]) -> tuple[UnmetRun, ...]:
    """Unmet numbers in runs of neighbouring positions."""
    cells: dict[tuple[object, ...], list[Unmet]] = {}
    for entry in entries:
        row = entry.row
        cells.setdefault(
            (row.source, row.checkpoint, row.quantity, row.layer, entry.kind), []
        ).append(entry)
    runs: list[list[Unmet]] = []
    for own in cells.values():
        for entry in sorted(own, key=lambda entry: entry.row.position or 0):
            if entry is not own[0] and _follows(runs[-1][-1].row, entry.row):
                runs[-1].append(entry)
            else:
                runs.append([entry])
    return tuple(UnmetRun(tuple(run)) for run in runs)


def _follows(before: Row, after: Row) -> bool:
    if before.position is None or after.position is None:
        return False
    return after.position == before.position + 1


def unmet(rows: Sequence[Row]) -> tuple[Unmet, ...]:
    """Every number that is not met, with its reason."""
    compared = sum(row.met is not None for row in rows)
    return tuple(_explained(row, compared) for row in rows if row.met is False)


def _explained(row: Row, compared: int) -> Unmet:
    """Looks for a reason in the figures of the row.

    Args:
        row: The row.
        compared: How many numbers were compared in all, which chance had its way with.
    """
    share = f"relative difference {row.difference:+.2%}".replace("%", " %")
    off = abs(row.ours - row.published)
    if row.averaged:
        error = math.hypot(row.own_spread, row.spread or row.own_spread) / SEEDS**0.5
        errors = f"{off / error:.1f} standard errors of the two means" if error else "no spread"
        kind = "chance" if off <= SPREADS * error else "not explained"
        return Unmet(row, kind, f"{errors}; {share}")
    if row.published <= SMALLEST:
        return Unmet(row, "rounding", f"published mean at most {SMALLEST:g}; {share}")
    if row.spread is not None and row.spread <= ROUNDING * row.published:
        spread = f"the published spread is {row.spread / row.published:.1g} of the mean"
        return Unmet(row, "rounding", f"{spread}, which is rounding; {share}")
    if not row.spread:
        return Unmet(row, "not explained", f"no spread was published; {share}")
    own = off / row.own_spread / error_in_spreads(256) if row.own_spread else math.inf
    if own <= SPREADS:
        wider = f"our five samples spread {row.own_spread / row.spread:.1f} times as far as theirs"
        errors = f"by that spread the difference is {own:.1f} standard errors"
        return Unmet(row, "narrow spread", f"{wider}, and {errors}; {share}")
    t = off / row.spread / error_in_spreads(row.sequences)
    p = float(2 * stats.t.sf(t, SEEDS - 1))
    tested = f"t = {t:.1f} with 4 degrees of freedom, p = {p:.2g}"
    if p * compared >= LEVEL:
        return Unmet(row, "chance", f"{tested}, one of {compared} numbers; {share}")
    return Unmet(row, "not explained", f"{tested}, no chance among {compared}; {share}")
