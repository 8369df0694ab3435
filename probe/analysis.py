"""What an analysis is, what it knows before the data, and where analyses are found."""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from probe.errors import InputError
from probe.findings import Finding
from probe.sweep import Results, Stage
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


@runtime_checkable
class Analysis(Protocol):
    """Asks one question. Declares its stages, then draws its conclusion from what they measured."""

    name: str
    question: str

    def stages(self, setting: Setting) -> tuple[Stage, ...]:
        """The measurements that it needs; those that other analyses need too are made once."""

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """The finding, from `results[stage, view]`."""


def find_analyses(only: tuple[str, ...] = ()) -> tuple[Analysis, ...]:
    """The installed analyses, by name; all of them, or those asked for.

    Raises:
        InputError: An analysis of that name is not installed.
    """
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    unknown = sorted(set(only) - installed.keys())
    if unknown:
        known = ", ".join(sorted(installed))
        raise InputError(f"unknown analysis {', '.join(unknown)}; known: {known}")
    names = [name for name in sorted(installed) if not only or name in only]
    return tuple(installed[name].load()() for name in names)
