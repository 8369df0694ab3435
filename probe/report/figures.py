"""Figures as SVG text, one function per type."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probe.findings import (
    CategoryMap,
    Figure,
    HeatMap,
    HeatMaps,
    IntervalChart,
    LineChart,
    Panels,
)
from probe.report import category_map, lines, palette, small_maps, svg
from probe.report.axes import Array, array
from probe.report.text import share
from probe.report.typeset import typeset

_WIDTH = 7.4
_CELLS_WITH_NUMBERS = 12
_MOST_LABELS = 16
_SHORTEST_LABEL = 18
_CHARACTERS_IN_A_ROW = 84
# Lightness falls evenly, so that grey print keeps the order; neither end is lost on white or black.
_SEQUENTIAL = ("#f6ecc9", "#8fc7a8", "#35909a", "#255d8c", "#2a2a63")
DIVERGING = ("#9c3d10", "#e0915a", "#f1efe9", "#4f9aa8", "#173f68")


def render(figure: Figure) -> str:
    """The figure as a standalone SVG: text as text, no date, the same bytes every time."""
    figure = typeset(figure)
    with svg.drawing(figure.name):
        return svg.to_svg(_draw(figure), figure.title)


@singledispatch
def _draw(figure: Figure) -> Canvas:
    raise TypeError(f"no drawing for {type(figure).__name__}")


@_draw.register
def _(figure: LineChart) -> Canvas:
    return lines.draw([figure])


@_draw.register
def _(figure: Panels) -> Canvas:
    return lines.draw(figure.charts)


@_draw.register
def _(figure: HeatMap) -> Canvas:
    values = np.array([array(row) for row in figure.values]).reshape(len(figure.y), len(figure.x))
    height = float(np.clip(0.27 * len(figure.y) + 1.1, 1.8, 6))
    canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
    plot = canvas.subplots()
    colors, norm, beyond = _color_scale(values, figure.limits)
    image = plot.imshow(values, cmap=colors, norm=norm, aspect="auto", interpolation="none")
    _label_cells(plot, figure)
    if values.shape[1] <= _CELLS_WITH_NUMBERS:
        _write_values(plot, values, norm)
    bar = canvas.colorbar(image, ax=plot, pad=0.02, aspect=16, extend=beyond)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.ax.tick_params(length=0)
    bar.ax.grid(False)
    bar.set_label(textwrap.fill(figure.value_label, 26), color=palette.MUTED.light)
    return canvas


@_draw.register
def _(figure: CategoryMap) -> Canvas:
    return category_map.draw(figure)


@_draw.register
def _(figure: HeatMaps) -> Canvas:
    return small_maps.draw(figure, DIVERGING)


@_draw.register
def _(figure: IntervalChart) -> Canvas:
    rows = len(figure.labels)
    canvas = Canvas(figsize=(_WIDTH, 0.24 * rows + 1.0), layout="constrained")
    plot = canvas.subplots()
    values, lo, hi = (array(numbers) for numbers in (figure.values, figure.lo, figure.hi))
    left, right = figure.limits or _fences(values, lo, hi)
    plot.set(xlim=(left, right), ylim=(rows - 0.4, -0.6), xlabel=figure.x_label)
    groups = figure.groups or ("",) * rows
    for row, group in enumerate(groups):
        _draw_interval(plot, row, values[row], (lo[row], hi[row]), _mark(group))
    _name_groups(canvas, groups)
    plot.set_yticks(range(rows), [textwrap.shorten(text, 44) for text in figure.labels])
    plot.tick_params(axis="y", labelcolor=palette.INK.light)
    plot.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    plot.grid(axis="y", visible=False)
    plot.spines["left"].set_visible(False)
    return canvas


def _color_scale(
    values: Array, limits: tuple[float | int, float | int] | None
) -> tuple[Colormap, Normalize, str]:
    """Colours over the bulk of the values; a few extreme cells are cut off, and the bar says so."""
    if limits is not None:
        return (
            LinearSegmentedColormap.from_list("order", _SEQUENTIAL),
            Normalize(*limits),
            "neither",
        )
    finite = values[np.isfinite(values)]
    if not finite.size:
        finite = np.array([0.0, 1.0])
    lo, hi = float(finite.min()), float(finite.max())
    low, high = np.quantile(finite, [0.05, 0.95])
    spread = 2 * float(high - low)
    bottom, top = max(lo, float(low) - spread), min(hi, float(high) + spread)
    if bottom == top:
        bottom, top = bottom - 0.5, top + 0.5
    beyond = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    extend = beyond[int(lo < bottom), int(hi > top)]
    if bottom < -0.15 * top and top > 0:
        reach = max(-bottom, top)
        colors = LinearSegmentedColormap.from_list("diverging", DIVERGING)
        return colors, TwoSlopeNorm(0, -reach, reach), extend
    return LinearSegmentedColormap.from_list("order", _SEQUENTIAL), Normalize(bottom, top), extend


def _label_cells(plot: Axes, figure: HeatMap) -> None:
    every = -(-len(figure.x) // _MOST_LABELS)
    if every > 2:
        every = -(-every // 5) * 5
    columns, rows = range(0, len(figure.x), every), range(len(figure.y))
    names = [textwrap.shorten(figure.x[column], 30) for column in columns]
    plot.set_xticks(columns, names)
    if sum(map(len, names)) + 2 * len(names) > _CHARACTERS_IN_A_ROW:
        plot.tick_params(axis="x", labelrotation=30)
        for label in plot.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    plot.set_yticks(rows, [textwrap.shorten(label, 30) for label in figure.y])
    fits = max(_SHORTEST_LABEL, 5 * len(figure.y))
    plot.set(xlabel=figure.x_label, ylabel=textwrap.fill(figure.y_label, fits))
    plot.grid(False)
    plot.tick_params(length=0)
    plot.spines[:].set_visible(False)


def _write_values(plot: Axes, values: Array, norm: Normalize) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            share = float(norm(value))
            sequential = not isinstance(norm, TwoSlopeNorm)
            light = share > 0.45 if sequential else abs(share - 0.5) > 0.3
            color = "#fdfdfd" if light else "#1a1a1a"
            plot.text(
                column,
                row,
                f"{round(value, 2) + 0.0:.2f}".replace("-", "−"),
                ha="center",
                va="center",
                color=color,
                fontsize=8,
            )


def _fences(values: Array, lo: Array, hi: Array) -> tuple[float, float]:
    """Limits around the bulk of the rows: one diverged family must not flatten all others."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    first, third = np.quantile(known, [0.25, 0.75])
    reach = 1.5 * (third - first)
    ends = np.concatenate([known, lo[np.isfinite(lo)], hi[np.isfinite(hi)]])
    inside = ends[(ends >= first - reach) & (ends <= third + reach)]
    left, right = inside.min(), inside.max()
    margin = 0.04 * (right - left) or 0.05
    return float(left - margin), float(right + margin)


