"""Measures in which features a model learns: first where its stream holds them, then responses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Bench
from probe.capture import capture, predictor_only
from probe.checkpoints.base import transformer_of
from probe.closeness import half_squares
from probe.extensions import ExtensionStage, Responses, places_of
from probe.features import (
    TWINS,
    Decodability,
    Decoded,
    DecodingStage,
    Delays,
    Elsewhere,
    Features,
    In,
    Mapped,
    Site,
    TaskFeatures,
    posed,
    sites_of,
)
from probe.models.hooked import HookedModel
from probe.plan import PILOT, Plan
from probe.ridge import RidgeFit
from probe.stages import Batch, Context, Measured, Results, Stage, Sums
from probe.statistics import BLOCKS, Interval, bootstrap_interval, mean_per_sequence
from probe.sweep import Sweep
from probe.tasks.base import Task
from probe.tasks.nonlinear_dynamics import NonlinearDynamics
from probe.tasks.partial_observation import (
    DepthChoice,
    PartialObservation,
    PartialSequences,
    choose_depth,
)
from probe.views import ANOTHER, PLANTED, SUBJECT, all_views, permuted_twin, seen_as

Progress = Callable[[int, int], None]
SEQUENCES = 512
PILOT_SEQUENCES = 32
EVERY = 6
WRONG_SEEDS = (101, 102)
HELD = 0.5  # of what the controls leave; half of it is far above what any control may reach
SHALLOW = (1, 2, 3)


@dataclass(frozen=True)
class Candidates:
    """The features that are tried.

    Attributes:
        own: What the task says that its teacher acts on.
        rivals: The raw inputs, and others that a learner might use instead.
        wrong: Maps of the same kind with other constants.
        choice: Losses of delay embeddings, where the task has any.
    """

    own: Features
    rivals: tuple[Features, ...]
    wrong: tuple[Features, ...] = ()
    choice: DepthChoice | None = None

    @property
    def every(self) -> tuple[Features, ...]:
        """All of them, the task's own first."""
        return (self.own, *self.rivals, *self.wrong)


def has_features(task: Task) -> bool:
    """Whether the teacher acts on something else than the observation."""
    return isinstance(task, NonlinearDynamics | PartialObservation)


def candidates_of(task: Task, seed: int) -> Candidates:
    """The candidates of a task; raw inputs are the first rival.

    Args:
        task: One that has features.
        seed: Seeds the samples on which the depth of a delay embedding is chosen.

    Raises:
        TypeError: The task is linear in its observations.
    """
    if isinstance(task, NonlinearDynamics):
        wrong = (
            Mapped(f"wrong features {i}", task.feature_map.another(constants))
            for i, constants in enumerate(WRONG_SEEDS, 1)
        )
        return Candidates(TaskFeatures(), (Delays(1),), tuple(wrong))
    if isinstance(task, PartialObservation):
        choice = choose_depth(task, seed)
        depths = sorted({*SHALLOW, choice.depth} - {task.depth})
        return Candidates(Delays(task.depth), tuple(map(Delays, depths)), choice=choice)
    raise TypeError(f"{task.name} is linear in its observations")


@dataclass(frozen=True)
class Losses:
    """1/2 mean squared norm of the error, mean over all positions."""

    model: Interval
    kalman: Interval


@dataclass(frozen=True)
class FeatureStudy:
    """All that was measured.

    Attributes:
        candidates: What was tried.
        sites: Where the stream was read.
        decodability: How much of the task's own features is decoded there.
        holds: Index of the first site that holds them; None if none does.
        subject: Responses of the model in each candidate, then in the own ones of another sequence.
        planted: The same of a mesa-layer on the task's own features.
        inside: Responses in what is decoded from the embedding and from the site that holds most.
        losses: Of the model and of the Kalman filter, where the task has one.
    """

    candidates: Candidates
    sites: tuple[Site, ...]
    decodability: Decodability
    holds: int | None
    subject: Responses
    planted: Responses
    inside: Responses
    losses: Losses | None

    @property
    def most(self) -> int:
        """Index of the site of which the controls are quoted: the first that holds, or the best."""
        return _quoted(self.decodability, self.holds)

    def best_twin(self, site: int) -> str:
        """The twin that decodes most at a site."""
        errors = self.decodability.errors
        return min(TWINS, key=lambda twin: float(errors[twin][:, site].sum()))

    def decoded(self, view: str) -> list[Interval]:
        """R^2 of the features decoded at every site."""
        read = partial(self.decodability.r2, view=view)
        return [bootstrap_interval(partial(read, site=i)) for i in range(len(self.sites))]


