"""Walks a copy of the published folder and measures everything in it that is known."""

import statistics
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import InputError
from probe.files import reading
from probe.reproduction import published
from probe.reproduction.coverage import covered, known_files
from probe.reproduction.measure import BINDING_LAYER, SEEDS, Measured
from probe.reproduction.not_covered import NOT_COVERED, UNIDENTIFIED
from probe.reproduction.published import CHECKPOINTS, MEANS, Claim
from probe.reproduction.reasons import unmet
from probe.reproduction.records import Reproduction, Row, Skipped, summarised
from probe.reproduction.report import write_report
from probe.reproduction.runs import Run, find_runs
from probe.reproduction.sources import Published, Source
from probe.threads import one_thread

PRECISION, MANY_SAMPLES = 0.01, 25  # samples for a mean loss whose standard error is larger
_LAYER = {published.BINDING: BINDING_LAYER, published.EMBEDDED_FEATURES: 0}
_LAYER |= {published.SENSITIVITY: 1, published.SENSITIVITY_TO_OLDER: 1}
_BY_LAYER = (published.CURRENT, published.NEXT, published.PRECONDITIONED, published.FEATURES)
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """No progress."""


def reproduce(folder: Path, out: Path, seed: int = 0, progress: Progress = silent) -> Reproduction:
    """Measures all that can be measured of the folder and writes the report into `out`.

    Models run on 5 fresh samples of 256 sequences, as the published numbers were; for losses
    averaged over positions it is 25 where 5 leave a standard error above 1 %. Where a number was
    published of untrained models, 5 are drawn.

    Args:
        folder: A copy of experiment_results, or a part of it.
        out: Where reproduction.json, .html and .md are written.
        seed: Seed of the fresh samples.
        progress: Called with (done, total) after every sample of every model.

    Raises:
        InputError: The folder holds none of the known files.
    """
    source = Source(folder)
    with reading(folder):
        unknown = _unknown_files(source)
        skipped: list[Skipped] = list(_not_covered(source))
        runs = find_runs(source, seed, skipped)
    with one_thread():
        rows = tuple(_measured(runs, skipped, progress))
    skipped += _unidentified(source, rows)
    files = covered(source, rows, skipped)
    summary = summarised(rows, tuple(skipped), unknown, files)
    reproduction = Reproduction(seed, rows, unmet(rows), summary)
    write_report(reproduction, out)
    return reproduction


def _measured(runs: list[Run], skipped: list[Skipped], progress: Progress) -> Iterator[Row]:
    for number, run in enumerate(runs):
        repetitions = []
        for repetition in range(SEEDS):
            repetitions.append(run.measure(repetition))
            progress(number * SEEDS + repetition + 1, len(runs) * SEEDS)
        yield from _rows(run, repetitions, skipped)


def _unknown_files(source: Source) -> int:
    """How many files belong to nothing we know; refuses a folder where that is all of them."""
    if not source.folder.is_dir():
        raise InputError(f"{source.folder}: no such folder")
    files = source.files()
    found = sum(file in known_files() for file in files)
    if not found:
        raise InputError(
            f"{source.folder}: holds no published file, such as {CHECKPOINTS[0].file}; "
            "give the folder experiment_results"
        )
    return len(files) - found


def _not_covered(source: Source) -> Iterator[Skipped]:
    for entry in NOT_COVERED:
        if source.holds(entry.file):
            what = entry.file if entry.what == "all" else f"{entry.file}: {entry.what}"
            yield Skipped(what, entry.reason, entry.file, entry.numbers)


