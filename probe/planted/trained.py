"""Trained checkpoints whose label is known: from the task that they saw, and by their behaviour.

A model of one teacher has nothing to learn in context, one of a small pool has only to recognise
its teacher, and one whose pairs belonged to other sequences cannot use a context at all. The
learners come from the recipes for linear dynamics. tests/test_validation.py checks every label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from probe.checkpoints.base import load, transformer_of
from probe.planted.base import Planted, Truth
from probe.planted.descent import Filtered, Steps
from probe.planted.ridge import LeastSquares
from probe.planted.scales import whole
from probe.solvers.base import Posed
from probe.tasks.base import Task

FOLDER = Path(__file__).with_name("checkpoints")


def _oracle(posed: Posed) -> Tensor:
    """What a memorised or recognised teacher predicts."""
    return posed.problem.oracle.double()


def _nothing(posed: Posed) -> Tensor:
    return torch.zeros_like(posed.problem.targets).double()


@dataclass(frozen=True)
class Checkpoint:
    """A folder under checkpoints/, the task to look at it on, its label, and about what it does."""

    folder: str
    task: str
    truth: Truth
    solver: Callable[[Posed], Tensor]


_CONSTRUCTED = "linear-constructed"
_MEMORISED = Truth("context_free", "memorised_map", None)
_RECOGNISED = Truth("lookup", "pool_lookup", None)
_USELESS = Truth("unexplained", "none", None, also=("context_free", "copy", "kernel"))

LEARNERS = (
    Checkpoint(
        "linear-1l-small",
        _CONSTRUCTED,
        Truth("first_order", "gradient_descent", 1),
        Filtered(Steps((0.032,))),
    ),
    Checkpoint(
        "mesa-1l-small",
        _CONSTRUCTED,
        Truth("least_squares", "ridge", None),
        Filtered(LeastSquares(0.14)),
    ),
)
OTHERS = (
    Checkpoint("fixed-teacher-2l-small", "fixed-teacher-constructed", _MEMORISED, _oracle),
    Checkpoint("fixed-teacher-softmax-small", "fixed-teacher-constructed", _MEMORISED, _oracle),
    Checkpoint("finite-pool-softmax-small", "finite-pool-constructed", _RECOGNISED, _oracle),
    Checkpoint("permuted-contexts-2l-small", _CONSTRUCTED, _USELESS, _nothing),
)


@dataclass(frozen=True)
class Trained:
    """One of several checkpoints."""

    name: str
    learns: bool
    checkpoints: tuple[Checkpoint, ...]

    def fits(self, task: Task) -> bool:
        """The tasks that the checkpoints are looked at on."""
        return any(checkpoint.task == task.name for checkpoint in self.checkpoints)

    def draw(self, task: Task, generator: torch.Generator) -> Planted:
        """Draws a checkpoint for the task."""
        fitting = [c for c in self.checkpoints if c.task == task.name]
        chosen = fitting[whole(generator, 0, len(fitting) - 1)]
        return Planted(
            name=f"trained {chosen.folder}",
            model=transformer_of(_model(chosen.folder)),
            task=task,
            truth=chosen.truth,
            solver=chosen.solver,
            exact=False,
        )


_model = cache(lambda folder: load(FOLDER / folder, None))

NAMED = {
    "trained_learners": Trained("trained_learners", True, LEARNERS),
    "trained_others": Trained("trained_others", False, OTHERS),
}
