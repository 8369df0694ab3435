"""Limits and ticks of an axis."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from probe.findings import Series
from probe.report.text import power_of_ten

Array = NDArray[np.float64]
_MARGIN = 0.05
_THEORY_SHARE, _THEORY_SHARE_LOG = 0.15, 0.7
_MOST_TICKS = 8


def array(values: Sequence[float | int]) -> Array:
    """Values as float64; what is not a number stays a gap."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def plottable(values: Iterable[Sequence[float | int]], log: bool) -> Array:
    """All numbers that the axis can show, in its own scale."""
    flat: Array = np.concatenate([array(part) for part in values] or [np.empty(0)])
    if log:
        flat = np.log10(flat, where=flat > 0, out=np.full_like(flat, np.nan))
    finite: Array = flat[np.isfinite(flat)]
    return finite


def limits_of_y(series: Sequence[Series], log: bool) -> tuple[float, float] | None:
    """A range that shows what was measured; theory may widen it a little, as it may diverge."""
    measured = plottable([line.y for line in series if line.role != "theory"], log)
    theory = plottable([line.y for line in series if line.role == "theory"], log)
    numbers = measured if measured.size else theory
    if not numbers.size:
        return None
    lo, hi = float(numbers.min()), float(numbers.max())
    room = (hi - lo) * (_THEORY_SHARE_LOG if log else _THEORY_SHARE)
    bands = plottable([end for line in series for end in (line.lo, line.hi) if end], log)
    for other in (theory, bands):
        if other.size:
            lo = max(min(lo, float(other.min())), lo - room)
            hi = min(max(hi, float(other.max())), hi + room)
    return _widened(lo, hi, log)


def limits_of_x(series: Sequence[Series], log: bool) -> tuple[float, float] | None:
    """The range of all lines."""
    numbers = plottable([line.x for line in series], log)
    return _widened(float(numbers.min()), float(numbers.max()), log) if numbers.size else None


def _widened(lo: float, hi: float, log: bool) -> tuple[float, float]:
    margin = _MARGIN * (hi - lo) or (0.1 if log else 0.05 * abs(hi) or 1.0)
    lo, hi = lo - margin, hi + margin
    return (10.0**lo, 10.0**hi) if log else (lo, hi)


def set_ticks(
    axis: Axis, limits: tuple[float, float], log: bool, integers: bool, most: int
) -> None:
    """Few ticks with short labels that are plain text."""
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    ticks = log_ticks(*limits, most) if log else ()
    if ticks:
        axis.set_major_locator(FixedLocator(ticks))
    else:
        axis.set_major_locator(MaxNLocator(most, integer=integers, steps=[1, 2, 5, 10]))
    if log:
        axis.set_major_formatter(FuncFormatter(lambda value, _: log_label(value)))


def log_ticks(lo: float, hi: float, most: int = _MOST_TICKS) -> tuple[float, ...]:
    """Decades, or 1-2-5 steps where few decades are seen; nothing if even those are too coarse."""
    decades = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    fine = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    fine = [tick for tick in fine if lo <= tick <= hi]
    coarse = [10.0**decade for decade in decades if lo <= 10.0**decade <= hi]
    if len(fine) < 2:
        return ()
    if len(fine) <= most:
        return tuple(fine)
    return tuple(coarse[:: math.ceil(len(coarse) / most)])


def log_label(value: float) -> str:
    """0.001 to 10000 as they are, powers of ten beyond."""
    exponent = math.log10(value)
    if -3.01 < exponent < 4.01:
        return f"{value:g}"
    if math.isclose(exponent, round(exponent), abs_tol=1e-9):
        return power_of_ten(round(exponent))
    mantissa = value / 10.0 ** math.floor(exponent)
    return f"{mantissa:g}·{power_of_ten(math.floor(exponent))}"
