"""Writes a report: everything is made in memory first, then each file appears whole."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from probe.errors import InputError
from probe.files import write_atomically
from probe.findings import Report
from probe.report.figures import render
from probe.report.html import html
from probe.report.markdown import markdown
from probe.report.results import json_text, plain, results_dict, validate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLACES = {"tables": ".csv", "figures": ".svg"}


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
    try:
        for place in _PLACES:
            (out / place).mkdir(parents=True, exist_ok=True)
        stale = _earlier_files(out) - files.keys()
        for name, text in files.items():
            write_atomically(out / name, text)
        for name in stale:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the report to {out}: {error.strerror}") from error
    return out / "report.html"


def render_files(report: Report) -> dict[str, str]:
    """The text of every file by its path in the folder, results.json last.

    Raises:
        ValueError: Names clash or are no file names, or the results break their schema.
    """
    tables = [table for finding in report.findings for table in finding.tables]
    figures = [figure for finding in report.findings for figure in finding.figures]
    _check_names("tables", [table.name for table in tables])
    _check_names("figures", [figure.name for figure in figures])
    results = results_dict(report)
    validate(results)
    drawings = {figure.name: render(figure) for figure in figures}
    files = {f"figures/{name}.svg": text for name, text in drawings.items()}
    for table in tables:
        files[f"tables/{table.name}.csv"] = table.frame.to_csv(
            index=False, float_format="%.9g", lineterminator="\n"
        )
    files["report.md"] = markdown(report)
    files["report.html"] = html(report, drawings)
    files["run.json"] = json_text(plain(report.run))
    files["results.json"] = json_text(results)
    return files


def _check_names(kind: str, names: Iterable[str]) -> None:
    counts = Counter(names)
    wrong = [name for name, count in counts.items() if count > 1 or not _NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"names of {kind} must be unique and plain: {', '.join(wrong)}")


def _earlier_files(out: Path) -> set[str]:
    """Tables and figures that the results.json in the folder names, and nothing else."""
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        validate(results)
    except (FileNotFoundError, ValueError):
        return set()
    return {
        f"{place}/{name}{suffix}"
        for finding in results["findings"]
        for place, suffix in _PLACES.items()
        for name in finding[place]
        if _NAME.fullmatch(name)
    }
