"""A page about several models: an answer, numbers, sections with figures and tables.

What `write_page` writes is NAME.html (one self-contained file), NAME.md, NAME.json, tables/*.csv
and figures/*.svg.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

import probe
from probe.findings import Figure, Table
from probe.report import palette, svg
from probe.report.figures import render
from probe.report.files import check_names, csv_text, write_files, writing_to
from probe.report.markdown import escape
from probe.report.results import json_text, plain
from probe.report.templates import environment
from probe.report.text import scalar
from probe.report.typeset import prose, typeset

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """One question of a page.

    Attributes:
        heading: The question.
        text: Its answer in a few sentences.
        figures: Drawings.
        shown: Short tables that stand on the page; they are written as CSV too.
        data: Long tables, written as CSV only.
        note: What must not be concluded, or which cases were left out and why.
    """

    heading: str
    text: str
    figures: tuple[Figure, ...] = ()
    shown: tuple[Table, ...] = ()
    data: tuple[Table, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a page, and of the JSON file beside it.

    Attributes:
        name: Stem of the files.
        eyebrow: What was done, on what.
        answer: The outcome in one sentence.
        facts: Short numbers under the answer, as (name, value).
        sections: The rest, in order.
        results: What a program reads; plain values, nothing that depends on the machine.
    """

    name: str
    eyebrow: str
    answer: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    results: Mapping[str, object]


def write_page(page: Page, out: Path) -> Path:
    """Writes the files of a page, its JSON last; each appears whole or not at all.

    Returns:
        The path of the HTML file.

    Raises:
        InputError: The folder cannot be written.
        ValueError: Names of tables or figures clash or are no file names; nothing is written.
    """
    files = render_page(page)
    with writing_to(out):
        write_files(files, out)
    return out / f"{page.name}.html"


def render_page(page: Page) -> dict[str, str]:
    """The text of every file by its path in the folder, the JSON last.

    Raises:
        ValueError: Names of tables or figures clash or are no file names.
    """
    figures = [figure for section in page.sections for figure in section.figures]
    tables = [table for section in page.sections for table in (*section.shown, *section.data)]
    check_names(tables, figures)
    drawings = {figure.name: render(figure) for figure in figures}
    files = {f"figures/{name}.svg": drawing for name, drawing in drawings.items()}
    files |= {f"tables/{table.name}.csv": csv_text(table) for table in tables}
    values = {"page": typeset(page), "version": probe.__version__}
    html = {
        "drawing": {name: Markup(svg.inline(text)) for name, text in drawings.items()},
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        "light": Markup(palette.css_variables("light")),
        "dark": Markup(palette.css_variables("dark")),
    }
    files[f"{page.name}.html"] = _templates().get_template("page.html.jinja").render(values | html)
    files[f"{page.name}.md"] = _templates().get_template("page.md.jinja").render(values)
    results = {"mesaprobe_version": probe.__version__, **page.results}
    files[f"{page.name}.json"] = json_text(plain(results))
    return files


def _rows(frame: pd.DataFrame) -> list[list[tuple[str, bool]]]:
    """Every cell as text, and whether it is a number."""
    return [[_cell(value) for value in row] for row in frame.itertuples(index=False)]


def _cell(value: Any) -> tuple[str, bool]:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return scalar(int(value)), True
    if isinstance(value, Real) and not isinstance(value, bool):
        return scalar(float(value)), True
    return prose(scalar(value)), False


@cache
def _templates() -> Environment:
    templates = environment(_HERE)
    templates.filters |= {"rows": _rows, "md": escape, "prose": prose}
    return templates
