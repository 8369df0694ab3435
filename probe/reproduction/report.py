"""reproduction.json, .html and .md, and one paragraph for the terminal."""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

import probe
from probe.files import write_atomically
from probe.report import palette, svg
from probe.report.templates import environment
from probe.reproduction import figures
from probe.reproduction.reasons import KINDS, expected_outside, grouped
from probe.reproduction.records import Reproduction

_HERE = Path(__file__).parent


def write_report(reproduction: Reproduction, out: Path) -> None:
    """Writes the three files into `out`; each appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    plain = json.dumps(reproduction.to_dict(), indent=1, allow_nan=False)
    drawings = figures.draw(reproduction)
    for name, drawing in drawings.items():
        write_atomically(out / f"{name}.svg", drawing)
    inline = {name: Markup(svg.inline(drawing)) for name, drawing in drawings.items()}
    values = {
        "summary": reproduction.summary,
        "seed": reproduction.seed,
        "unmet": grouped(reproduction.unmet),
        "kinds": KINDS,
        "count": Counter(entry.kind for entry in reproduction.unmet),
        "expected": expected_outside(),
        "drawings": inline,
        "captions": figures.CAPTIONS,
        "sentence": summarise(reproduction),
        "light": Markup(palette.css_variables("light")),
        "dark": Markup(palette.css_variables("dark")),
        "version": probe.__version__,
    }
    for name in ("reproduction.html", "reproduction.md"):
        write_atomically(out / name, _template(f"{name}.jinja").render(values))
    write_atomically(out / "reproduction.json", plain + "\n")


def summarise(reproduction: Reproduction) -> str:
    """The outcome in one paragraph."""
    summary = reproduction.summary
    parts = []
    if summary.judged:
        parts.append(
            f"{summary.judged} probe cells: {_percent(summary.within_3_spreads)} within three "
            f"published spreads, median difference {_percent(summary.median_difference)}."
        )
    if summary.means:
        parts.append(
            f"{len(summary.means)} mean losses: the largest difference is "
            f"{_percent(summary.worst_mean_difference)} ({summary.worst_checkpoint})."
        )
    left_out = sum(summary.excluded.values())
    kinds = Counter(entry.kind for entry in reproduction.unmet)
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    parts.append(
        f"{summary.rows} rows in all: {summary.met} met, {summary.unmet} not met"
        f"{f' ({why})' if why else ''}, {left_out} not judged."
    )
    left = sum(skip.numbers for skip in summary.skipped)
    parts.append(
        f"{left} further numbers in the folder are not compared, each with its reason; "
        f"{summary.unknown_files} unknown files."
    )
    return " ".join(parts)


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{share:.2%}".replace("%", " %")


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"


@cache
def _template(name: str) -> Template:
    templates = environment(_HERE)
    templates.filters |= {"percent": _percent, "number": _number}
    return templates.get_template(name)
