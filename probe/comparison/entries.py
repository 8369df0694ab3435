"""What is compared: checkpoints to be run, and finished results to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from probe.checkpoints.base import Subject, load
from probe.errors import InputError
from probe.files import LARGEST_TEXT, reading, require_file
from probe.report.results import plain, read_results
from probe.tasks.base import Task, find_task

RESULTS = "results.json"
_NUMBERS = frozenset({"position", "loss", "loss_se", "layer", "effective_lambda", "r2"})
_WHOLE = frozenset({"position", "layer"})
TABLES: Mapping[str, frozenset[str]] = {
    "behaviour": frozenset({"position", "predictor", "loss", "loss_se"}),
    "effective_lambda": frozenset({"layer", "site", "effective_lambda"}),
    "families": frozenset({"layer", "positions", "family", "parameters", "r2", "site"}),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be run.

    Attributes:
        label: How the comparison calls it; no two are called the same.
        subject: The model.
        task: Its task.
    """

    label: str
    subject: Subject
    task: Task


@dataclass(frozen=True)
class Recorded:
    """What `analyze` wrote about a model that is not run again.

    Attributes:
        label: How the comparison calls it.
        results: The content of results.json.
        tables: Those of its tables that a comparison reads, as far as they lie beside it.
        task: The task of the run; None if this program knows none of that name and parameters.
    """

    label: str
    results: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    task: Task | None


Entry = Checkpoint | Recorded


def read_entries(
    paths: Sequence[str], preset: str | None = None, task_name: str | None = None
) -> tuple[Entry, ...]:
    """Reads every input before anything is computed.

    Args:
        paths: Checkpoints, as PATH or PATH@PRESET; results.json files or folders that hold one.
        preset: The preset of checkpoints that state none with their path.
        task_name: The task of all checkpoints; each its own by default.

    Raises:
        InputError: An input is missing or damaged, or a checkpoint has no task.
    """
    asked = [_split(path, preset) for path in paths]
    with reading(Path(".")):
        entries = [_read(path, its_preset, task_name) for path, its_preset in asked]
    labels = [entry.label for entry in entries]
    longer = [
        f"{entry.label} in {Path(path).absolute().parent.name}"
        for entry, (path, _) in zip(entries, asked, strict=True)
    ]
    told = _told_apart(labels, longer)
    told = _told_apart(told, [f"{label} ({at + 1})" for at, label in enumerate(told)])
    return tuple(replace(entry, label=label) for entry, label in zip(entries, told, strict=True))


def _told_apart(labels: Sequence[str], longer: Sequence[str]) -> list[str]:
    """The longer label where the short one stands for several."""
    return [
        long if labels.count(short) > 1 else short
        for short, long in zip(labels, longer, strict=True)
    ]


def _split(text: str, preset: str | None) -> tuple[str, str | None]:
    """Path and preset of PATH@PRESET, if no file is called that as a whole."""
    path, _, own = text.rpartition("@")
    return (path, own) if path and not Path(text).exists() else (text, preset)


def _read(text: str, preset: str | None, task_name: str | None) -> Entry:
    path = Path(text)
    if path.suffix == ".json":
        return _recorded(path)
    if (path / RESULTS).is_file():
        return _recorded(path / RESULTS)
    subject = load(text, preset)
    name = task_name or subject.task
    if name is None:
        raise InputError(f"{text}: states no task of its own; give --task NAME")
    return Checkpoint(subject.name, subject, find_task(name))


def _recorded(path: Path) -> Recorded:
    results = read_results(path)
    name, params = results["task"]["name"], dict(results["task"]["params"])
    params.pop("clipped_share", None)
    try:
        task: Task | None = find_task(name)
    except InputError:
        task = None
    same = task is not None and plain(task.params()) == params
    tables = {name: _table(path.parent / "tables" / f"{name}.csv", name) for name in TABLES}
    there = {name: table for name, table in tables.items() if table is not None}
    label = f"{results['subject']['name']} (recorded)"
    return Recorded(label, results, there, task if same else None)


def _table(path: Path, name: str) -> pd.DataFrame | None:
    """One of the tables beside the results; None if it is not there."""
    if not path.is_file():
        return None
    require_file(path, LARGEST_TEXT)
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no table: {error!s:.160}") from None
    if missing := sorted(TABLES[name] - set(table.columns)):
        raise InputError(f"{path}: lacks the column {', '.join(missing)}")
    for column in sorted(_NUMBERS & TABLES[name]):
        holes = column in _WHOLE and bool(table[column].isna().any())
        if holes or not pd.api.types.is_numeric_dtype(table[column]):
            raise InputError(f"{path}: column {column} must hold numbers")
    return table
