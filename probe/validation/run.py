"""Draws models, looks at them blind and grades the verdicts."""

import itertools
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from probe.allocator import keep_freed_memory
from probe.plan import Plan
from probe.rule import Thresholds
from probe.sampling import generator_for
from probe.threads import one_thread
from probe.validation.grading import Seen, look
from probe.validation.specimens import Half, Label, Specimen, draw
from probe.validation.summary import Graded, Summary, summarise
from probe.views import SUBJECT

SEQUENCES = 2048
CHUNK = 100  # models of one process; those of one task share their data
GROUP = 16  # models that share a sweep
STREAM = 43

Progress = Callable[[int, int], None]


@runtime_checkable
class Counter(Protocol):
    """A queue between processes that passes on how many steps are done."""

    def put(self, item: int) -> None:
        """Adds some steps."""

    def get(self) -> int:
        """Takes them out."""

    def qsize(self) -> int:
        """How many entries wait."""


@dataclass(frozen=True)
class Validation:
    """A graded run."""

    seed: int
    sequences: int
    graded: tuple[Graded, ...]
    summary: Summary


@dataclass(frozen=True)
class Observed:
    """A label, and what was measured without sight of it."""

    label: Label
    seen: Seen


def validate(
    models: int, seed: int, progress: Progress = lambda done, total: None, workers: int = 2
) -> Validation:
    """Grades the detector on families on which no threshold was set.

    Args:
        models: How many models to draw.
        seed: Seed of the models and of their data; the result does not depend on the workers.
        progress: Called with steps done and steps in all: a model is drawn, then looked at.
        workers: Processes.
    """
    observed = observe(models, seed, "report", progress, workers)
    graded = grade(observed, Thresholds.load())
    return Validation(seed, SEQUENCES, graded, summarise(graded))


def grade(observed: Sequence[Observed], thresholds: Thresholds) -> tuple[Graded, ...]:
    """The verdicts beside what was planted."""
    return tuple(
        Graded(one.label, one.seen.judge(thresholds), one.seen.readings[SUBJECT])
        for one in observed
    )


def observe(models: int, seed: int, half: Half, progress: Progress, workers: int) -> list[Observed]:
    """Draws models of a half and measures them, in chunks that processes share."""
    starts = range(0, models, CHUNK)
    chunks = [range(start, min(start + CHUNK, models)) for start in starts]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(workers, spawn) as pool:
        steps = manager.Queue()
        running = [pool.submit(_observe_chunk, chunk, seed, half, steps) for chunk in chunks]
        _follow(running, steps, 2 * models, progress)
        return [one for future in running for one in pickle.loads(future.result())]


def _follow(
    running: Sequence[Future[bytes]], steps: Counter, total: int, progress: Progress
) -> None:
    """Reports steps until all are done or one has failed."""
    done = 0
    while any(not future.done() for future in running):
        wait(running, timeout=1)
        for _ in range(steps.qsize()):
            done += steps.get()
        progress(min(done, total), total)
        if any(future.done() and future.exception() for future in running):
            return


def _observe_chunk(indices: Iterable[int], seed: int, half: Half, steps: Counter) -> bytes:
    """Draws and measures; pickled here, since tensors would travel as shared files, one each."""
    keep_freed_memory()
    with one_thread():
        specimens = []
        for specimen in draw(indices, seed, half):
            specimens.append(specimen)
            steps.put(1)
        seen: dict[str, Seen] = {}
        for group in _groups(specimens):
            # The first model names the stream, so that groups never share their data.
            data = int(generator_for(seed, STREAM, group[0].index + 1).initial_seed() % 2**32)
            plan = Plan(group[0].planted.task, SEQUENCES, data, workers=1)
            seen |= look({s.name: s.planted.model for s in group}, plan)
            steps.put(len(group))
        return pickle.dumps([Observed(s.label, seen[s.name]) for s in specimens])


def _groups(specimens: Iterable[Specimen]) -> Iterator[list[Specimen]]:
    """Specimens of one task, a few at a time."""
    ordered = sorted(specimens, key=lambda s: (s.planted.task.name, s.index))
    for _, of_task in itertools.groupby(ordered, key=lambda s: s.planted.task.name):
        members = list(of_task)
        for first in range(0, len(members), GROUP):
            yield members[first : first + GROUP]
