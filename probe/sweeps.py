"""The sweeps of an analysis: one over the task's own law, and a shorter one over each other law."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from probe import nudge, reference
from probe.analysis import Asked, Setting
from probe.capture import capture
from probe.change_point import change_point_stage
from probe.checkpoints.base import Source, Subject, read
from probe.engines.base import Worker
from probe.language_task import find_prompts, posed
from probe.models.hooked import HookedModel, LanguageModel
from probe.plan import LEAST_SEQUENCES, Plan
from probe.response_stage import response_stages
from probe.stages import Results, Stage
from probe.sweep import MAIN, Means, Sweep
from probe.views import SUBJECT, TWIN, all_views, permuted_twin, seen_as

Progress = Callable[[int, int], None]
NUDGED = "nudged"


@dataclass(frozen=True)
class Measured:
    """What the sweeps of an analysis measured.

    Attributes:
        results: By stage and view.
        clipped: The share of clipped entries under each law.
        batch_size: The smallest with which a batch fitted into memory.
    """

    results: Results
    clipped: dict[str, float]
    batch_size: int


@dataclass(frozen=True)
class Alone:
    """The model by itself."""

    def worker(self, model: HookedModel, plan: Plan) -> Worker:
        """A worker that sees the model as it is."""
        return Worker(plan, {SUBJECT: model}, {SUBJECT: seen_as(SUBJECT)}, capture)


@dataclass(frozen=True)
class WithControls:
    """The model beside its permuted twin and the planted mesa-layer, whose lambda is `ridge`."""

    ridge: float

    def worker(self, model: HookedModel, plan: Plan) -> Worker:
        """A worker that sees all views."""
        models = {SUBJECT: model, TWIN: permuted_twin(model, plan.seed)}
        return Worker(plan, models, all_views(self.ridge), capture)


@dataclass(frozen=True)
class FromCheckpoint:
    """How another process makes the worker of a sweep: it reads the checkpoint from its path."""

    source: Source
    plan: Plan
    beside: Alone | WithControls

    def worker(self, device: str) -> Worker:
        """See `Setup`.

        Raises:
            InputError: The checkpoint cannot be read there.
        """
        subject = read(self.source)
        if isinstance(subject.model, LanguageModel):
            subject, _ = posed(subject, find_prompts(self.plan.task.name))
        return self.beside.worker(subject.model, replace(self.plan, device=device)).copy()


def least_plan(plan: Plan, times: int = 1) -> Plan:
    """A plan of as few sequences as can be, or so many times that."""
    return replace(plan, sequences=min(plan.sequences, LEAST_SEQUENCES * times))


def swept(
    subject: Subject,
    plan: Plan,
    setting: Setting,
    asked: Asked,
    progress: Progress = lambda done, total: None,
    means: Means | None = None,
) -> Measured:
    """Runs all stages that the analyses, the instruments and the verdict need.

    Raises:
        InputError: As in `Sweep`.
    """
    beside = reference.ReferenceStage(setting.ridge)
    wanted: list[Stage] = [*response_stages(setting), beside, change_point_stage(setting)]
    wanted += [stage for a in asked.analyses for stage in a.stages(setting)]
    turned = nudge.nudge_of(setting)
    own = tuple(stage for stage in wanted if not isinstance(stage, nudge.NudgeStage))

    controls = WithControls(setting.ridge)
    main = _sweep(subject, plan, controls, MAIN, means)
    main.progress = lambda done, total: progress(done, total + bool(turned))
    results = dict(main.run(own))
    clipped = {"in distribution": main.clipped_share}
    for stage in turned:
        shorter = replace(plan, task=stage.task, sequences=max(plan.sequences // 4, 256))
        nudged = _sweep(subject, shorter, Alone(), NUDGED, means)
        results |= nudged.run((stage,))
        clipped["nudged teacher"] = nudged.clipped_share
        progress(1, 1)
    return Measured(results, clipped, main.batch_size)


def _sweep(
    subject: Subject, plan: Plan, beside: Alone | WithControls, name: str, means: Means | None
) -> Sweep:
    worker = beside.worker(subject.model, plan)
    source = subject.source
    setup = None if source is None else FromCheckpoint(source.anywhere(), plan, beside)
    seen = worker.models, worker.views, worker.forward
    return Sweep(plan, *seen, means=means, setup=setup, name=name)
