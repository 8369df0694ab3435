"""Which models can be compared on the same sequences, and why others cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from probe.comparison.entries import Checkpoint, Entry, Recorded
from probe.plan import PILOT
from probe.problem import InContextProblem
from probe.sampling import generator_for
from probe.tasks.base import Task

PAIRED = "differences of loss paired by sequence, and CKA"


@dataclass(frozen=True)
class Group:
    """Models that read the same sequences, each in the layout of its own tokens.

    Attributes:
        entries: The models, in the order of the request.
    """

    entries: tuple[Entry, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Those that are run."""
        return tuple(entry for entry in self.entries if isinstance(entry, Checkpoint))

    @property
    def first(self) -> Entry:
        """The one that the others are compared with: the first that is run, if any is."""
        return (*self.checkpoints, *self.entries)[0]


@dataclass(frozen=True)
class Obstacle:
    """What cannot be compared, and why."""

    model: str
    other: str
    missing: str
    why: str


def group(entries: Sequence[Entry]) -> tuple[Group, ...]:
    """The models by the sequences that their tasks draw from one seed."""
    groups: list[list[Entry]] = []
    for entry in entries:
        for members in groups:
            if _same(members[0].task, entry.task):
                members.append(entry)
                break
        else:
            groups.append([entry])
    return tuple(Group(tuple(members)) for members in groups)


def _same(one: Task | None, other: Task | None) -> bool:
    return one is not None and other is not None and same_problem(one, other)


def same_problem(one: Task, other: Task) -> bool:
    """Whether two tasks draw the same pairs, queries and targets from one seed.

    Tokens may differ: raw and constructed tokens are two layouts of the same dynamics.
    """
    if one.windows != other.windows:
        return False
    return all(
        first.shape == second.shape and torch.equal(first, second)
        for first, second in zip(_posed(one), _posed(other), strict=True)
    )


def _posed(task: Task) -> tuple[torch.Tensor, ...]:
    problem: InContextProblem = task.problem(task.sample(4, generator_for(0, PILOT)))
    return problem.keys, problem.values, problem.queries, problem.targets, problem.oracle


def obstacles(groups: Sequence[Group], sequences: int, seed: int) -> tuple[Obstacle, ...]:
    """Every model that lacks a comparison with the first of its group or of the request."""
    return tuple(_between(groups)) + tuple(
        obstacle for members in groups for obstacle in _within(members, sequences, seed)
    )


def _between(groups: Sequence[Group]) -> Iterator[Obstacle]:
    for members in groups[1:]:
        for entry in members.entries:
            first = groups[0].first
            yield Obstacle(entry.label, first.label, f"losses, {PAIRED}", _other_task(entry, first))


def _other_task(entry: Entry, first: Entry) -> str:
    """Why the losses of two tasks do not compare."""
    here, there = entry.task, first.task
    if here is None or there is None:
        unknown = entry.label if here is None else first.label
        return f"the task of {unknown}, by its name and parameters, is not one that is known here"
    if here.width_out != there.width_out:
        return f"targets of width {here.width_out} ({here.name}), not {there.width_out}"
    return f"task {here.name} draws other sequences than {there.name}"


def _within(members: Group, sequences: int, seed: int) -> Iterator[Obstacle]:
    first = members.first
    for entry in members.entries:
        if isinstance(entry, Recorded) and entry is not first:
            yield Obstacle(
                entry.label, first.label, PAIRED, _recorded(entry, first, sequences, seed)
            )


def _recorded(entry: Recorded, first: Entry, sequences: int, seed: int) -> str:
    """Why finished results cannot be paired, and whether they are of the same sequences."""
    if isinstance(first, Recorded):
        sequences, seed = first.results["task"]["sequences"], first.results["task"]["seed"]
    task = entry.results["task"]
    others = []
    if task["seed"] != seed:
        others.append(f"seed {task['seed']} instead of {seed}")
    if task["sequences"] != sequences:
        others.append(f"{task['sequences']} sequences instead of {sequences}")
    if others:
        return f"finished results of other sequences ({', '.join(others)})"
    return "the same sequences, but finished results keep no losses by sequence and no activations"