def _draw_interval(
    plot: Axes, row: int, value: float, ends: tuple[float, float], style: Mapping[str, Any]
) -> None:
    """A mark with its whisker, an arrowhead where it lies beyond the axis, the number beside."""
    left, right = plot.get_xlim()
    weight = "bold" if row == 0 else "normal"
    plot.annotate(
        share(value), (1, row), (6, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontweight=weight, ha="left", va="center", fontsize=8.5,
        color=palette.INK.light,
    )  # fmt: skip
    if not np.isfinite(value):
        return
    inside = left <= value <= right
    if inside and np.isfinite(ends).all():
        whisker = np.clip(ends, left, right)
        plot.plot(whisker, (row, row), color=style["color"], lw=1.6, alpha=0.75)
    marker = style["marker"] if inside else ("<" if value < left else ">")
    at = float(np.clip(value, left, right))
    plot.plot(at, row, **{**style, "marker": marker}, clip_on=False)


def _mark(group: str) -> dict[str, Any]:
    """Solvers are full dots, nulls are hollow, what bounds them is a diamond."""
    color = palette.MODEL[0].light if group in ("", "solver") else palette.MUTED.light
    hollow = group == "null"
    return {
        "marker": {"null": "o", "bound": "D"}.get(group, "o"),
        "color": color,
        "markersize": 5.5,
        "markeredgewidth": 1.2 if hollow else 0,
        "markerfacecolor": palette.PAPER.light if hollow else color,
        "linestyle": "",
    }


def _name_groups(canvas: Canvas, groups: Sequence[str]) -> None:
    shown = list(dict.fromkeys(groups))
    if len(shown) > 1:
        canvas.legend(
            [Line2D([], [], **_mark(group)) for group in shown],
            shown,
            loc="outside upper right",
            ncols=len(shown),
            handletextpad=0.2,
            columnspacing=1.4,
            fontsize=8.5,
            labelcolor=palette.INK.light,
        )
