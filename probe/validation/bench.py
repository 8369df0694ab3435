"""Whether a planted algorithm can be told from others at all, on the data of its task.

A gradient descent that has converged is least squares, and a wide kernel is a gradient step: such a
model has no label of its own. It is kept out by a rule on the exact predictions of its solver: the
best description of any other class must miss them by a margin.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import predictor_only
from probe.columns import Columns
from probe.pilot import scout
from probe.plan import Plan
from probe.planted.base import Planted
from probe.response_stage import response_stages
from probe.solvers.base import Fitted, Quadratic, families
from probe.stages import Batch, Context
from probe.statistics import BLOCKS
from probe.tasks.base import Task, Windows

SEQUENCES, STREAM = 512, 41
POLYNOMIALS = 8


@dataclass(frozen=True)
class Bench:
    """A sample of a task on which solvers are compared.

    Attributes:
        context: The sample.
        columns: The columns of all solvers.
        windows: The ranges of positions.
        step_bound: The largest step of gradient descent.
    """

    context: Context
    columns: Columns
    windows: Windows
    step_bound: float

    @classmethod
    def of(cls, task: Task, seed: int) -> "Bench":
        """A sample of 512 sequences."""
        plan = Plan(task, 2 * SEQUENCES, seed)
        setting = scout(plan, 1)
        sequences = plan.draw(STREAM, 0, SEQUENCES)
        context = Context(sequences, task.problem(sequences))
        columns = response_stages(setting)[0].columns
        return cls(context, columns, setting.windows, setting.step_bound)

    def nearest_other(self, planted: Planted) -> float:
        """1 - R^2 of the best description by another class of what the solver predicts."""
        fitted = self._fit(planted.solver(self.context).float())
        right = planted.truth.algorithm_class
        return min(member.error for member in fitted if _is_other(member, right))

    def _fit(self, predicted: Float[Tensor, "batch time d_v"]) -> tuple[Fitted, ...]:
        a, b = self.windows.judged
        blocks = torch.arange(len(predicted)) % BLOCKS
        batch = Batch(self.context, predictor_only(predicted), blocks)
        gram = self.columns.grams(batch, predicted[..., None], ((a, b),)).sum((0, 1))
        form = Quadratic(gram[:-1, :-1], gram[:-1, -1], float(gram[-1, -1]))
        rows = predicted[:, a:b].numel()
        return self.columns.fit(form, rows, self.step_bound)


def _is_other(member: Fitted, right: str) -> bool:
    """Whether a description contradicts the class; the oracle is no description."""
    if member.family == "oracle":
        return False
    if right == "mixture":
        return True
    is_null = families()[member.family].is_null
    if right in ("first_order", "least_squares"):
        return is_null or right not in _classes(member)
    return not is_null


def _classes(member: Fitted) -> tuple[str, ...]:
    """The classes of a learner; a free response belongs to both."""
    if member.family in ("spline", "conjugate_gradient", "normalised_descent"):
        return ("first_order", "least_squares")
    if member.family == "ridge" or (
        member.family == "newton" and (member.degree or 0) > POLYNOMIALS
    ):
        return ("least_squares",)
    return ("first_order",)
