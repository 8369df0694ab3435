"""Least squares on few-shot pairs: with and without knowledge of a task switch, and forgetting."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.few_shot.losses import Learner, drawn, squared_errors
from probe.mesa_layer import ForgetData
from probe.plan import FIT, SHARD, Plan
from probe.problem import InContextProblem
from probe.tasks.base import Sequences, shifted
from probe.tasks.few_shot import Bare, FewShot, pairs_problem
from probe.views import planted_mesa

RIDGES = tuple(torch.logspace(-5, 1, 13, dtype=torch.float64).tolist())
GATES = (0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0)


@dataclass(frozen=True)
class LeastSquares:
    """Ridge regression on all pairs before the query.

    Attributes:
        ridge: lambda.
    """

    ridge: float

    def __call__(self, task: FewShot, sequences: Sequences) -> Float[Tensor, "batch pairs d"]:
        """Its predictions."""
        return planted_mesa(task.problem(sequences), self.ridge)


@dataclass(frozen=True)
class WithReset:
    """Ridge regression on the pairs since the last task switch, which it knows.

    Attributes:
        ridge: lambda.
    """

    ridge: float

    def __call__(self, task: FewShot, sequences: Sequences) -> Float[Tensor, "batch pairs d"]:
        """Its predictions."""
        lengths = task.course.which(task.pairs).bincount().tolist()
        parts = zip(*(part.split(lengths, 1) for part in task.split(sequences)), strict=True)
        return torch.cat([planted_mesa(pairs_problem(x, y), self.ridge) for x, y in parts], 1)


@dataclass(frozen=True)
class Forgetting:
    """Ridge regression in which a pair weighs gate^age.

    Attributes:
        ridge: lambda.
        gate: In (0, 1].
    """

    ridge: float
    gate: float

    def __call__(self, task: FewShot, sequences: Sequences) -> Float[Tensor, "batch pairs d"]:
        """Its predictions."""
        posed = pairs_problem(*(part.double() for part in task.split(sequences)))
        fading = ForgetData(torch.full_like(posed.keys[..., :1], self.gate))
        return planted_mesa(posed, self.ridge, fading)


@dataclass(frozen=True)
class AllTransitions:
    """Ridge regression of every bare token on the one before: what a mesa-layer makes of them.

    The transitions from y_i to x_{i+1} belong to no task and halve what is learned.

    Attributes:
        ridge: lambda.
    """

    ridge: float

    def __call__(self, task: FewShot, sequences: Sequences) -> Float[Tensor, "batch pairs d"]:
        """Its predictions."""
        bare = Bare()
        tokens = bare.around(torch.stack(task.split(sequences), 2))
        nothing = torch.zeros_like(tokens)
        posed = InContextProblem(shifted(tokens), tokens, tokens, nothing, nothing, first=1)
        return planted_mesa(posed, self.ridge)[:, bare.before :: bare.stride]


@dataclass(frozen=True)
class References:
    """Reference learners with constants that were fitted on the fit split."""

    alone: LeastSquares
    reset: WithReset
    forgetting: Forgetting
    transitions: AllTransitions


def fitted(single: FewShot, switched: FewShot, plan: Plan) -> References:
    """Chooses lambda on the single task, the gate of forgetting on the switched one.

    Args:
        single: Pairs of one matrix.
        switched: The same with a task switch.
        plan: Its fit split is used.
    """
    ridge = _best(RIDGES, LeastSquares, single, plan)
    gate = _best(GATES, lambda gate: Forgetting(ridge, gate), switched, plan)
    return References(
        LeastSquares(ridge),
        WithReset(ridge),
        Forgetting(ridge, gate),
        AllTransitions(_best(RIDGES, AllTransitions, single, plan)),
    )


def _best(
    grid: Sequence[float], learner: Callable[[float], Learner], task: FewShot, plan: Plan
) -> float:
    bare = replace(task, layout=Bare())
    sequences = drawn(bare, plan, FIT, 0, SHARD)
    return min(
        grid, key=lambda value: float(squared_errors(learner(value), bare, sequences).mean())
    )