def _unidentified(source: Source, rows: tuple[Row, ...]) -> Iterator[Skipped]:
    """Losses of unknown weights, with what comes nearest to them of all that was measured."""
    curves: dict[str, list[float]] = {}
    for row in rows:
        if row.quantity == published.LOSS and not row.averaged:
            curves.setdefault(row.checkpoint, []).append(row.ours)
    for claim in UNIDENTIFIED:
        if not source.holds(claim.file):
            continue
        try:
            array = source.read(claim).mean[:, 0]
        except InputError as error:
            yield Skipped(claim.place, str(error), claim.file)
            continue
        off = {
            name: (torch.tensor(curve[: len(array)]).double() / array - 1).abs()
            for name, curve in curves.items()
            if len(curve) >= len(array)
        }
        reason = "its weights are not named and agree with nothing measured"
        if off:
            name = min(off, key=lambda name: float(off[name].median()))
            figures = f"{off[name].median():.0%} in the median and {off[name].max():.0%} at most"
            reason = f"{reason}; {name} is nearest, off by {figures}".replace("%", " %")
        yield Skipped(claim.place, reason, claim.file, array.numel())


def _rows(run: Run, repetitions: list[Measured], skipped: list[Skipped]) -> Iterator[Row]:
    samples = {name: torch.stack([m[name] for m in repetitions]) for name in repetitions[0]}
    means = _means(run, repetitions)
    if run.stated_mean is not None:
        mean, own = means[published.LOSS]
        paper = "arXiv 2309.05858"
        yield Row(
            run.name, published.LOSS, None, None, run.stated_mean, None, mean, own, source=paper
        )
    for claim, array in run.arrays.items():
        found = samples[claim.quantity]
        alone = array.mean.numel() == 1 and claim.quantity in MEANS
        if array.mean.shape != found.shape[1:]:
            shapes = f"shape {list(array.mean.shape)}, ours has {list(found.shape[1:])}"
            what = f"{run.name}: {claim.quantity}"
            skipped.append(Skipped(what, f"{claim.file}: {shapes}", claim.file, array.mean.numel()))
            continue
        if not alone:
            yield from _cells(run, claim, array, found)
        if claim.quantity in MEANS:
            theirs, (mean, own) = float(array.mean.mean()), means[claim.quantity]
            spread, place, count = array.mean_spread, claim.place, claim.sequences
            yield Row(
                *(run.name, claim.quantity, None, None, theirs, spread, mean, own, place, count)
            )


def _means(run: Run, repetitions: list[Measured]) -> dict[str, tuple[float, float]]:
    """Means over positions, with their spread; a few sequences can drive a model far off.

    Then samples are added. How many is decided once: adding until the error looks small would
    favour lucky samples.
    """
    wanted = {claim.quantity for claim in run.arrays if claim.quantity in MEANS}
    wanted |= set() if run.stated_mean is None else {published.LOSS}
    losses = {
        name: [float(measured[name].mean()) for measured in repetitions] for name in sorted(wanted)
    }
    if any(_standard_error(values) > PRECISION for values in losses.values()):
        more = [run.measure_means(number) for number in range(SEEDS, MANY_SAMPLES)]
        for name, values in losses.items():
            values += [float(measured[name].mean()) for measured in more]
    return {
        name: (statistics.fmean(values), statistics.stdev(values))
        for name, values in losses.items()
    }


def _standard_error(losses: list[float]) -> float:
    """Relative to the mean."""
    return statistics.stdev(losses) / len(losses) ** 0.5 / statistics.fmean(losses)


def _cells(
    run: Run,
    claim: Claim,
    array: Published,
    samples: Float[Tensor, "samples positions columns"],
) -> Iterator[Row]:
    ours, own_spread = samples.mean(0), samples.std(0)
    start = run.last + 1 - len(ours)
    older = claim.quantity == published.SENSITIVITY_TO_OLDER
    for cell in product(*map(range, ours.shape)):
        position, column = cell
        yield Row(
            checkpoint=run.name,
            quantity=claim.quantity,
            layer=column if claim.quantity in _BY_LAYER else _LAYER.get(claim.quantity),
            position=None if older else start + position,
            published=float(array.mean[cell]),
            spread=None if array.spread is None else float(array.spread[cell]),
            ours=float(ours[cell]),
            own_spread=float(own_spread[cell]),
            source=claim.place,
            sequences=claim.sequences,
        )
