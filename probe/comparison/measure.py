"""One sweep over the sequences that several models share: losses, solvers and CKA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probe.capture import capture, predictor_only
from probe.columns import Columns
from probe.comparison import losses, similarity
from probe.comparison.entries import Checkpoint
from probe.comparison.losses import TARGETS, Losses, Solvers
from probe.comparison.similarity import JOINED, Similarity, SimilarityStage
from probe.pilot import scout
from probe.pipeline import Progress
from probe.plan import Plan
from probe.reference import ReferenceStage
from probe.response_stage import ResponseStage
from probe.solvers.base import ColumnFamily, families
from probe.stages import View
from probe.sweep import Sweep
from probe.tasks.base import Task
from probe.views import permuted_twin, seen_as


@dataclass(frozen=True)
class Measured:
    """What is measured on the sequences of a group.

    Attributes:
        losses: By label.
        solvers: The solvers fitted to the task.
        theory: Losses of predictors that are no models, by position.
        similarities: CKA of each pair.
    """

    losses: Mapping[str, Losses]
    solvers: Solvers
    theory: Mapping[str, Float[Tensor, " time"]]
    similarities: tuple[Similarity, ...]


def measure(checkpoints: Sequence[Checkpoint], plan: Plan, progress: Progress) -> Measured:
    """One sweep over the sequences of the plan, each model reading its own tokens.

    Raises:
        InputError: Predictions that are not finite, or a task that draws other sequences.
    """
    setting = scout(plan, 0)
    labels = [checkpoint.label for checkpoint in checkpoints]
    twins = {label: f"{label}: permuted twin" for label in labels}
    models = {c.label: c.subject.model for c in checkpoints}
    models |= {twins[c.label]: permuted_twin(c.subject.model, plan.seed) for c in checkpoints}
    beside = ReferenceStage(setting.ridge, views=tuple(labels))
    ready = tuple(name for name, f in families().items() if isinstance(f, ColumnFamily))
    fitted = ResponseStage(
        setting.windows, Columns(setting.knots, ready), setting.step_bound, (TARGETS,),
        layered=False, reads=("judged",),
    )  # fmt: skip
    alike = SimilarityStage(setting.windows.judged)
    views: dict[str, View] = {label: seen_as(label) for label in labels}
    views[TARGETS] = lambda context, _: (context, predictor_only(context.problem.targets))
    views[JOINED] = similarity.joined(list(models))
    sweep = Sweep(plan, models, views, capture, progress, _layouts(checkpoints, twins))
    results = sweep.run((beside, fitted, alike))
    own = {label: results[beside, label] for label in labels}
    count = own[labels[0]].sums["sequences"]
    solvers = losses.rank_solvers(fitted, results[fitted, TARGETS], count)
    return Measured(
        losses=losses.compare_losses(own, solvers, setting.windows.judged),
        solvers=solvers,
        theory=losses.theory(own[labels[0]]),
        similarities=similarity.conclude(results[alike, JOINED], models, twins),
    )


def _layouts(checkpoints: Sequence[Checkpoint], twins: Mapping[str, str]) -> dict[str, Task]:
    return {
        name: checkpoint.task
        for checkpoint in checkpoints
        for name in (checkpoint.label, twins[checkpoint.label])
        if checkpoint.task is not checkpoints[0].task
    }
