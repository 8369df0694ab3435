"""The figures of a reproduction, as standalone SVG."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.report import palette
from probe.report.axes import set_ticks
from probe.report.svg import drawing, to_svg
from probe.reproduction.published import LOSS, PROBES
from probe.reproduction.records import SPREADS, Reproduction, Row

CAPTIONS = {
    "agreement": "Published against ours, every judged probe cell. On the line they are equal.",
    "losses": "Loss by position: published (dots; crosses where a second file repeats it) and ours "
    "(line), logarithmic.",
    "deviations": "Ours minus published in published spreads, judged probe cells; the share "
    "outside the two marks is what the summary counts as not reproduced.",
}
_COLUMNS = 4
_TICKS = 5
_MARKS = (".", "x", "+")  # of a model's losses in one file after the other


def draw(reproduction: Reproduction) -> dict[str, str]:
    """All figures for which there are rows."""
    judged = [row for row in reproduction.rows if row.judged]
    losses = [r for r in reproduction.rows if r.quantity == LOSS and not r.averaged]
    drawn = {}
    if judged:
        drawn["agreement"] = _draw("agreement", judged)
        drawn["deviations"] = _draw("deviations", judged)
    if losses:
        drawn["losses"] = _draw("losses", losses)
    return drawn


def _draw(name: str, rows: list[Row]) -> str:
    painter = {"agreement": _agreement, "deviations": _deviations, "losses": _losses}[name]
    with drawing(name):
        return to_svg(painter(rows), CAPTIONS[name])


def _agreement(rows: list[Row]) -> Figure:
    canvas = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = canvas.subplots()
    shown = [row for row in rows if row.ours > 0]
    ends = [f(row.published for row in shown) for f in (min, max)]
    axes.plot(ends, ends, color=palette.THEORY.light, linewidth=1)
    for ink, quantity in zip(palette.MODEL, PROBES, strict=True):
        own = [row for row in shown if row.quantity == quantity]
        x, y = [row.published for row in own], [row.ours for row in own]
        axes.plot(x, y, ".", markersize=2.5, color=ink.light, label=quantity)
    axes.set(xscale="log", yscale="log", xlabel="published", ylabel="ours")
    set_ticks(axes.xaxis, axes.get_xlim(), log=True, integers=False, most=_TICKS)
    set_ticks(axes.yaxis, axes.get_ylim(), log=True, integers=False, most=_TICKS)
    axes.legend(markerscale=4)
    return canvas


def _deviations(rows: list[Row]) -> Figure:
    canvas = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = canvas.subplots()
    inks = dict(zip(PROBES, palette.MODEL, strict=True))
    values = [
        [_clipped(row) for row in rows if row.quantity == quantity and row.spread]
        for quantity in PROBES
    ]
    edges = [step / 4 for step in range(-20, 21)]
    colors = [inks[quantity].light for quantity in PROBES]
    axes.hist(values, edges, stacked=True, color=colors, label=PROBES)
    for mark in (-SPREADS, SPREADS):
        axes.axvline(mark, color=palette.THEORY.light, linewidth=1)
    axes.set(xlabel="difference in published spreads, ends collect the rest", ylabel="cells")
    axes.legend()
    return canvas


def _clipped(row: Row) -> float:
    assert row.spread
    return max(-4.9, min(4.9, (row.ours - row.published) / row.spread))


def _losses(rows: list[Row]) -> Figure:
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.checkpoint, []).append(row)
    lines = math.ceil(len(models) / _COLUMNS)
    canvas = Figure(figsize=(9.6, 1.9 * lines), layout="constrained")
    panels = canvas.subplots(lines, _COLUMNS, sharex=True, squeeze=False).flatten()
    for panel, (name, own) in zip(panels, models.items(), strict=False):
        _panel(panel, name, own)
    for panel in panels[len(models) :]:
        panel.set_visible(False)
    return canvas


def _panel(axes: Axes, name: str, rows: list[Row]) -> None:
    published = list(dict.fromkeys(row.source for row in rows))
    for source, mark in zip(published, _MARKS, strict=False):
        own = [row for row in rows if row.source == source]
        x = [row.position or 0 for row in own]
        axes.plot(x, [r.ours for r in own], color=palette.MODEL[0].light, linewidth=1.3)
        axes.plot(x, [r.published for r in own], mark, color=palette.MODEL[1].light, markersize=3)
    folder, _, file = name.removesuffix(".pkl").rpartition("/")
    axes.set_title(f"{folder}\n{file}" if folder else f"\n{name}", fontsize=7.5)
    axes.set_yscale("log")
    set_ticks(axes.yaxis, axes.get_ylim(), log=True, integers=False, most=_TICKS)
