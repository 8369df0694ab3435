"""Is a model read as it should be, and does a finished run still stand?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.audit import audit, trial_tokens
from probe.checkpoints.base import Source, Subject, read
from probe.errors import InputError
from probe.files import read_text, reading
from probe.findings import Check
from probe.models.hooked import HookedModel
from probe.models.number_reader import NumberReader

CANARY = 8  # numbers
RESULTS, RUN = "results.json", "run.json"
ROUNDING = 1e-3  # of the largest number of the canary


@dataclass(frozen=True)
class Drift:
    """Something that is no longer what it was when a run was made.

    Attributes:
        name: What.
        then: As the run recorded it.
        now: As it is.
        harmless: Whether the results may still stand.
    """

    name: str
    then: str
    now: str
    harmless: bool = False


@dataclass(frozen=True)
class Examination:
    """The audit of a model, and what has changed since a run, if it is compared with one."""

    checks: tuple[Check, ...]
    drifts: tuple[Drift, ...] = ()

    @property
    def complaint(self) -> str | None:
        """The first thing that is wrong, in a few words."""
        for check in self.checks:
            if not check.ok:
                return f"{check.name}: must read {check.must_read}, reads {check.reads}"
        for drift in self.drifts:
            if not drift.harmless:
                return f"{drift.name}: was {drift.then}, is {drift.now}"
        return None


def examine(subject: Subject) -> Examination:
    """The audit alone, on trial tokens."""
    return Examination(audit(subject.model, trial_tokens(subject.model), subject.original))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a finished run.

    Raises:
        InputError: It cannot be searched.
    """
    with reading(folder):
        return (folder / RESULTS).is_file() and (folder / RUN).is_file()


def reexamine(folder: Path) -> Examination:
    """The audit of the model that a finished run was about, and what has changed since.

    Raises:
        InputError: The folder holds no run, or the model is gone or damaged.
    """
    results, run = _read(folder / RESULTS), _read(folder / RUN)
    try:
        recorded = {**run["source"], "path": Path(run["source"]["path"])}
        subject = read(Source(**recorded))
        weights, said = str(results["subject"]["sha256"]), [float(x) for x in run["canary"]]
        passed = {check["name"]: check["ok"] for check in results["audit"]}
        versions = dict(run["versions"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its run records no model to look at ({error})") from None
    examined = examine(subject)
    says = canary(subject.model)
    drifts = [
        Drift("weights", weights, subject.sha256),
        Drift("output on trial tokens", _told(said, says), _told(says, said)),
    ]
    for check in examined.checks:
        before = {True: "passed", False: "failed", None: "not made"}[passed.get(check.name)]
        now_reads = "passed" if check.ok else "failed"
        drifts.append(Drift(check.name, before, now_reads, before == "not made"))
    made = {check.name for check in examined.checks}
    drifts += [Drift(name, "made", "not made") for name in passed if name not in made]
    known = current_versions()
    drifts += [Drift(name, versions[name], known.get(name, "none"), True) for name in versions]
    return Examination(examined.checks, tuple(d for d in drifts if d.then != d.now))


@torch.no_grad()
def canary(model: HookedModel) -> list[float]:
    """A few numbers of what the model says to trial tokens."""
    output = model(trial_tokens(model)).double().flatten()
    return [float(value) for value in output[:: max(1, len(output) // CANARY)][:CANARY]]


def _told(numbers: list[float], others: list[float]) -> str:
    """The first number that differs, in so many digits that it shows; "the same" if none does."""
    if len(numbers) != len(others):
        return f"{len(numbers)} numbers"
    largest = max(map(abs, others), default=0.0)
    for one, other in zip(numbers, others, strict=True):
        if not abs(one - other) <= ROUNDING * largest:
            return f"{one:.6g}"
    return "the same"


def provenance(subject: Subject) -> dict[str, object]:
    """What a run records of its model, so that it can be looked at again."""
    source, model = subject.source, subject.model
    if source is None:
        return {}
    if isinstance(model, NumberReader):  # the run is of numbers, the checkpoint of words
        model = model.language
    path = source.path.resolve() if source.file.exists() else source.path
    adapter = source.adapter and _absolute(source.adapter)
    recorded = {"path": str(path), "preset": source.preset, "allow_hub": source.allow_hub}
    return {"source": {**recorded, "adapter": adapter}, "canary": canary(model)}


def _absolute(adapter: str) -> str:
    """FILE:FUNCTION with the file as it is found from anywhere; names stay as they are."""
    file, _, function = adapter.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if Path(file).is_file() else adapter


def current_versions() -> Mapping[str, str]:
    """Versions that a run records."""
    import platform

    from probe import __version__

    return {
        "mesaprobe": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({type(error).__name__})") from None
