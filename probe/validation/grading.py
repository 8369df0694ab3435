"""Verdicts on many models at once: those that share a task share its data and their moments.

The rule, the thresholds and the instruments are those of a single analysis; the inside of the
models is not looked at, since the class and the families rest on predictions alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from probe import nudge
from probe.analysis import Setting
from probe.capture import capture_output
from probe.change_point import ChangePointStage, Parts, change_point_stage, read_parts
from probe.findings import Verdict
from probe.models.hooked import HookedModel
from probe.pilot import scout
from probe.plan import Plan
from probe.response_stage import OUTPUT, ResponseStage, response_stages
from probe.rule import Thresholds
from probe.scores import Reading, read
from probe.stages import Results, Stage, View
from probe.sweep import Sweep
from probe.tasks.base import label
from probe.threads import one_thread
from probe.verdict import Evidence, Nudge, check_instruments, judge
from probe.views import PLANTED, SUBJECT, SWAPPED, TWIN, all_views, permuted_twin

CONTROL_SHARE = 0.25


@dataclass(frozen=True)
class _Group:
    """The stages of a group of models, each of them a view of its own."""

    plan: Plan
    setting: Setting
    names: tuple[str, ...]

    def view(self, name: str, kind: str) -> str:
        """The view of one model: itself, its twin, or itself beside foreign moments."""
        return name if kind == SUBJECT else PLANTED if kind == PLANTED else f"{kind} of {name}"

    def stage(self, kind: str) -> ResponseStage:
        """The response of all models, or of their twins, or beside foreign moments."""
        main, controls, swapped = response_stages(self.setting)
        of = {SUBJECT: main, TWIN: controls, PLANTED: controls, SWAPPED: swapped}[kind]
        views = (PLANTED,) if kind == PLANTED else tuple(self.view(n, kind) for n in self.names)
        share = 1.0 if kind == SUBJECT else CONTROL_SHARE
        return replace(of, views=views, layered=False, share=share, reads=("judged",))

    @property
    def change_point(self) -> ChangePointStage:
        """The search for a change of algorithm in every model."""
        return replace(change_point_stage(self.setting), views=self.names)


@dataclass(frozen=True)
class Seen:
    """What was measured on one model; a verdict follows from it for any thresholds.

    Attributes:
        readings: The model, and its controls, by kind of view.
        nudge: The nudge of the teacher, on tasks of few teachers.
        parts: The search for a change of algorithm.
        layers: Number of blocks.
        scope: Task and positions, in words.
    """

    readings: Mapping[str, Reading]
    nudge: Nudge | None
    parts: Parts
    layers: int
    scope: str

    def judge(self, thresholds: Thresholds) -> Verdict:
        """The verdict, without evidence from inside the model."""
        evidence = Evidence(
            reading=self.readings[SUBJECT],
            instruments=check_instruments(self.readings.__getitem__, thresholds),
            nudge=self.nudge,
            findings={},
            layers=self.layers,
            scope=self.scope,
            parts=self.parts,
        )
        return judge(evidence, thresholds)


def look(
    models: Mapping[str, HookedModel],
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Seen]:
    """Measures all models in one sweep over their task.

    Args:
        models: Models by name; all of them fit the task of the plan.
        plan: The data.
        progress: Called with shards done and shards in all.
    """
    with one_thread():
        group = _Group(plan, scout(plan, 1), tuple(models))
        results, clipped = _measure(group, models, progress)
        nudges = _nudges(group, models, clipped)
        return {
            name: Seen(
                readings={kind: _read(group, results, name, kind) for kind in KINDS},
                nudge=nudges.get(name),
                parts=read_parts(results[group.change_point, name]),
                layers=model.layers,
                scope=f"task {plan.task.name}, t = {label(group.setting.windows.judged)}",
            )
            for name, model in models.items()
        }


KINDS = (SUBJECT, TWIN, SWAPPED, PLANTED)


def _measure(
    group: _Group,
    models: Mapping[str, HookedModel],
    progress: Callable[[int, int], None],
) -> tuple[Results, float]:
    """Runs the response of models and controls; returns the clipped share too."""
    twins = {
        group.view(name, TWIN): permuted_twin(model, group.plan.seed)
        for name, model in models.items()
    }
    views: dict[str, View] = {PLANTED: all_views(group.setting.ridge)[PLANTED]}
    for name in models:
        views[name] = _as_it_is(name)
        views[group.view(name, TWIN)] = _as_it_is(group.view(name, TWIN))
        views[group.view(name, SWAPPED)] = _beside_foreign_moments(name)
    sweep = Sweep(group.plan, {**models, **twins}, views, capture_output, progress)
    stages: tuple[Stage, ...] = (*(group.stage(kind) for kind in KINDS), group.change_point)
    return sweep.run(stages), sweep.clipped_share


def _as_it_is(name: str) -> View:
    return lambda context, captures: (context, captures[name])


def _beside_foreign_moments(name: str) -> View:
    return lambda context, captures: (context.swapped, captures[name])


def _read(group: _Group, results: Results, name: str, kind: str) -> Reading:
    stage = group.stage(kind)
    return read(stage, results[stage, group.view(name, kind)], OUTPUT, "judged")


def _nudges(group: _Group, models: Mapping[str, HookedModel], clipped: float) -> dict[str, Nudge]:
    """The nudge, on tasks of few teachers, where it is judged first."""
    teachers = nudge.known_teachers(group.setting.task)
    if not teachers:
        return {}
    (stage,) = nudge.nudge_of(group.setting)
    stage = replace(stage, views=tuple(models))
    plan = replace(group.plan, task=stage.task, sequences=max(group.plan.sequences // 4, 256))
    sweep = Sweep(plan, models, {name: _as_it_is(name) for name in models}, capture_output)
    results = sweep.run((stage,))
    found = {}
    for name in models:
        alpha, fixed = stage.read(results, name)
        excess = sweep.clipped_share - clipped
        found[name] = Nudge(alpha.value, fixed.value, teachers, excess)
    return found
