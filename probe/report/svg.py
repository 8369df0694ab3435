"""Matplotlib figures as small SVG text with the same bytes every time."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from probe.report import palette

# Texts in a group of this name are drawn on a rim of paper, so that lines do not run through them.
HALO = "halo"

_FONTS = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_ROOT = f'font-family="{_FONTS}" stroke-linejoin="round"'
_HALO = f"stroke: {palette.PAPER.light}; stroke-width: 3; paint-order: stroke"
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>\s*", re.DOTALL)
_GLOBAL_STYLE = re.compile(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", re.DOTALL)
_GROUP_NAME = re.compile(r'<g id="(?!halo)[^"]*"')
_LONE_GROUP = re.compile(r"<g>\n((?:<(?:path|use|text)[^\n]*\n?)?)</g>\n")
_NO_ROTATION = re.compile(r' transform="rotate\(-?0 [^"]*\)"')
_TAG = re.compile(r"<[^>]*>")
_LONG_FLOAT = re.compile(r"-?\d+\.\d{2,}")
_FONT = re.compile(r"font-family:[^;\"]*; ")
_HALO_NAME = re.compile(rf'<g id="{HALO}[^"]*"')
_BLANKS = re.compile(r">\s*\n\s*<")


def _style(name: str) -> Any:  # matplotlib types every key
    ink, muted, grid = palette.INK.light, palette.MUTED.light, palette.GRID.light
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.edgecolor": muted,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.7,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.borderpad": 0,
        "legend.borderaxespad": 0.2,
        "legend.labelspacing": 0.45,
        "lines.solid_capstyle": "round",
        "figure.facecolor": palette.PAPER.light,
        "axes.facecolor": "none",
    }


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """The house style; identifiers inside the SVG depend on the name of the figure only."""
    with matplotlib.rc_context(rc=_style(name)):
        yield


def lay_out(canvas: Canvas) -> None:
    """Computes the layout once; drawing does not move anything after it."""
    engine = canvas.get_layout_engine()
    if engine is not None:
        engine.execute(canvas)
        canvas.set_layout_engine(None)


def to_svg(canvas: Canvas, title: str) -> str:
    """A drawn figure as a standalone SVG file on white, its text as text."""
    lay_out(canvas)
    buffer = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(buffer, format="svg", dpi=72, metadata=empty)
    text = _GLOBAL_STYLE.sub("", _HEAD.sub("", buffer.getvalue()))
    text = _TAG.sub(_tidy_tag, text)
    text = _BLANKS.sub(">\n<", text)
    for _ in range(3):
        text = _LONE_GROUP.sub(r"\1", text)
    head, body = text.split(">", 1)
    return f'{head} role="img" {_ROOT}>\n<title>{escape(title)}</title>{body}'


def inline(svg: str) -> str:
    """The same drawing for the page: colours follow light and dark, width follows the column."""
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for ink in palette.INKS:
        svg = svg.replace(ink.light, f"var(--{ink.name})")
    return svg


def _tidy_tag(match: re.Match[str]) -> str:
    tag = _LONG_FLOAT.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), match[0])
    tag = _NO_ROTATION.sub("", _FONT.sub("", tag))
    tag = _GROUP_NAME.sub("<g", _HALO_NAME.sub(f'<g style="{_HALO}"', tag))
    return re.sub(r"\s*\n\s*", " ", tag)
