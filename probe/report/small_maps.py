"""Grids of small heat maps: one matrix per cell, cut into named blocks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from probe.findings import HeatMaps, SmallMap
from probe.report import palette
from probe.report.axes import Array, array

_WIDTH, _SIDE, _LARGEST_SIDE = 7.4, 1.55, 2.4
_MARGINS = 1.5  # what labels and the scale take of the width


def draw(figure: HeatMaps, colors: Sequence[str]) -> Canvas:
    """All maps on one scale; corners of blocks carry their sign, which grey print would lose."""
    columns = max((len(row) for row in figure.rows), default=1)
    side = min(_LARGEST_SIDE, (_WIDTH - _MARGINS) / columns)
    height = len(figure.rows) * (side + 0.28) + 0.75
    width = min(_WIDTH, columns * side + _MARGINS + 0.4)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    grid = canvas.subplots(max(1, len(figure.rows)), columns, squeeze=False)
    scale = LinearSegmentedColormap.from_list("diverging", colors)
    norm = TwoSlopeNorm(0, *_reach(figure))
    for line, (row, plots) in enumerate(zip(figure.rows, grid, strict=False)):
        for column, plot in enumerate(plots):
            plot.set_visible(column < len(row))
            if column < len(row):
                _draw_map(plot, row[column], figure.blocks, (scale, norm))
                # Maps that are equal would share an identifier.
                plot.images[0].set_gid(f"{figure.name}-{line}-{column}")
                plot.tick_params(labelleft=column == 0, labelbottom=plots is grid[-1])
    image = next((plot.images[0] for plot in grid.flat if plot.images), None)
    if image is not None:
        bar = canvas.colorbar(image, ax=grid, pad=0.02, shrink=min(1.0, 2.2 / height), aspect=14)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(4))
        bar.ax.tick_params(length=0)
        bar.set_label(figure.value_label, color=palette.MUTED.light)
    canvas.supxlabel(figure.x_label, fontsize=9, color=palette.MUTED.light)
    canvas.supylabel(figure.y_label, fontsize=9, color=palette.MUTED.light)
    return canvas


def _reach(figure: HeatMaps) -> tuple[float, float]:
    sizes = [np.abs(_values(one)) for row in figure.rows for one in row]
    finite = [float(size[np.isfinite(size)].max(initial=0)) for size in sizes]
    reach = max(finite, default=0.0) or 1.0
    return -reach, reach


def _values(one: SmallMap) -> Array:
    return np.array([array(row) for row in one.values])


def _draw_map(
    plot: Axes,
    one: SmallMap,
    blocks: Sequence[str],
    style: tuple[LinearSegmentedColormap, TwoSlopeNorm],
) -> None:
    values = _values(one)
    plot.imshow(values, cmap=style[0], norm=style[1], interpolation="none")
    side = len(values) / len(blocks)
    edges = side * np.arange(1, len(blocks)) - 0.5
    centres = side * (np.arange(len(blocks)) + 0.5) - 0.5
    for edge in edges:
        plot.axhline(edge, color=palette.CONTROL.light, lw=0.5)
        plot.axvline(edge, color=palette.CONTROL.light, lw=0.5)
    for row, signs in enumerate(one.signs):
        for column, sign in enumerate(signs):
            plot.text(
                centres[column] + 0.3 * side, centres[row] - 0.26 * side, sign, ha="center",
                va="center", fontsize=8, color=palette.INK.light,
            )  # fmt: skip
    plot.set_xticks(centres, blocks)
    plot.set_yticks(centres, blocks)
    plot.set_title(one.title, fontsize=8, color=palette.INK.light, pad=3)
    plot.tick_params(length=0, labelsize=8)
    plot.grid(False)
    for spine in plot.spines.values():
        spine.set(visible=True, color=palette.CONTROL.light, lw=0.5)
