"""results.json: what the inputs determine, in the order of the contract, checked by a schema."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

import probe
from probe.errors import InputError
from probe.files import read_text
from probe.findings import Finding, Instrument, Metric, Reference, Report, Verdict

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("schema.json")
LARGEST = 2**23  # bytes: some hundred times a full run; a few seconds of validation
_DIGITS = 9
_SUBJECT = ("name", "format", "sha256", "layers", "parameters")
_TASK = ("name", "params", "sequences", "seed")


def results_dict(report: Report) -> dict[str, Any]:
    """The content of results.json: plain JSON values, nothing that depends on the machine.

    Raises:
        KeyError: The subject or the task lacks a field of the contract.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "mesaprobe_version": probe.__version__,
        "subject": {key: plain(report.subject[key]) for key in _SUBJECT},
        "task": {key: plain(report.task[key]) for key in _TASK},
        "verdict": None if report.verdict is None else _verdict(report.verdict),
        "reference": None if report.reference is None else reference_dict(report.reference),
        "findings": [_finding(finding) for finding in report.findings],
        "left_out": dict(report.left_out),
        "audit": [_instrument(check) for check in report.audit],
    }


def plain(value: object) -> Any:
    """JSON values: floats with 9 significant digits, null for NaN and infinities.

    Raises:
        TypeError: The value has no JSON form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | np.ndarray):
        return [plain(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} has no place in JSON: {value!r}")


def json_text(value: Mapping[str, Any]) -> str:
    """The bytes of a JSON file: indented, keys in the given order, no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of results.json."""
    content: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return content


def validate(results: Mapping[str, Any]) -> None:
    """Refuses results that break the contract, and names every place that does.

    Raises:
        ValueError: One line per violation.
    """
    errors = sorted(Draft202012Validator(schema()).iter_errors(results), key=lambda e: e.json_path)
    if errors:
        places = "\n".join(f"  {error.json_path}: {error.message}" for error in errors)
        raise ValueError(f"results break the schema:\n{places}")


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
        InputError: It cannot be read, is no JSON, or not what this version of `analyze` writes.
    """
    try:
        results = json.loads(read_text(path, LARGEST))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {error!s:.160}") from None
    if not isinstance(results, dict) or "schema_version" not in results:
        raise InputError(
            f"{path}: not what `mesaprobe analyze` writes: it states no schema_version"
        )
    version = results["schema_version"]
    if version != SCHEMA_VERSION:
        shown = f"{version!r:.40}"
        raise InputError(f"{path}: schema version {shown}, this program reads {SCHEMA_VERSION}")
    try:
        validate(results)
    except ValueError as error:
        reason = ascii(" ".join(str(error).split()))[1:-1]
        raise InputError(f"{path}: {reason:.300}") from None
    return results


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "class": verdict.algorithm_class,
        "family": verdict.family,
        "degree": verdict.degree,
        "parameters": plain(verdict.parameters),
        "equivalent": list(verdict.equivalent),
        "undecided": list(verdict.undecided),
        "evidence_level": verdict.evidence_level,
        "distance_to_margin": plain(verdict.distance_to_margin),
        "statement": verdict.statement,
        "instruments_ok": verdict.instruments_ok,
        "instruments": [_instrument(instrument) for instrument in verdict.instruments],
        "scope": verdict.scope,
        "confidence": plain(verdict.confidence),
        "minimum_detectable": plain(verdict.minimum_detectable),
        "notes": list(verdict.notes),
    }


def _instrument(instrument: Instrument) -> dict[str, Any]:
    return {
        "name": instrument.name,
        "must_read": instrument.must_read,
        "reads": instrument.reads,
        "ok": instrument.ok,
    }


def reference_dict(reference: Reference) -> dict[str, Any]:
    """The comparison with the mesa-layer."""
    return {
        "lambda": plain(reference.ridge),
        "loss": plain(reference.loss),
        "model_loss": plain(reference.model_loss),
        "excess_of_model": plain(reference.excess_of_model),
        "excess_lo": plain(reference.excess_lo),
        "excess_hi": plain(reference.excess_hi),
        "agreement_r2": plain(reference.agreement_r2),
        "error_r2": plain(reference.error_r2),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "analysis": finding.analysis,
        "question": finding.question,
        "outcome": finding.outcome,
        "statement": finding.statement,
        "metrics": {name: _metric(metric) for name, metric in finding.metrics.items()},
        "controls": {name: _metric(metric) for name, metric in finding.controls.items()},
        "does_not_show": finding.does_not_show,
        "tables": [table.name for table in finding.tables],
        "figures": [figure.name for figure in finding.figures],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "value": plain(metric.value),
        "lo": plain(metric.lo),
        "hi": plain(metric.hi),
        "definition": metric.definition,
    }
