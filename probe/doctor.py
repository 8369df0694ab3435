"""Is a model read as it should be, and does a finished run still stand?"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jsonschema import Draft202012Validator

from probe.audit import audit, trial_tokens
from probe.checkpoints.base import Source, Subject, read
from probe.errors import InputError
from probe.files import read_text, reading
from probe.findings import Check
from probe.models.hooked import HookedModel
from probe.models.number_reader import NumberReader
from probe.report.results import read_results

CANARY = 8  # numbers
RESULTS, RUN = "results.json", "run.json"
ROUNDING = 1e-3  # of the largest number of the canary
_NAME = {"type": ["string", "null"]}
_SOURCE = {"path": {"type": "string"}, "preset": _NAME, "adapter": _NAME}
_RUN = {
    "type": "object",
    "required": ["source", "canary", "versions"],
    "properties": {
        "source": {
            "type": "object",
            "required": ["path"],
            "properties": {**_SOURCE, "allow_hub": {"type": "boolean"}},
            "additionalProperties": False,
        },
        "canary": {"type": "array", "items": {"type": "number"}},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


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


@dataclass(frozen=True)
class _Record:
    """What a run.json says of the model that was looked at."""

    source: Source
    canary: list[float]
    versions: Mapping[str, str]


def reexamine(folder: Path, allow_hub: bool = False, adapter: str | None = None) -> Examination:
    """The audit of the model that a finished run was about, and what has changed since.

    Args:
        folder: Of the run.
        allow_hub: Whether the network may be asked, if the run did.
        adapter: That of the run, if it had one: no file decides alone which code is run.

    Raises:
        InputError: The folder holds no run, the model is gone or damaged, or it was read by an
            adapter or from a hub and that is not allowed again.
    """
    results, run = read_results(folder / RESULTS), _record(folder / RUN)
    named = Source(run.source.path, adapter=adapter).anywhere().adapter
    if run.source.adapter not in (None, named):
        raise InputError(f"{folder}: read by code; give --adapter {run.source.adapter!a:.200}")
    subject = read(replace(run.source, allow_hub=run.source.allow_hub and allow_hub))
    weights, said, versions = results["subject"]["sha256"], run.canary, run.versions
    passed = {check["name"]: check["ok"] for check in results["audit"]}
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
    stated = asdict(source.anywhere())
    return {"source": {**stated, "path": str(stated["path"])}, "canary": canary(model)}


def current_versions() -> Mapping[str, str]:
    """Versions that a run records."""
    import platform

    from probe import __version__

    return {
        "mesaprobe": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _record(path: Path) -> _Record:
    """Reads a run.json.

    Raises:
        InputError: It is damaged, or tells of no model.
    """
    try:
        plain = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable ({type(error).__name__})") from None
    if wrong := next(Draft202012Validator(_RUN).iter_errors(plain), None):
        reason = ascii(f"{wrong.json_path}: {wrong.message}")[1:-1]
        raise InputError(f"{path}: its run records no model to look at ({reason:.160})")
    source = Source(**{**plain["source"], "path": Path(plain["source"]["path"])})
    try:
        canary = [float(number) for number in plain["canary"]]
    except OverflowError:
        raise InputError(f"{path}: canary holds a number that is too large") from None
    return _Record(source, canary, plain["versions"])
