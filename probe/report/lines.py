"""Line charts, alone or side by side: the model strong, theory thin and dashed, controls dotted."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.findings import LineChart, Series
from probe.report import axes as scales
from probe.report import palette, svg
from probe.report.direct_labels import LabelSpace

_WIDTH, _HEIGHT = 7.4, 3.6
_PANEL_HEIGHTS = {1: 3.6, 2: 3.2, 3: 2.5}
_MOST_COLUMNS = 3
_LEGEND_CHARACTERS = 26
_MARKERS = "osD^vPX<>h"
_MARKS_PER_LINE = 6
_THEORY_DASHES = ((5.0, 2.2), (2.0, 1.6), (7.0, 2.0, 1.5, 2.0), (9.0, 3.0), (4.0, 1.5, 1.0, 1.5))


@dataclass(frozen=True)
class Stroke:
    """How one line is drawn."""

    color: str
    width: float
    dashes: tuple[float, ...] = ()
    marker: str = ""
    order: int = 3
    band: float = 0.16
    note: str = ""


def draw(charts: Sequence[LineChart]) -> Canvas:
    """Charts side by side with common axes and one key for all of them."""
    columns = min(len(charts), _MOST_COLUMNS)
    rows = math.ceil(len(charts) / columns)
    height = _HEIGHT if len(charts) == 1 else _PANEL_HEIGHTS[columns] * rows + 0.3
    canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    strokes = choose_strokes([line for chart in charts for line in chart.series])
    plots = list(grid.flat)
    for plot in plots[len(charts) :]:
        plot.remove()
    for at, (plot, chart) in enumerate(zip(plots, charts, strict=False)):
        _draw_lines(plot, chart.series, strokes)
        _name_axes(plot, chart, len(charts) > 1, at % columns == 0, at + columns >= len(charts))
    _set_scales(plots[: len(charts)], charts)
    strokes = _note_hidden(plots[0], [s for c in charts for s in c.series], strokes)
    marks = _draw_spans(plots, charts)
    if len(charts) == 1:
        _label_theory(canvas, plots[0], charts[0], strokes, marks)
    else:
        canvas.supxlabel(charts[0].x_label, x=0.43, fontsize=9, color=palette.MUTED.light)
        _draw_key(canvas, strokes, frozenset(), marks)
    return canvas


def choose_strokes(series: Sequence[Series]) -> dict[str, Stroke]:
    """One stroke per label, the same in every panel; model first, then theory, then controls."""
    by_role = {
        role: list(dict.fromkeys(line.label for line in series if line.role == role))
        for role in ("model", "theory", "control")
    }
    inks = palette.model_inks(len(by_role["model"]))
    band = 0.16 if len(inks) <= len(palette.MODEL) else 0.08
    strokes = {
        label: Stroke(ink.light, 1.8, marker=_MARKERS[at % len(_MARKERS)], order=4, band=band)
        for at, (label, ink) in enumerate(zip(by_role["model"], inks, strict=True))
    }
    for at, label in enumerate(by_role["theory"]):
        dashes = _THEORY_DASHES[at % len(_THEORY_DASHES)]
        strokes.setdefault(label, Stroke(palette.THEORY.light, 1.2, dashes, order=3))
    longer = {line.label for line in series if len(line.x) > 1}
    for at, label in enumerate(by_role["control"]):
        dashes = (1.0, 1.6 + 1.2 * at)
        marker = _MARKERS[-1 - at % len(_MARKERS)] if at or label not in longer else ""
        strokes.setdefault(label, Stroke(palette.CONTROL.light, 1.3, dashes, marker, order=2))
    return strokes


def _draw_lines(plot: Axes, series: Sequence[Series], strokes: Mapping[str, Stroke]) -> None:
    for at, line in enumerate(series):
        stroke = strokes[line.label]
        x, y = scales.array(line.x), scales.array(line.y)
        every = max(1, math.ceil(len(x) / _MARKS_PER_LINE))
        plot.add_line(_line(stroke, x, y, (at % every, every)))
        if line.lo is not None and line.hi is not None:
            lo, hi = scales.array(line.lo), scales.array(line.hi)
            plot.fill_between(x, lo, hi, color=stroke.color, alpha=stroke.band, lw=0, zorder=1)


def _line(
    stroke: Stroke, x: Sequence[float] | scales.Array, y: Sequence[float] | scales.Array,
    every: tuple[int, int] = (0, 1),
) -> Line2D:  # fmt: skip
    style: Any = (0, stroke.dashes) if stroke.dashes else "-"
    return Line2D(
        x, y, color=stroke.color, linewidth=stroke.width, linestyle=style, zorder=stroke.order,
        marker=stroke.marker, markersize=4.6, markeredgewidth=0, markevery=every,
    )  # fmt: skip


def _draw_spans(plots: Sequence[Axes], charts: Sequence[LineChart]) -> dict[str, Patch]:
    """Marks ranges of the axis; hues from the far end of those of lines, which few charts reach.

    Returns:
        What the key shows, by label.
    """
    marks: dict[str, Patch] = {}
    for plot, chart in zip(plots, charts, strict=False):
        left, right = plot.get_xlim()
        for span in chart.spans:
            color = palette.MODEL[-1 - list(dict.fromkeys([*marks, span.label])).index(span.label)]
            ends = max(span.lo, left), min(span.hi, right)
            marks[span.label] = plot.axvspan(*ends, color=color.light, alpha=0.16, lw=0, zorder=0)
            if span.value is not None:
                plot.axvline(span.value, color=color.light, lw=1.2, zorder=1)
    return marks


def _name_axes(plot: Axes, chart: LineChart, in_panel: bool, leftmost: bool, lowest: bool) -> None:
    if lowest:
        plot.set_xlabel("" if in_panel else chart.x_label)
        plot.tick_params(labelbottom=True)
    if not in_panel:
        plot.set_title(chart.y_label, color=palette.MUTED.light)
        return
    plot.set_title(textwrap.fill(chart.title, 28), fontweight="bold")
    if leftmost:
        plot.set_ylabel(textwrap.fill(chart.y_label, 28))


def _set_scales(plots: Sequence[Axes], charts: Sequence[LineChart]) -> None:
    series = [line for chart in charts for line in chart.series]
    log_x = charts[0].log_x and bool(scales.plottable([s.x for s in series], True).size)
    log_y = charts[0].log_y and bool(scales.plottable([s.y for s in series], True).size)
    x, y = scales.limits_of_x(series, log_x), scales.limits_of_y(series, log_y)
    whole = all(float(value).is_integer() for line in series for value in line.x)
    most = 8 if len(charts) == 1 else 4
    for plot in plots:
        if x is not None and y is not None:
            if log_x:
                plot.set_xscale("log", nonpositive="mask")
            if log_y:
                plot.set_yscale("log", nonpositive="mask")
            plot.set(xlim=x, ylim=y)
            scales.set_ticks(plot.xaxis, x, log_x, whole, most)
            scales.set_ticks(plot.yaxis, y, log_y, False, 6)
        plot.grid(axis="x", visible=False)


def _label_theory(
    canvas: Canvas,
    plot: Axes,
    chart: LineChart,
    strokes: Mapping[str, Stroke],
    marks: Mapping[str, Patch],
) -> None:
    """Names theory lines where they run, if there is room; the key names the others."""
    named = frozenset(line.label for line in chart.series if line.role == "theory")
    _draw_key(canvas, strokes, named, marks)
    svg.lay_out(canvas)
    lines = [*_edges(chart.series)]
    space = LabelSpace(plot, lines, palette.MUTED.light)
    placed = {
        label for at, label in enumerate(space.owners[: len(chart.series)])
        if label in named and space.place(label, at)
    }  # fmt: skip
    if placed != named:
        _draw_key(canvas, strokes, frozenset(placed), marks)
        canvas.set_layout_engine("constrained")


def _note_hidden(
    plot: Axes, series: Sequence[Series], strokes: Mapping[str, Stroke]
) -> dict[str, Stroke]:
    """The same strokes, with a word in the key for lines that lie outside the frame."""
    hidden = {
        label
        for label in strokes
        if _beyond(plot, [line for line in series if line.label == label])
    }
    return {
        label: replace(stroke, note=" (off the scale)") if label in hidden else stroke
        for label, stroke in strokes.items()
    }


def _beyond(plot: Axes, series: Sequence[Series]) -> bool:
    """Whether these lines have points, all of them above or below the frame."""
    values = np.concatenate([scales.array(line.y) for line in series])
    known = values[np.isfinite(values)]
    bottom, top = plot.get_ylim()
    return bool(known.size) and not ((known >= bottom) & (known <= top)).any()


def _edges(series: Sequence[Series]) -> Iterator[tuple[str, scales.Array, scales.Array]]:
    """All lines under their labels, then both edges of their bands."""
    for line in series:
        yield line.label, scales.array(line.x), scales.array(line.y)
    for line in series:
        for edge in (line.lo, line.hi):
            if edge is not None:
                yield line.label, scales.array(line.x), scales.array(edge)


def _draw_key(
    canvas: Canvas,
    strokes: Mapping[str, Stroke],
    omit: frozenset[str],
    marks: Mapping[str, Patch],
) -> None:
    """The key stands right of the plots, where no line can run."""
    for old in canvas.legends:
        old.remove()
    shown = {label: stroke for label, stroke in strokes.items() if label not in omit}
    if not shown and not marks:
        return
    lines = [_line(stroke, (0.0, 0.5, 1.0), (0.0, 0.0, 0.0), (1, 2)) for stroke in shown.values()]
    names = [*(label + stroke.note for label, stroke in shown.items()), *marks]
    canvas.legend(
        [*lines, *marks.values()],
        [textwrap.fill(name, _LEGEND_CHARACTERS) for name in names],
        loc="outside right upper",
        handlelength=2.4,
        fontsize=8.5,
        labelcolor=palette.INK.light,
    )
