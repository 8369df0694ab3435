"""What a run will take: memory and time from shapes and a trial, disk from what reports weigh."""

import resource
import time
from dataclasses import dataclass

from probe.analysis import Asked, choose_analyses
from probe.capture import capture
from probe.checkpoints.base import Subject
from probe.language import LEAST as LEAST_WINDOWS
from probe.language import Survey, survey
from probe.models.hooked import HookedModel
from probe.pilot import scout
from probe.pipeline import Request, check_fit
from probe.plan import PILOT, SHARD, Plan
from probe.sweeps import least_plan, swept
from probe.threads import one_thread

REPORT, PER_FINDING = 2**18, 2**17  # bytes of a report and of each finding, by those in the gallery
FLOAT = 8  # bytes of the numbers in which problems are solved


@dataclass(frozen=True)
class Cost:
    """One line of an estimate; what does not apply is None."""

    name: str
    memory: int | None = None
    seconds: float | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Estimate:
    """All lines, and their sums."""

    costs: tuple[Cost, ...]

    @property
    def memory(self) -> int:
        """Bytes at the same time: what the trial took, and shards as large as they will be."""
        return sum(cost.memory or 0 for cost in self.costs)

    @property
    def seconds(self) -> float:
        """Wall time of what was tried."""
        return sum(cost.seconds or 0.0 for cost in self.costs)

    @property
    def disk(self) -> int:
        """Bytes of the report."""
        return sum(cost.disk or 0 for cost in self.costs)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows to be printed; the sums come last."""
        whole = Cost("in all", self.memory, self.seconds, self.disk)
        rows = [
            (
                cost.name,
                "" if cost.memory is None else f"{cost.memory / 2**20:,.1f}",
                "" if cost.seconds is None else f"{cost.seconds:,.1f}",
                "" if cost.disk is None else f"{cost.disk / 2**20:,.1f}",
            )
            for cost in (*self.costs, whole)
        ]
        return ("", "memory, MiB", "time, s", "disk, MiB"), list(rows)


def estimate(asked: Survey | Request) -> Estimate:
    """The cost of a run, from shapes and a short trial.

    Raises:
        InputError: The run would be refused.
    """
    if isinstance(asked, Survey):
        return estimate_survey(asked)
    subject, plan = asked.subject, asked.plan
    check_fit(subject, plan)
    with one_thread():
        chosen = choose_analyses(subject, plan.task, asked.only, asked.thorough)
        return estimate_analysis(subject, plan, chosen)


def peak_bytes() -> int:
    """The most that this process has held so far; Linux tells it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def capture_bytes(model: HookedModel, plan: Plan) -> int:
    """Bytes of what `capture` keeps of one shard of a task's tokens: counted on two sequences."""
    seen = capture(model, plan.draw(PILOT, 0, 2).tokens, plan.batch_size)
    parts = (seen.output, seen.layers, seen.updates, seen.readouts)
    return sum(part.numel() * part.element_size() for part in parts) // 2 * SHARD


def problem_bytes(plan: Plan) -> int:
    """Bytes of one shard's prefix moments and eigenvectors, and as many for foreign pairs."""
    problem = plan.task.problem(plan.draw(PILOT, 0, 2))
    time_, d, d_v = problem.keys.shape[1], problem.keys.shape[2], problem.values.shape[2]
    return 2 * SHARD * time_ * (2 * d * d + d * d_v) * FLOAT


def estimate_analysis(subject: Subject, plan: Plan, asked: Asked) -> Estimate:
    """The cost of `analyze` on a task; jobs that follow the sweep are named, and not timed."""
    model, workers = subject.model, plan.workers
    fixed, each = _trial(subject, plan, asked)
    findings = len(asked.analyses) + len(asked.jobs)
    jobs = ", ".join(job.name for job in asked.jobs) or "none"
    return Estimate(
        (
            Cost("the process with its models and fits, in a trial", memory=peak_bytes()),
            Cost("captures of a shard", memory=2 * workers * capture_bytes(model, plan)),
            Cost("problems of a shard", memory=workers * problem_bytes(plan)),
            Cost("fits, whatever the number of sequences", seconds=fixed),
            Cost(f"{plan.sequences:,} sequences", seconds=each * plan.sequences),
            Cost(f"jobs after the sweep, not tried: {jobs}"),
            Cost("the report", disk=REPORT + findings * PER_FINDING),
        )
    )


def _trial(subject: Subject, plan: Plan, asked: Asked) -> tuple[float, float]:
    """Seconds of the fits, and of each sequence: two sweeps of few sequences, without jobs."""
    few = least_plan(plan)
    setting = scout(few, subject.model.layers)
    seconds = []
    for trial in (few, least_plan(plan, 2)):
        started = time.perf_counter()
        swept(subject, trial, setting, asked)
        seconds.append(time.perf_counter() - started)
    each = max(seconds[1] - seconds[0], 0.0) / few.sequences
    return max(seconds[0] - each * few.sequences, 0.0), each


def estimate_survey(asked: Survey) -> Estimate:
    """The cost of reading a language model: a survey of the fewest windows, scaled to all."""
    started = time.perf_counter()
    survey(Survey(asked.subject, asked.reading, LEAST_WINDOWS, asked.seed))
    each = (time.perf_counter() - started) / LEAST_WINDOWS
    return Estimate(
        (
            Cost("the process with its models, in a trial", memory=peak_bytes()),
            Cost(f"{asked.sequences:,} windows", seconds=each * asked.sequences),
            Cost("the report", disk=REPORT + PER_FINDING),
        )
    )
