"""A grid of kinds: a colour and a mark for each, so that grey print loses nothing."""

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from probe.findings import CategoryMap
from probe.report import palette

_WIDTH, _CELL = 7.4, 0.3
_MOST_MARKED, _MOST_LABELS = 24, 32
# Fixed on both grounds, as their marks are. Strong kinds are dark, the others pale.
_STRONG = ("#a8470a", "#174f80", "#6d3a78")
_PALE = ("#cfe0d8", "#e6dcc3", "#d5dbe6", "#e2e2e2", "#efe4e4", "#dde6c9")
_ON_STRONG, _ON_PALE = "#fdfdfd", "#1a1a1a"


def draw(figure: CategoryMap) -> Canvas:
    """All cells with their marks, and the kinds that occur with their number below."""
    colors = _colors(figure)
    present = [kind for kind in figure.kinds if any(kind in row for row in figure.cells)]
    height = float(np.clip(_CELL * len(figure.y) + 0.9 + 0.2 * len(present) / 3, 1.6, 8))
    canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
    plot = canvas.subplots()
    places = np.full((len(figure.y), len(figure.x)), np.nan)
    for row, cells in enumerate(figure.cells):
        for column, kind in enumerate(cells):
            if kind:
                places[row, column] = figure.kinds.index(kind)
    if places.size:
        shades = ListedColormap([colors[kind] for kind in figure.kinds])
        last = len(figure.kinds) - 0.5
        plot.imshow(places, cmap=shades, vmin=-0.5, vmax=last, aspect="auto", interpolation="none")
    if len(figure.x) <= _MOST_MARKED:
        _write_marks(plot, figure)
    every = -(-len(figure.x) // _MOST_LABELS)
    columns = range(0, len(figure.x), every or 1)
    plot.set_xticks(columns, [figure.x[column] for column in columns])
    plot.set_yticks(range(len(figure.y)), figure.y)
    plot.set_xticks(np.arange(1, len(figure.x)) - 0.5, minor=True)
    plot.set_yticks(np.arange(1, len(figure.y)) - 0.5, minor=True)
    plot.set(xlabel=figure.x_label, ylabel=figure.y_label)
    plot.grid(False)
    plot.grid(which="minor", color=palette.PAPER.light, linewidth=2)
    plot.tick_params(which="both", length=0)
    plot.spines[:].set_visible(False)
    _name_kinds(canvas, figure, present, colors)
    return canvas


def _colors(figure: CategoryMap) -> dict[str, str]:
    strong, pale = figure.kinds[: figure.strong], figure.kinds[figure.strong :]
    return {
        **{kind: _STRONG[i % len(_STRONG)] for i, kind in enumerate(strong)},
        **{kind: _PALE[i % len(_PALE)] for i, kind in enumerate(pale)},
    }


def _write_marks(plot: Axes, figure: CategoryMap) -> None:
    marks = dict(zip(figure.kinds, figure.marks, strict=True))
    strong = figure.kinds[: figure.strong]
    for row, cells in enumerate(figure.cells):
        for column, kind in enumerate(cells):
            if kind:
                plot.text(
                    column, row, marks[kind], ha="center", va="center", fontsize=8,
                    color=_ON_STRONG if kind in strong else _ON_PALE,
                )  # fmt: skip


def _name_kinds(
    canvas: Canvas, figure: CategoryMap, present: list[str], colors: dict[str, str]
) -> None:
    marks = dict(zip(figure.kinds, figure.marks, strict=True))
    counts = Counter(kind for row in figure.cells for kind in row)
    canvas.legend(
        [Patch(color=colors[kind]) for kind in present],
        [f"{marks[kind]}  {kind} ({counts[kind]})" for kind in present],
        loc="outside lower center",
        ncols=3,
        fontsize=8.5,
        handlelength=1.0,
        handleheight=1.0,
        labelcolor=palette.INK.light,
    )
