"""From a checked subject to a report: pilot, sweeps, findings, instruments, verdict."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from probe import discrimination, nudge, reference, verdict
from probe.analysis import Bench, Setting, choose_analyses
from probe.audit import audit
from probe.change_point import change_point_stage, read_parts
from probe.checkpoints.base import Subject, transformer_of
from probe.doctor import current_versions, provenance
from probe.errors import InputError
from probe.findings import Check, Finding, Instrument, Report
from probe.models.hooked import SequenceModel
from probe.pilot import scout
from probe.plan import PILOT, Plan
from probe.progress import Phases
from probe.reproduction import protocol
from probe.response_stage import OUTPUT, response_stages
from probe.rule import Thresholds
from probe.scores import Reading, read
from probe.stages import Results
from probe.sweep import Means
from probe.sweeps import Measured, swept
from probe.tasks.base import label
from probe.threads import one_thread
from probe.views import SUBJECT

Progress = Callable[[int, int], None]
AUDITED = 16  # sequences of the audit
VITAL = frozenset({"output", "streams"})  # parts without which no verdict stands


@dataclass(frozen=True)
class Request:
    """What is to be analysed, and how.

    Attributes:
        subject: The model.
        plan: The data.
        only: Names of the analyses to run; empty for all.
        thorough: Whether analyses that take minutes run too.
        published: Whether to measure by the published protocol too.
        discriminate: Whether to try the families that are left open under inputs that part them.
    """

    subject: Subject
    plan: Plan
    only: tuple[str, ...] = ()
    thorough: bool = False
    published: bool = False
    discriminate: bool = False


def analyze(
    request: Request,
    progress: Progress = lambda done, total: None,
    means: Means | None = None,
) -> Report:
    """Runs everything; writes no report.

    Raises:
        InputError: The task does not fit the model, or its outputs are not finite.
    """
    with one_thread():
        return _analyze(request, progress, means or Means())


def _analyze(request: Request, progress: Progress, means: Means) -> Report:
    started = time.time()
    subject, plan = request.subject, request.plan
    check_fit(subject, plan)
    checks = audit(subject.model, plan.draw(PILOT, 0, AUDITED).tokens, subject.original)
    asked = choose_analyses(subject, plan.task, request.only, request.thorough, checks)
    phases = Phases(progress, 1 + len(asked.jobs))
    setting = scout(plan, subject.model.layers)
    beside = reference.ReferenceStage(setting.ridge)
    measured = swept(subject, plan, setting, asked, phases.next(), means)
    results = measured.results
    wanted: dict[str, Callable[[], Finding]] = {
        one.name: partial(one.conclude, setting, results) for one in asked.analyses
    }
    for job in asked.jobs:
        bench = Bench(subject, plan, setting, results, phases.next())
        wanted[job.name] = partial(job.run, bench)
    if request.published:
        model = transformer_of(subject)
        wanted["published_protocol"] = partial(
            protocol.published_protocol, model, plan.task, plan.seed
        )
    if request.discriminate:
        wanted[discrimination.NAME] = partial(
            discrimination.discriminate, subject.model, plan, setting, results
        )
    findings = {name: means.journal.finding(name, find) for name, find in wanted.items()}
    return Report(
        subject=describe_subject(subject),
        task=describe_task(plan, measured.clipped),
        verdict=_judge(setting, measured, findings, checks),
        reference=reference.conclude(results[beside, SUBJECT]),
        findings=asked.in_order(findings),
        left_out=asked.left_out,
        audit=checks,
        run={
            **describe_run(subject, time.time() - started, plan.device),
            "engine": means.engine.name,
            "workers": means.engine.workers(plan),
            **_batches(plan, measured),
            "resumed": means.journal.resumed,
        },
    )


def check_fit(subject: Subject, plan: Plan) -> None:
    """Refuses what cannot be analysed before anything is computed.

    Raises:
        InputError: The task does not fit the model, or its outputs are not finite.
    """
    model, task = subject.model, plan.task
    if not isinstance(model, SequenceModel):
        raise InputError(f"{subject.name}: reads token ids, task {task.name} has vectors")
    if (model.d_in, model.d_out) != (task.width_in, task.width_out):
        raise InputError(
            f"task {task.name} has tokens of width {task.width_in} and targets of width "
            f"{task.width_out}; the model wants {model.d_in} and {model.d_out}"
        )
    output = subject.model(plan.draw(PILOT, 0, 2).tokens)
    if not bool(output.isfinite().all()):
        raise InputError(f"{subject.name}: the model's predictions are not finite")


def _vital(checks: tuple[Check, ...]) -> tuple[Instrument, ...]:
    """The checks without which no verdict stands, as instruments."""
    return tuple(
        Instrument(check.name, check.must_read, check.reads, check.ok)
        for check in checks
        if check.part in VITAL
    )


def _judge(
    setting: Setting,
    measured: Measured,
    findings: Mapping[str, Finding],
    checks: tuple[Check, ...],
) -> verdict.Verdict:
    results = measured.results
    stages = {view: stage for stage in response_stages(setting) for view in stage.views}
    thresholds = Thresholds.load()

    def read_view(view: str) -> Reading:
        return read(stages[view], results[stages[view], view], OUTPUT, "judged")

    evidence = verdict.Evidence(
        reading=read_view(SUBJECT),
        instruments=(*_vital(checks), *verdict.check_instruments(read_view, thresholds)),
        nudge=_nudge(setting, results, measured.clipped),
        findings=findings,
        layers=setting.layers,
        scope=f"task {setting.task.name}, in distribution, t = {label(setting.windows.judged)}",
        parts=read_parts(results[change_point_stage(setting), SUBJECT]),
    )
    return verdict.judge(evidence, thresholds)


def _nudge(
    setting: Setting, results: Results, clipped: Mapping[str, float]
) -> verdict.Nudge | None:
    for stage in nudge.nudge_of(setting):
        alpha, fixed = stage.read(results)
        excess = clipped["nudged teacher"] - clipped["in distribution"]
        return verdict.Nudge(alpha.value, fixed.value, nudge.known_teachers(setting.task), excess)
    return None


def _batches(plan: Plan, measured: Measured) -> dict[str, object]:
    """The batch size, and what became of it where memory ran out."""
    fitted = measured.batch_size
    halved = {"batch_size_asked": plan.batch_size, "memory": f"ran out; {fitted} sequences fitted"}
    return {"batch_size": fitted, **(halved if fitted < plan.batch_size else {})}


def describe_subject(subject: Subject) -> dict[str, object]:
    """The subject as it stands in results.json."""
    return {
        "name": subject.name,
        "format": subject.format,
        "sha256": subject.sha256,
        "layers": subject.model.layers,
        "parameters": subject.parameters,
    }


def describe_task(plan: Plan, clipped: Mapping[str, float]) -> dict[str, object]:
    """The task as it stands in results.json, with the share of clipped entries by input law."""
    params = {**plan.task.params(), "clipped_share": dict(clipped)}
    return {
        "name": plan.task.name,
        "params": params,
        "sequences": plan.sequences,
        "seed": plan.seed,
    }


def describe_run(subject: Subject, seconds: float, device: str = "cpu") -> dict[str, object]:
    """What does not follow from the inputs."""
    return {
        "wall_seconds": round(seconds, 1),
        "engine": "local",
        "device": device,
        "host": platform.node(),
        "versions": current_versions(),
        **provenance(subject),
    }
