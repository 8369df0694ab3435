"""What of the published can be measured in a folder: models, algorithms, training runs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from probe.checkpoints.base import load, transformer_of
from probe.errors import InputError
from probe.models.transformer import SequenceTransformer
from probe.presets.base import find_preset
from probe.reproduction import measure, published
from probe.reproduction.interpolation import Trio
from probe.reproduction.measure import LENGTH, Measured, Prober
from probe.reproduction.published import (
    CHECKPOINTS,
    REFERENCES,
    TRAINING_RUNS,
    UNTRAINED,
    Checkpoint,
    Claim,
    Reference,
)
from probe.reproduction.records import Skipped
from probe.reproduction.sources import Published, Source
from probe.reproduction.untrained import untrained_sensitivity
from probe.sampling import generator_for
from probe.solvers.chebyshev_recursion import Recursion
from probe.tasks.base import find_task

PREFIX = "von-oswald-2023/"
ONE_LAYER, ONE_LAYER_STD = f"{PREFIX}linear-1l", 2e-4
Arrays = dict[Claim, Published]


@dataclass(frozen=True)
class Run:
    """One model or algorithm that can be measured, and the published arrays beside it.

    Attributes:
        name: How rows call it.
        arrays: The published arrays.
        measure: Measures everything on one sample.
        measure_means: Measures what is averaged over positions, on one sample.
        stated_mean: A mean loss known from the paper alone.
        last: Position of the last number of every array.
    """

    name: str
    arrays: Arrays
    measure: Callable[[int], Measured]
    measure_means: Callable[[int], Measured]
    stated_mean: float | None = None
    last: int = LENGTH - 1


def find_runs(source: Source, seed: int, skipped: list[Skipped]) -> list[Run]:
    """Everything that can be measured; what cannot be joins `skipped` with its reason."""
    return [
        *_checkpoint_runs(source, seed, skipped),
        *_reference_runs(source, seed, skipped),
        *_untrained_runs(source, seed, skipped),
        *_training_runs(source, seed, skipped),
    ]


def _checkpoint_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in CHECKPOINTS:
        if not source.holds(entry.file):
            skipped.append(Skipped(entry.file, "the checkpoint is not in the folder"))
            skipped.extend(_orphans(source, entry))
            continue
        lacking = entry.probing and entry.probing.recursion not in source.recursions
        unmet = {published.PRECONDITIONED, published.CONTROL} if lacking else set()
        arrays = _arrays(source, entry.name, entry.claims, unmet, skipped)
        if not arrays and entry.stated_mean is None:
            continue
        try:
            subject = load(source.folder / entry.file, PREFIX + entry.preset)
        except InputError as error:
            skipped.append(Skipped(entry.file, str(error)))
            continue
        quantities = frozenset(claim.quantity for claim in arrays) | {published.LOSS}
        prober = Prober(find_task(subject.task or ""), quantities, entry.probing, source.recursions)
        brief = replace(prober, quantities=frozenset({published.LOSS}))
        model = transformer_of(subject)
        yield Run(
            name=entry.file,
            arrays=arrays,
            measure=partial(_probed, prober, model, seed),
            measure_means=partial(_probed, brief, model, seed),
            stated_mean=entry.stated_mean,
        )


def _orphans(source: Source, entry: Checkpoint) -> Iterator[Skipped]:
    """Results in the folder of weights that are not."""
    for claim in entry.claims:
        if source.holds(claim.file):
            reason = f"its weights, {entry.file}, are not in the folder"
            what = f"{claim.place}: {claim.quantity}"
            yield Skipped(what, reason, claim.file, _numbers(source, claim))


def _numbers(source: Source, claim: Claim) -> int:
    """How many numbers a claim is about; 0 if they cannot be read."""
    try:
        return source.read(claim).mean.numel()
    except InputError:
        return 0


def _reference_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in REFERENCES:
        recursion = entry.algorithm.recursion
        lacking = recursion is not None and recursion not in source.recursions
        unmet = {published.LOSS} if lacking else set()
        arrays = _arrays(source, entry.name, entry.claims, unmet, skipped)
        if arrays:
            solved = partial(_solved, entry, source.recursions, seed)
            yield Run(entry.name, arrays, solved, solved)


def _untrained_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in UNTRAINED:
        arrays = _arrays(source, entry.name, entry.claims, set(), skipped)
        if arrays:
            found = partial(untrained_sensitivity, PREFIX + entry.preset, entry.query, seed)
            yield Run(entry.name, arrays, found, found, last=entry.query)


def _training_runs(source: Source, seed: int, skipped: list[Skipped]) -> Iterator[Run]:
    for entry in TRAINING_RUNS:
        trained = _arrays(source, entry.name, entry.trained, set(), skipped)
        name = f"{entry.name}, untrained"
        untrained = _arrays(source, name, entry.untrained, set(), skipped)
        if not trained and not untrained:
            continue
        try:
            model = transformer_of(load(source.folder / entry.name, ONE_LAYER))
        except InputError as error:
            skipped.append(Skipped(entry.name, str(error), published.INTERPOLATION))
            continue
        start = SequenceTransformer(model.config)
        start.initialise(ONE_LAYER_STD, generator_for(seed, entry.run, 1))
        task = find_task(find_preset(ONE_LAYER).task)
        for label, arrays, weights in ((entry.name, trained, model), (name, untrained, start)):
            found = partial(Trio.of(task, weights, model).measure, seed)
            yield Run(label, arrays, found, found)


def _arrays(
    source: Source, name: str, claims: tuple[Claim, ...], unmet: set[str], skipped: list[Skipped]
) -> Arrays:
    """The published arrays that can be read; quantities in `unmet` lack their constants."""
    arrays: Arrays = {}
    for claim in claims:
        try:
            if claim.quantity in unmet:
                raise InputError(f"{published.CHEBYSHEV}: holds no constants for it")
            arrays[claim] = source.read(claim)
        except InputError as error:
            file = claim.file if source.holds(claim.file) else ""
            what = f"{name}: {claim.quantity}"
            skipped.append(Skipped(what, str(error), file, _numbers(source, claim)))
    return arrays


def _probed(prober: Prober, model: SequenceTransformer, seed: int, repetition: int) -> Measured:
    return prober.measure(model, measure.sample(prober.task, seed, repetition))


@torch.no_grad()
def _solved(
    entry: Reference, recursions: Mapping[str, Recursion], seed: int, repetition: int
) -> Measured:
    task = find_task(entry.task)
    problem = task.problem(measure.sample(task, seed, repetition))
    predictions = entry.algorithm.predict(problem, recursions)
    return {published.LOSS: measure.loss_by_position(predictions, problem.targets)}
