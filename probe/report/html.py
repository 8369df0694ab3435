"""report.html: one file that needs no network and no script."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

import probe
from probe.findings import Report
from probe.report import content, palette, svg
from probe.report.templates import environment
from probe.report.text import words
from probe.report.typeset import typeset

_HERE = Path(__file__).parent
_TIED = re.compile(r" (?=%)|(?<=[λημα]) (?=\d)|(?<=\bt) (?== \d)|(?<=\bt =) (?=\d)")
_RANGE = re.compile(r"(?<=\d)–(?=\d)")


def html(report: Report, drawings: Mapping[str, str]) -> str:
    """The page, with the drawings (standalone SVG by figure name) set into it."""
    report = typeset(report)
    return _template().render(
        report=report,
        verdict=report.verdict,
        findings=report.findings,
        content=content,
        drawing={name: Markup(svg.inline(text)) for name, text in drawings.items()},
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        light=Markup(palette.css_variables("light")),
        dark=Markup(palette.css_variables("dark")),
        version=probe.__version__,
    )


def _unbroken(value: object) -> object:
    """Keeps a number with its sign or symbol, and both ends of a range, on one line."""
    if isinstance(value, str) and not isinstance(value, Markup):
        value = _TIED.sub("\u00a0", value)
        return _RANGE.sub("–\u2060", value)
    return value


@cache
def _template() -> Template:
    templates = environment(_HERE)
    templates.finalize = _unbroken
    templates.filters["words"] = words
    return templates.get_template("report.html.jinja")
