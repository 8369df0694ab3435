"""Writes a report: everything is made in memory first, then each file appears whole."""

import json
from pathlib import Path

from probe.errors import InputError
from probe.files import read_text
from probe.findings import Report
from probe.report.figures import render
from probe.report.files import NAME, PLACES, check_names, csv_text, write_files, writing_to
from probe.report.html import html
from probe.report.markdown import markdown
from probe.report.results import json_text, plain, results_dict, validate


def write_report(report: Report, out: Path) -> Path:
    """Writes results.json, run.json, report.html, report.md, tables and figures into a folder.

    Tables and figures that an earlier run left there are removed. results.json is written last:
    where it stands, the other files are complete.

    Returns:
        The path of report.html.

    Raises:
        InputError: The folder cannot be written.
        ValueError: The report breaks the contract; nothing is written.
    """
    files = render_files(report)
    with writing_to(out):
        stale = _earlier_files(out) - files.keys()
        write_files(files, out)
        for name in stale:
            (out / name).unlink(missing_ok=True)
    return out / "report.html"


def render_files(report: Report) -> dict[str, str]:
    """The text of every file by its path in the folder, results.json last.

    Raises:
        ValueError: Names clash or are no file names, or the results break their schema.
    """
    tables = [table for finding in report.findings for table in finding.tables]
    figures = [figure for finding in report.findings for figure in finding.figures]
    check_names(tables, figures)
    results = results_dict(report)
    validate(results)
    drawings = {figure.name: render(figure) for figure in figures}
    files = {f"figures/{name}.svg": text for name, text in drawings.items()}
    files |= {f"tables/{table.name}.csv": csv_text(table) for table in tables}
    files["report.md"] = markdown(report)
    files["report.html"] = html(report, drawings)
    files["run.json"] = json_text(plain(report.run))
    files["results.json"] = json_text(results)
    return files


def _earlier_files(out: Path) -> set[str]:
    """Tables and figures that the results.json in the folder names, and nothing else."""
    try:
        results = json.loads(read_text(out / "results.json"))
        validate(results)
    except (InputError, ValueError, RecursionError):
        return set()
    return {
        f"{place}/{name}{suffix}"
        for finding in results["findings"]
        for place, suffix in PLACES.items()
        for name in finding[place]
        if NAME.fullmatch(name)
    }
