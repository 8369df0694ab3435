"""The history of benchmarks as a figure: how many times as fast as its peer each line was.

`python -m benchmarks.plot [--history FILE] [--out FILE.svg]`. One panel for each module and peer
table, time from left to right, ratios on a log scale; 1 is the peer or the floor itself.
"""

import argparse
import json
import textwrap
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import LogLocator, NullFormatter

HISTORY = Path(__file__).with_name("history.json")
WIDTH, LABEL = 12.0, 64  # inches; characters of a line of a label
DAY, ROOM = timedelta(days=1), 1.5  # beside the first and last run; above and below the ratios

Lines = dict[str, list[tuple[datetime, float]]]


def panels(history: list[dict[str, Any]]) -> dict[str, Lines]:
    """By module and line: dates, and the peer's seconds over ours."""
    found: dict[str, Lines] = {}
    for run in history:
        date = datetime.fromisoformat(run["date"])
        for row in run["rows"]:
            lines = found.setdefault(row["module"], {})
            peer = str(row["peer"]).removesuffix(" (ratio: ours over peer)")
            lines.setdefault(f"{row['name']} — {peer}", []).append(
                (date, row["peer_s"] / row["ours_s"])
            )
    return found


def draw(history: list[dict[str, Any]], out: Path) -> None:
    """Writes the figure."""
    found = panels(history)
    labels = {m: [textwrap.fill(name, LABEL) for name in lines] for m, lines in found.items()}
    heights = [max(1.6, 0.17 * sum(t.count("\n") + 1.6 for t in labels[m])) for m in found]
    figure, axes = plt.subplots(
        len(found),
        1,
        figsize=(WIDTH, sum(heights) + 0.6 * len(found)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (module, lines) in zip(axes[:, 0], found.items(), strict=True):
        _panel(axis, module, dict(zip(labels[module], lines.values(), strict=True)))
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['cores']} cores" for r in history})
    figure.suptitle(f"Times as fast as the peer; measured on {'; '.join(machines)}", fontsize=10)
    plt.rcParams["svg.hashsalt"] = "mesaprobe"
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def _panel(axis: Axes, module: str, lines: Lines) -> None:
    for index, (label, points) in enumerate(lines.items()):
        dates, ratios = zip(*points, strict=True)
        marker = "os^Dv"[index // 10 % 5]
        axis.plot(dates, ratios, marker + "-", ms=4, lw=1, label=f"{label}: {ratios[-1]:.3g}")
    axis.axhline(1, color="0.6", lw=0.8)
    axis.set_yscale("log")
    axis.set_title(module, loc="left", fontsize=10)
    low, high = axis.get_ylim()
    axis.set_ylim(low / ROOM, high * ROOM)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    all_dates = [date for points in lines.values() for date, _ in points]
    axis.set_xlim(min(all_dates) - DAY, max(all_dates) + DAY)
    locator = AutoDateLocator(minticks=2, maxticks=5)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axis.grid(axis="y", color="0.92")
    axis.tick_params(labelsize=8)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)


def main() -> None:
    """Draws the history."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot")
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--out", type=Path, default=HISTORY.with_suffix(".svg"))
    asked = parser.parse_args()
    if not asked.history.exists():
        parser.error(f"{asked.history}: no runs yet; `make bench` adds one")
    draw(json.loads(asked.history.read_text()), asked.out)
    print(asked.out)


if __name__ == "__main__":
    main()