def study(bench: Bench, candidates: Candidates) -> FeatureStudy:
    """Runs both sweeps on the first sequences of the run's splits.

    Args:
        bench: The model and the data.
        candidates: Those of the bench's task.
    """
    plan = replace(bench.plan, sequences=min(bench.plan.sequences, SEQUENCES))
    decoding = DecodingStage(
        sites_of(transformer_of(bench.subject)), candidates.own, bench.setting.windows.judged
    )
    maps, decodability = _decode(plan, bench, decoding)
    holds = first_holding(decodability)
    shown = dict.fromkeys((0, _quoted(decodability, holds)))
    read = [Decoded(decoding.sites[i], maps[i]) for i in shown]
    fixed, inside = _stages(plan, bench, candidates, read)
    task = plan.task
    bound = (BoundStage(task),) if isinstance(task, PartialObservation) else ()
    results = _sweep(plan, bench, (fixed, inside, *bound), bench.progress)
    losses = [_losses(results[stage, SUBJECT]) for stage in bound]
    return FeatureStudy(
        candidates=candidates,
        sites=decoding.sites,
        decodability=decodability,
        holds=holds,
        subject=Responses(fixed, results[fixed, SUBJECT]),
        planted=Responses(fixed, results[fixed, PLANTED]),
        inside=Responses(inside, results[inside, SUBJECT]),
        losses=losses[0] if losses else None,
    )


def _decode(
    plan: Plan, bench: Bench, decoding: DecodingStage
) -> tuple[Float[Tensor, "sites d_model d_feature"], Decodability]:
    """Linear maps from every site to the features, and how well they do."""
    few = replace(plan, sequences=max(plan.sequences // 2, 4 * BLOCKS))
    model, seed = bench.subject.model, plan.seed
    twins = {name: permuted_twin(model, seed + i) for i, name in enumerate(TWINS)}
    found = _sweep(few, bench, (decoding,), lambda done, total: None, twins)
    errors = {view: found[decoding, view].sums["error"] for view in decoding.views}
    learned: RidgeFit = found[decoding, SUBJECT].learned
    return learned.weights, Decodability(errors, found[decoding, SUBJECT].sums["energy"])


def first_holding(decodability: Decodability) -> int | None:
    """The first site that surely decodes half of what neither control does."""
    above = decodability.above_controls
    sites = range(decodability.errors[SUBJECT].shape[1])
    lower = [bootstrap_interval(partial(above, site=i)).lo for i in sites]
    return next((i for i, lo in enumerate(lower) if lo > HELD), None)


def _quoted(decodability: Decodability, holds: int | None) -> int:
    """The first site that holds the features, or the one that decodes most of them."""
    if holds is None:
        return int(decodability.errors[SUBJECT].sum(0).argmin())
    return holds


def _stages(
    plan: Plan, bench: Bench, candidates: Candidates, read: list[Decoded]
) -> tuple[ExtensionStage, ExtensionStage]:
    places = places_of(bench.setting.windows.judged, EVERY)
    pilot = _pilot(plan)
    tried = [posed(features, pilot, places) for features in candidates.every]
    own = tried[0]
    inside = tuple(In(features, own.knots) for features in read)
    bound = bench.setting.step_bound
    return (
        ExtensionStage((*tried, Elsewhere(own)), places, bound, 1.0, (SUBJECT, PLANTED)),
        ExtensionStage(inside, places, bound, 1.0),
    )


def _pilot(plan: Plan) -> Batch:
    sequences = plan.draw(PILOT, 0, PILOT_SEQUENCES)
    context = Context(sequences, plan.task.problem(sequences))
    blocks = torch.arange(PILOT_SEQUENCES)
    return Batch(context, predictor_only(sequences.oracle), blocks)


def _sweep(
    plan: Plan,
    bench: Bench,
    stages: tuple[Stage, ...],
    progress: Progress,
    others: Mapping[str, HookedModel] = MappingProxyType({}),
) -> Results:
    """One sweep of the subject and of other models beside it."""
    models = {SUBJECT: bench.subject.model, **others}
    views = all_views(bench.setting.ridge)
    known = {name: views[name] for name in (SUBJECT, PLANTED, ANOTHER)}
    known |= {name: seen_as(name) for name in others}
    return Sweep(plan, models, known, capture, progress).run(stages)


@dataclass(frozen=True)
class BoundStage:
    """Losses of the model and of the Kalman filter, summed by block.

    Attributes:
        task: The task.
    """

    task: PartialObservation
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Nothing is fitted."""
        return {}

    def learn(self, sums: Sums) -> None:
        """The filter knows all that it needs."""

    def test(self, batch: Batch, learned: None) -> Sums:
        """Sums by block."""
        sequences = batch.context.sequences
        if not isinstance(sequences, PartialSequences):
            raise TypeError("only partially observed dynamics have a system to be filtered")
        targets = batch.context.problem.targets
        said = {"model": batch.capture.output, "kalman": self.task.bound(sequences).mean}
        losses = {
            name: half_squares(prediction, targets).mean(1) for name, prediction in said.items()
        }
        ones = torch.ones(len(targets))
        return {name: batch.by_block(loss) for name, loss in {**losses, "count": ones}.items()}


def _losses(measured: Measured) -> Losses:
    sums = measured.sums
    model, filtered = (mean_per_sequence(sums[n], sums["count"]) for n in ("model", "kalman"))
    return Losses(model, filtered)
