"""The nudge of the teacher: sequences of a slightly turned teacher, on a sweep of their own."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.stages import Batch, Results, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.tasks.base import Task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.nonlinear_dynamics import NonlinearDynamics
from probe.tasks.regression import InContextRegression
from probe.tasks.teachers import Fixed, Pool, nudged
from probe.tasks.weights import PooledWeights
from probe.views import SUBJECT

EPS = 0.05  # of the turn, in radians per pair of directions
FEW = 64


@dataclass(frozen=True)
class NudgeStage:
    """How far predictions follow the turn.

    Attributes:
        bases: The unturned teachers, row by row; W_f of a sequence is the one nearest to its own.
        window: The judged positions.
        eps: Size of the turn.
        task: The task under the turned teacher.
    """

    bases: tuple[tuple[tuple[float, ...], ...], ...]
    window: tuple[int, int]
    eps: float
    task: Task
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 0

    def __hash__(self) -> int:
        """By what was turned."""
        return hash((self.bases, self.window, self.eps))

    def __eq__(self, other: object) -> bool:
        """Tasks hold tensors; the unturned teachers tell nudges apart."""
        return isinstance(other, NudgeStage) and hash(self) == hash(other)

    def fit(self, batch: Batch) -> Sums:
        """Nothing is fitted."""
        return {}

    def learn(self, sums: Sums) -> None:
        """Nothing is learned."""

    def test(self, batch: Batch, learned: None) -> Sums:
        """Products of the model's departure from W_f q with the turn (W - W_f) q."""
        a, b = self.window
        problem = batch.context.problem
        base = self.unturned(batch.context.sequences.teachers)
        kept = problem.queries[:, a:b].double() @ base.mT
        turn = problem.oracle[:, a:b].double() - kept
        output = batch.capture.output[:, a:b].double()
        departure = output - kept
        products = [departure * turn, turn**2, departure**2, output**2]
        return {"products": batch.by_block(torch.stack([p.sum((1, 2)) for p in products], -1))}

    def unturned(self, teachers: Float[Tensor, "batch d d"]) -> Float[Tensor, "batch d d"]:
        """W_f of each sequence; the turn is small, so it is the nearest by Frobenius norm."""
        bases = torch.tensor(self.bases, dtype=torch.float64)
        apart = (teachers.double()[:, None] - bases).norm(dim=(-2, -1))
        return bases[apart.argmin(1)]

    def read(self, results: Results, view: str = SUBJECT) -> tuple[Interval, Interval]:
        """Alpha, and R^2 of the unturned teacher."""
        along, turn, departure, energy = results[self, view].sums["products"].unbind(-1)
        alpha = bootstrap_interval(lambda weights: (weights @ along) / (weights @ turn))
        return alpha, share_explained(departure, energy)


def nudge_of(setting: Setting) -> tuple[NudgeStage, ...]:
    """The nudge of a task whose teacher acts on what the model sees; nothing for other tasks.

    Of regression only tasks with few known teachers are nudged: those of all others are fresh.
    """
    task = setting.task
    if not isinstance(task, LinearDynamics | NonlinearDynamics | InContextRegression):
        return ()
    known = _known(task)
    if known is None and isinstance(task, InContextRegression):
        return ()
    turned = nudged(known or task.teacher, task.width, EPS)
    bases = tuple(tuple(tuple(row) for row in base) for base in turned.base.matrices.tolist())
    changed = replace(task, teacher=turned)
    return (NudgeStage(bases, setting.windows.judged, EPS, changed),)


def _known(task: Task) -> Fixed | Pool | None:
    """The teachers of a task if they are few enough to be told apart by a table."""
    teacher = task.teacher
    if isinstance(teacher, PooledWeights) and teacher.size <= FEW:
        return Pool(teacher.members(task.width_out, task.width_out))
    return teacher if isinstance(teacher, Fixed | Pool) else None


def known_teachers(task: Task) -> int:
    """How many teachers make all sequences; 0 where every sequence has one of its own."""
    known = _known(task)
    return len(known.matrices) if known else 0
