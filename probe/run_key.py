"""All that the numbers of a run depend on. Work of another key is not gone on with."""

import hashlib
from pathlib import Path

from probe.checkpoints.base import Subject
from probe.code_version import code_version
from probe.language import Survey
from probe.pipeline import Request
from probe.report.results import plain

Key = dict[str, object]


def key_of(asked: Request | Survey) -> Key:
    """The key of a run; batch size, workers and engine are not in it: no bit depends on them."""
    subject = asked.subject
    model = {
        "weights": subject.sha256,
        "name": subject.name,
        "format": subject.format,
        "adapter": _adapter(subject),
        "code": code_version(),
    }
    if isinstance(asked, Survey):
        reading = plain(asked.reading.params())
        return {**model, "text": reading, "sequences": asked.sequences, "seed": asked.seed}
    plan = asked.plan
    return {
        **model,
        "task": [plan.task.name, plain(plan.task.params())],
        "sequences": plan.sequences,
        "seed": plan.seed,
        "device": plan.device.partition(":")[0],
        "only": sorted(asked.only),
        "thorough": asked.thorough,
        "published": asked.published,
        "discriminate": asked.discriminate,
    }


def digest(key: Key) -> str:
    """A short name of a key."""
    return hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()


def _adapter(subject: Subject) -> str | None:
    """The user's own code by its content, or by its name where it is no file."""
    named = subject.source.adapter if subject.source else None
    if named is None:
        return None
    file = Path(named.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else named
