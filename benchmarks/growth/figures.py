"""Figures of points and fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.growth.fits import Fit

plt.rcParams["svg.hashsalt"] = "mesaprobe"


@dataclass(frozen=True)
class Curve:
    """Points with their fit."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    fit: Fit | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    across: str
    up: str
    curves: tuple[Curve, ...]
    log: bool = True


def _ticks(axis: Axes, points: Sequence[float]) -> None:
    """Few points get a tick each; so near each other powers of ten would be too few."""
    if len(points) <= 5:
        axis.set_xticks(points, [f"{x:,.0f}" for x in points])
        axis.xaxis.set_minor_locator(NullLocator())


def draw(panels: Sequence[Panel], out: Path) -> None:
    """Panels side by side, as SVG with the same bytes for the same numbers."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.4), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        for index, curve in enumerate(panel.curves):
            axis.plot(curve.x, curve.y, "o", ms=4, color=f"C{index}", label=curve.label)
            if curve.fit is not None:
                dense = np.geomspace(min(curve.x), max(curve.x), 100)
                axis.plot(dense, [curve.fit(x) for x in dense], lw=1, color=f"C{index}")
        axis.set_xscale("log")
        if panel.log:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.4 * max(max(curve.y) for curve in panel.curves))
        _ticks(axis, sorted({x for curve in panel.curves for x in curve.x}))
        axis.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
        axis.grid(color="0.93")
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
