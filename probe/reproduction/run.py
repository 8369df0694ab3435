"""Walks a copy of the published folder and measures everything in it that is known."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from probe.checkpoints.base import load
from probe.errors import InputError
from probe.models.transformer import SequenceTransformer
from probe.reproduction import measure, published
from probe.reproduction.measure import SEEDS, Measured, Prober
from probe.reproduction.published import (
    CHECKPOINTS,
    NOT_COVERED,
    REFERENCES,
    Checkpoint,
    Claim,
    Reference,
)
from probe.reproduction.records import Reproduction, Row, Skipped, summarised
from probe.reproduction.report import write_report
from probe.reproduction.sources import Published, Source
from probe.solvers.chebyshev_recursion import Recursion
from probe.tasks.base import find_task
from probe.threads import one_thread

PREFIX = "von-oswald-2023/"
PRECISION, MANY_SAMPLES = 0.01, 25  # samples for a mean loss whose standard error is larger
Progress = Callable[[int, int], None]
Arrays = dict[Claim, Published]


def silent(done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Run:
    """One model or algorithm that can be measured, and the published arrays beside it.

    Attributes:
        name: How rows call it.
        arrays: The published arrays.
        stated_mean: A mean loss known from the paper alone.
        measure: Measures everything on one sample.
        measure_loss: Measures the loss alone.
    """

    name: str
    arrays: Arrays
    stated_mean: float | None
    measure: Callable[[int], Measured]
    measure_loss: Callable[[int], Measured]


def reproduce(folder: Path, out: Path, seed: int = 0, progress: Progress = silent) -> Reproduction:
    """Measures every known checkpoint in the folder and writes the report into `out`.

    Each is run on 5 fresh samples of 256 sequences, as the published numbers were; for losses
    averaged over positions it is 25 where 5 leave a standard error above 1 %.

    Args:
        folder: A copy of experiment_results, or a part of it.
        out: Where reproduction.json, .html and .md are written.
        seed: Seed of the fresh samples.
        progress: Called with (done, total) after every sample of every model.

    Raises:
        InputError: The folder holds none of the known files.
    """
    source = Source(folder)
    unknown = _unknown_files(source)
    skipped: list[Skipped] = list(_not_covered(source))
    runs = [*_checkpoint_runs(source, seed, skipped), *_reference_runs(source, seed, skipped)]
    with one_thread():
        rows = _measured(runs, skipped, progress)
    summary = summarised(tuple(rows), tuple(skipped), unknown)
    reproduction = Reproduction(seed, tuple(rows), summary)
    write_report(reproduction, out)
    return reproduction


def _measured(runs: list[Run], skipped: list[Skipped], progress: Progress) -> list[Row]:
    rows: list[Row] = []
    for number, run in enumerate(runs):
        repetitions = []
        for repetition in range(SEEDS):
            repetitions.append(run.measure(repetition))
            progress(number * SEEDS + repetition + 1, len(runs) * SEEDS)
        rows += _rows(run, repetitions, skipped)
    return rows


def _unknown_files(source: Source) -> int:
    """How many files belong to nothing we know; refuses a folder where that is all of them."""
    if not source.folder.is_dir():
        raise InputError(f"{source.folder}: no such folder")
    known = {published.CHEBYSHEV, *(entry.file.partition(",")[0] for entry in NOT_COVERED)}
    known |= {entry.file.partition("#")[0] for entry in CHECKPOINTS}
    known |= {claim.file for entry in CHECKPOINTS for claim in entry.claims}
    known |= {claim.file for entry in REFERENCES for claim in entry.claims}
    files = [path for path in source.folder.rglob("*") if path.is_file()]
    found = sum(path.relative_to(source.folder).as_posix() in known for path in files)
    if not found:
        raise InputError(
            f"{source.folder}: holds no published file, such as {CHECKPOINTS[0].file}; "
            "give the folder experiment_results"
        )
    return len(files) - found


def _not_covered(source: Source) -> Iterator[Skipped]:
    for entry in NOT_COVERED:
        if source.holds(entry.file.partition(",")[0]):
            yield Skipped(entry.file, entry.reason)


def _checkpoint_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in CHECKPOINTS:
        if not source.holds(entry.file):
            skipped.append(Skipped(entry.file, "the checkpoint is not in the folder"))
            continue
        lacking = entry.probing and entry.probing.recursion not in source.recursions
        unmet = {published.PRECONDITIONED, published.CONTROL} if lacking else set()
        arrays = _arrays(source, entry, unmet, skipped)
        if not arrays and entry.stated_mean is None:
            continue
        try:
            subject = load(source.folder / entry.file, PREFIX + entry.preset)
        except InputError as error:
            skipped.append(Skipped(entry.file, str(error)))
            continue
        quantities = frozenset(claim.quantity for claim in arrays) | {published.LOSS}
        prober = Prober(find_task(subject.task or ""), quantities, entry.probing, source.recursions)
        model = subject.model
        brief = partial(_probed, replace(prober, quantities=frozenset({published.LOSS})), model)
        yield Run(
            name=entry.file,
            arrays=arrays,
            stated_mean=entry.stated_mean,
            measure=partial(_probed, prober, model, seed),
            measure_loss=partial(brief, seed),
        )


def _reference_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in REFERENCES:
        recursion = entry.algorithm.recursion
        lacking = recursion is not None and recursion not in source.recursions
        arrays = _arrays(source, entry, {published.LOSS} if lacking else set(), skipped)
        if arrays:
            solved = partial(_solved, entry, source.recursions, seed)
            yield Run(entry.name, arrays, None, solved, solved)


def _arrays(
    source: Source, entry: Checkpoint | Reference, unmet: set[str], skipped: list[Skipped]
) -> Arrays:
    """The published arrays that can be read; quantities in `unmet` lack their constants."""
    arrays: Arrays = {}
    for claim in entry.claims:
        try:
            if claim.quantity in unmet:
                raise InputError(f"{published.CHEBYSHEV}: holds no constants for it")
            arrays[claim] = source.read(claim)
        except InputError as error:
            skipped.append(Skipped(f"{entry.name}: {claim.quantity}", str(error)))
    return arrays


def _probed(prober: Prober, model: SequenceTransformer, seed: int, repetition: int) -> Measured:
    return prober.measure(model, measure.sample(prober.task, seed, repetition))


def _solved(
    entry: Reference, recursions: Mapping[str, Recursion], seed: int, repetition: int
) -> Measured:
    task = find_task(entry.task)
    problem = task.problem(measure.sample(task, seed, repetition))
    predictions = entry.algorithm.predict(problem, recursions)
    return {published.LOSS: measure.loss_by_position(predictions, problem.targets)}


def _rows(run: Run, repetitions: list[Measured], skipped: list[Skipped]) -> Iterator[Row]:
    ours = {
        quantity: torch.stack([measured[quantity] for measured in repetitions]).mean(0)
        for quantity in repetitions[0]
    }
    if run.stated_mean is not None:
        mean = _mean_loss(run, repetitions)
        yield Row(run.name, published.LOSS, None, None, run.stated_mean, None, mean)
    for claim, array in run.arrays.items():
        found = ours[claim.quantity]
        if array.mean.shape != found.shape:
            shapes = f"shape {list(array.mean.shape)}, ours has {list(found.shape)}"
            skipped.append(Skipped(f"{run.name}: {claim.quantity}", f"{claim.file}: {shapes}"))
            continue
        yield from _cells(run.name, claim.quantity, array, found)
        if claim.quantity == published.LOSS:
            theirs, mean = float(array.mean.mean()), _mean_loss(run, repetitions)
            yield Row(run.name, published.LOSS, None, None, theirs, None, mean)


def _mean_loss(run: Run, repetitions: list[Measured]) -> float:
    """Mean over positions; a few sequences can drive a model far off, then samples are added.

    How many is decided once: adding until the error looks small would favour lucky samples.
    """
    losses = [float(measured[published.LOSS].mean()) for measured in repetitions]
    error = statistics.stdev(losses) / len(losses) ** 0.5
    if error > PRECISION * statistics.fmean(losses):
        more = (run.measure_loss(number) for number in range(len(losses), MANY_SAMPLES))
        losses += [float(measured[published.LOSS].mean()) for measured in more]
    return statistics.fmean(losses)


def _cells(
    name: str, quantity: str, array: Published, ours: Float[Tensor, "positions columns"]
) -> Iterator[Row]:
    layered = quantity in (published.CURRENT, published.NEXT, published.PRECONDITIONED)
    binding = quantity == published.BINDING
    start = measure.LENGTH - len(ours) if binding else 0
    for position, column in product(*map(range, ours.shape)):
        layer = column if layered else measure.BINDING_LAYER if binding else None
        theirs, spread, own = (
            float(values[position, column]) for values in (array.mean, array.spread, ours)
        )
        yield Row(name, quantity, layer, start + position, theirs, spread, own)
