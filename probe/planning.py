"""What a run will take: memory and time from a short trial of its steps, disk from shapes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from probe.analysis import Bench, Setting, choose_analyses
from probe.atlas import work_of
from probe.audit import audit
from probe.checkpoints.base import Subject
from probe.engines.base import Order
from probe.footprint import FLOAT, PER_FINDING, REPORT, report_bytes
from probe.language import LEAST as LEAST_WINDOWS
from probe.language import Survey, survey
from probe.pilot import scout
from probe.pipeline import AUDITED, Request, check_fit
from probe.plan import FIT, PILOT, TEST, Lease, Plan, Shard
from probe.stages import Results
from probe.sweeps import WithControls
from probe.threads import one_thread
from probe.trial import Pace, Step, Trial, Watch, try_job, try_sweep

FEW = 2  # sequences from which shapes are read


@dataclass(frozen=True)
class Cost:
    """One line of an estimate; what does not apply is None.

    Attributes:
        name: A step of the run.
        memory: The most bytes that the process holds meanwhile.
        seconds: Wall time.
        disk: Bytes that are written.
    """

    name: str
    memory: int | None = None
    seconds: float | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Estimate:
    """The steps of a run, one after another, and how long the trial took that tells of them."""

    costs: tuple[Cost, ...]
    trial: float = 0.0

    @property
    def memory(self) -> int:
        """The most bytes that the process holds in any step."""
        return max((cost.memory or 0 for cost in self.costs), default=0)

    @property
    def seconds(self) -> float:
        """Wall time of all steps."""
        return sum(cost.seconds or 0.0 for cost in self.costs)

    @property
    def disk(self) -> int:
        """Bytes of the report, and of what is kept on the way to it."""
        return sum(cost.disk or 0 for cost in self.costs)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows to be printed; the whole comes last, then the trial itself."""
        whole = Cost("in all", self.memory, self.seconds, self.disk)
        tried = Cost("this trial, which is over", seconds=self.trial)
        rows: list[tuple[str, ...]] = [
            (
                cost.name,
                "" if cost.memory is None else f"{cost.memory / 2**20:,.0f}",
                "" if cost.seconds is None else f"{cost.seconds:,.1f}",
                "" if cost.disk is None else f"{cost.disk / 2**20:,.1f}",
            )
            for cost in (*self.costs, whole, tried)
        ]
        return ("", "memory, MiB", "time, s", "disk, MiB"), rows


def estimate(asked: Survey | Request) -> Estimate:
    """The cost of a run, from shapes and a short trial.

    Raises:
        InputError: The run would be refused.
    """
    started = time.perf_counter()
    with one_thread():
        costs = survey_costs(asked) if isinstance(asked, Survey) else analysis_costs(asked)
        return Estimate(tuple(costs), time.perf_counter() - started)


def analysis_costs(request: Request) -> Iterator[Cost]:
    """The steps of `analyze` on a task, each in a trial of its own, scaled to the run."""
    subject, plan = request.subject, request.plan
    loading = time.process_time()
    watch = Watch()
    check_fit(subject, plan)
    checks = audit(subject.model, plan.draw(PILOT, 0, AUDITED).tokens, subject.original)
    asked = choose_analyses(subject, plan.task, request.only, request.thorough, checks)
    setting = scout(plan, subject.model.layers)
    ready = watch.mark()
    yield Cost("loading, audit and pilot", ready.memory, loading + ready.seconds)
    trial = try_sweep(subject, plan, setting, asked)
    yield from sweep_costs(plan, trial)
    watch = Watch()
    for analysis in asked.analyses:
        analysis.conclude(setting, trial.results)
    concluded = watch.mark()
    yield Cost("conclusions", concluded.memory, concluded.seconds)
    for job in asked.jobs:
        yield _cost(job.name, try_job(job, _bench(subject, plan, setting, trial.results)))
    more = {"the published protocol": request.published, "--discriminate": request.discriminate}
    for name in (name for name, wanted in more.items() if wanted):
        yield Cost(f"{name}, which is not tried")
    journal = journal_bytes(subject, plan, setting, trial.results)
    yield Cost("sums that are kept until the run is done", disk=journal)
    yield Cost("the report", disk=report_bytes(asked))


def sweep_costs(plan: Plan, trial: Trial) -> Iterator[Cost]:
    """The steps of the sweep, from groups of shards of which each worker takes one."""
    yield _cost("the first shards", trial.first)
    for name, split, pace in (("fit", FIT, trial.fit), ("test", TEST, trial.test)):
        if split == TEST:
            yield _cost("fits", trial.learning)
        yield _split_cost(f"{name} on {{count:,}} sequences", plan.shards(split), plan, pace)
    if trial.nudged:
        yield Cost("a turned teacher", seconds=trial.nudged * max(plan.sequences // 4, 256))


def _split_cost(name: str, shards: tuple[Shard, ...], plan: Plan, pace: Pace) -> Cost:
    lengths = [shard.size for shard in shards]
    group = pace.step(max(lengths))
    groups = -(-len(shards) // plan.workers)
    return Cost(name.format(count=sum(lengths)), group.memory, group.seconds * groups)


def _cost(name: str, step: Step) -> Cost:
    return Cost(name, step.memory, step.seconds)


def _bench(
    subject: Subject, plan: Plan, setting: Setting, results: Results
) -> Callable[[Callable[[int, int], None]], Bench]:
    return lambda progress: Bench(subject, plan, setting, results, progress)


def journal_bytes(subject: Subject, plan: Plan, setting: Setting, results: Results) -> int:
    """Bytes of the sums of both splits: they have fixed shapes, whatever the run's length.

    Those of the test split stand in the results of any sweep. Those of the fit split are read off
    what the stages make of a few sequences.
    """
    tested = sum(part.nbytes for found in results.values() for part in found.sums.values())
    return tested + fit_bytes(subject, plan, setting, results)


def fit_bytes(subject: Subject, plan: Plan, setting: Setting, results: Results) -> int:
    """Bytes of the fit sums of all stages of a sweep, in all of their folds."""
    keys = tuple(key for key in results if key[0].folds)
    worker = WithControls(setting.ridge).worker(subject.model, plan)
    found = worker.measure(Lease(FIT, 0, 0, (Shard(0, FEW),)), Order(keys))
    return sum(
        stage.folds * part.numel() * FLOAT
        for (stage, _), sums in zip(keys, found.sums, strict=True)
        for part in sums.values()
    )


def survey_costs(asked: Survey) -> Iterator[Cost]:
    """The steps of reading a language model: the fewest windows are read, and told of all.

    The audit and the ablation of heads cost the same for any number of windows.
    """
    loading, watch = time.process_time(), Watch()
    marks: list[tuple[float, int]] = []
    survey(
        replace(asked, sequences=LEAST_WINDOWS),
        lambda done, total: marks.append((time.perf_counter(), done)),
    )
    step, read = watch.mark(), work_of(LEAST_WINDOWS)
    yield Cost("loading", seconds=loading)
    reading = [mark for mark in marks if mark[1] <= read]
    each = 0.0
    if reading:
        (begun, first), (ended, last) = reading[0], reading[-1]
        each = (ended - begun) / (last - first)
    rest = step.seconds - each * read
    yield Cost("audit, and heads that are silenced", step.memory, max(rest, 0.0))
    windows = f"{asked.sequences:,} windows"
    yield Cost(windows, step.memory, each * work_of(asked.sequences))
    yield Cost("the report", disk=REPORT + PER_FINDING)
