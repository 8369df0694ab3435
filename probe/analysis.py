"""What an analysis is, what it knows before the data, and where analyses are found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import ModuleType
from typing import Protocol, runtime_checkable

from probe import registry
from probe.audit import failed
from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.findings import Check, Finding
from probe.plan import Plan
from probe.stages import Results, Stage
from probe.tasks.base import Task, Windows

GROUP = "mesaprobe.analyses"


@dataclass(frozen=True)
class Setting:
    """What is known before the sweep, from the model's shape and a pilot sample of the task.

    Attributes:
        task: The task.
        layers: Number of blocks.
        windows: The ranges of positions.
        knots: Knots of the response over the eigenvalues mu, ascending.
        mu_top: The 99 % quantile of the eigenvalues.
        step_bound: 2 / q99 of the largest eigenvalue: above it gradient descent diverges.
        ridge: The lambda that minimises the pilot loss of least squares.
        sequences: How many sequences the run draws, half of them to fit.
    """

    task: Task
    layers: int
    windows: Windows
    knots: tuple[float, ...]
    mu_top: float
    step_bound: float
    ridge: float
    sequences: int = 4096


@dataclass(frozen=True)
class Bench:
    """What a job works with: the model itself, the run's data, and what the sweep measured.

    Attributes:
        subject: The model; a job works on copies and leaves it as it is.
        plan: Draws the sequences, seeds and devices.
        setting: What is known from the pilot.
        results: What the stages measured.
        progress: Called with (done, in all).
    """

    subject: Subject
    plan: Plan
    setting: Setting
    results: Results = field(repr=False)
    progress: Callable[[int, int], None] = lambda done, total: None


@runtime_checkable
class Question(Protocol):
    """What every analysis states.

    Attributes:
        name: How users call it.
        question: What it asks, as a sentence.
        place: Where it stands in a report; small numbers first.
    """

    name: str
    question: str
    place: int


@runtime_checkable
class Analysis(Question, Protocol):
    """Asks one question. Declares its stages, then draws its conclusion from what they measured."""

    def stages(self, setting: Setting) -> tuple[Stage, ...]:
        """The measurements that it needs; those that other analyses need too are made once."""

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """The finding, from `results[stage, view]`."""


@runtime_checkable
class Job(Question, Protocol):
    """Asks what a sweep cannot answer: it reads weights, changes the model, or trains.

    Attributes:
        thorough: Whether it takes minutes, and so runs only when it is asked for.
    """

    thorough: bool

    def run(self, bench: Bench) -> Finding:
        """The finding."""


@runtime_checkable
class Inside(Protocol):
    """An analysis that looks inside the model.

    Attributes:
        rests_on: The parts of the audit without which it means nothing, besides the output.
    """

    rests_on: frozenset[str]


@runtime_checkable
class Selective(Protocol):
    """An analysis that cannot be asked of every model."""

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """What the model or the task lacks for it, in a few words; None if nothing."""


@dataclass(frozen=True)
class Asked:
    """The analyses of a run.

    Attributes:
        analyses: Those that the sweep feeds.
        jobs: Those that work on the model after it.
        left_out: Why others do not run, by name.
    """

    analyses: tuple[Analysis, ...]
    jobs: tuple[Job, ...]
    left_out: Mapping[str, str]

    def in_order(self, findings: Mapping[str, Finding]) -> tuple[Finding, ...]:
        """By the place of their analyses; what no analysis has found comes last."""
        places = {one.name: one.place for one in (*self.analyses, *self.jobs)}
        last = max(places.values(), default=0) + 1
        return tuple(sorted(findings.values(), key=lambda f: places.get(f.analysis, last)))


def installed_analyses() -> dict[str, Analysis | Job]:
    """All analyses by name: of every package that an entry point of the group names."""
    found = [item for package in analysis_packages() for item in registry.discover(package).items()]
    return dict(sorted(found))


def analysis_packages() -> list[ModuleType]:
    """Every package that an entry point of the group names."""
    return [entry.load() for entry in entry_points(group=GROUP)]


def choose_analyses(
    subject: Subject,
    task: Task,
    only: tuple[str, ...] = (),
    thorough: bool = False,
    audit: tuple[Check, ...] = (),
) -> Asked:
    """Those that can be asked of a model, in the order of a report.

    Args:
        subject: The model.
        task: Its task.
        only: Names of those to run; empty for all.
        thorough: Whether jobs that take minutes run too, if no names are given.
        audit: Checks of the model; an analysis that rests on what failed is left out.

    Raises:
        InputError: A name is unknown, or what it names cannot be asked of the model.
    """
    installed = installed_analyses()
    if unknown := sorted(set(only) - installed.keys()):
        known = ", ".join(installed)
        raise InputError(f"unknown analysis {', '.join(unknown)}; known: {known}")
    left_out, chosen = {}, []
    for name, one in installed.items():
        if only and name not in only:
            continue
        lacking = one.lacks(subject, task) if isinstance(one, Selective) else None
        if lacking and only:
            raise InputError(f"{name} cannot be asked of {subject.name}: {lacking}")
        if lacking:
            left_out[name] = lacking
        elif wrong := failed(audit, _parts(one)):
            left_out[name] = f"the audit failed: {wrong.name} reads {wrong.reads}"
        elif isinstance(one, Job) and one.thorough and not (only or thorough):
            left_out[name] = "takes minutes; runs with --thorough"
        else:
            chosen.append(one)
    chosen.sort(key=lambda one: (one.place, one.name))
    jobs = tuple(one for one in chosen if isinstance(one, Job))
    analyses = tuple(one for one in chosen if not isinstance(one, Job))
    return Asked(analyses, jobs, left_out)


def _parts(one: Analysis | Job) -> frozenset[str]:
    """What an analysis rests on; all rest on the output."""
    inside = one.rests_on if isinstance(one, Inside) else frozenset()
    return frozenset({"output"}) | inside
