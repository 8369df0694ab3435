"""From entries to a comparison: one sweep per group of models, one analysis per checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probe.comparison import groups
from probe.comparison.entries import TABLES, Checkpoint, Entry, Recorded
from probe.comparison.groups import Group, Obstacle
from probe.comparison.losses import Losses
from probe.comparison.measure import Measured, measure
from probe.pipeline import Progress, Request, analyze, check_fit, describe_subject, describe_task
from probe.plan import Plan
from probe.progress import Phases
from probe.report.results import reference_dict, results_dict
from probe.tasks.base import Task
from probe.threads import one_thread


@dataclass(frozen=True)
class Model:
    """All that the comparison knows of one model.

    Attributes:
        label: Its name.
        source: "checkpoint" or "results".
        subject: As in results.json.
        task: As in results.json.
        verdict: As in results.json; None where it was not asked for.
        reference: As in results.json; None where the task allows none.
        tables: Tables of `analyze` by name, as far as they are known.
        losses: Losses beside the other models; None for finished results.
    """

    label: str
    source: str
    subject: Mapping[str, Any]
    task: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None
    tables: Mapping[str, pd.DataFrame]
    losses: Losses | None = None


@dataclass(frozen=True)
class Side:
    """Models on the same sequences; `measured` is None where all are finished results."""

    first: str
    task: Task | None
    models: tuple[Model, ...]
    measured: Measured | None


@dataclass(frozen=True)
class Comparison:
    """Everything that the page says."""

    sides: tuple[Side, ...]
    obstacles: tuple[Obstacle, ...]
    sequences: int
    seed: int

    @property
    def models(self) -> tuple[Model, ...]:
        """All models."""
        return tuple(model for side in self.sides for model in side.models)


@dataclass(frozen=True)
class Settings:
    """How much data, from which seed, and how it is run; see `Plan`.

    Attributes:
        verdicts: Whether every checkpoint is analysed in full.
    """

    sequences: int
    seed: int
    batch_size: int = 256
    workers: int = 2
    device: str = "cpu"
    verdicts: bool = True

    def plan(self, task: Task) -> Plan:
        """The plan on a task."""
        return Plan(task, self.sequences, self.seed, self.batch_size, self.workers, self.device)


def compare(
    entries: Sequence[Entry], settings: Settings, progress: Progress = lambda done, total: None
) -> Comparison:
    """Runs every checkpoint; writes nothing.

    Raises:
        InputError: A task does not fit its model, or predictions are not finite.
    """
    grouped = groups.group(entries)
    checkpoints = [entry for members in grouped for entry in members.checkpoints]
    for checkpoint in checkpoints:
        check_fit(checkpoint.subject, settings.plan(checkpoint.task))
    runs = sum(bool(members.checkpoints) for members in grouped)
    phases = Phases(progress, runs + settings.verdicts * len(checkpoints))
    with one_thread():
        sides = tuple(_side(members, settings, phases.next) for members in grouped)
    found = groups.obstacles(grouped, settings.sequences, settings.seed)
    return Comparison(sides, found, settings.sequences, settings.seed)


def _side(members: Group, settings: Settings, phase: Callable[[], Progress]) -> Side:
    task = members.first.task
    measured = None
    if task is not None and members.checkpoints:
        measured = measure(members.checkpoints, settings.plan(task), phase())
    losses = measured.losses if measured else {}
    models = tuple(
        _finished(entry)
        if isinstance(entry, Recorded)
        else _run(entry, settings, losses[entry.label], phase)
        for entry in members.entries
    )
    return Side(members.first.label, task, models, measured)


def _finished(entry: Recorded) -> Model:
    return Model(entry.label, "results", *_contract(entry.results), entry.tables)


def _run(
    entry: Checkpoint, settings: Settings, losses: Losses, phase: Callable[[], Progress]
) -> Model:
    plan = settings.plan(entry.task)
    if not settings.verdicts:
        subject, task = describe_subject(entry.subject), describe_task(plan, {})
        beside = reference_dict(losses.reference)
        return Model(entry.label, "checkpoint", subject, task, None, beside, {}, losses)
    report = analyze(Request(entry.subject, plan), phase())
    tables = {
        table.name: table.frame
        for finding in report.findings
        for table in finding.tables
        if table.name in TABLES
    }
    return Model(entry.label, "checkpoint", *_contract(results_dict(report)), tables, losses)


def _contract(results: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    return results["subject"], results["task"], results["verdict"], results["reference"]
