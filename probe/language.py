"""A language model as it is, no task posed: the audit, then what its heads do on what it reads."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from probe.atlas import finding_of, read_atlas
from probe.audit import audit, failed
from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.findings import Finding, Report
from probe.models.hooked import LanguageModel, Tokens
from probe.pipeline import describe_run, describe_subject
from probe.text import Reading
from probe.threads import one_thread

ATLAS, PARTS = "head_atlas", frozenset({"output", "heads", "head edits"})
LEAST, AUDITED = 64, 4  # sequences


@dataclass(frozen=True)
class Survey:
    """What is to be read, and how much of it.

    Attributes:
        subject: A language model.
        reading: What it reads.
        sequences: How many sequences; half of them fit, half test.
        seed: Of their order, and of the controls.

    Raises:
        InputError: No language model, or too little to read.
    """

    subject: Subject
    reading: Reading
    sequences: int
    seed: int

    def __post_init__(self) -> None:
        """Refuses what cannot be surveyed."""
        there, name = self.reading.available, self.subject.name
        if not isinstance(self.subject.model, LanguageModel):
            raise InputError(f"{name}: reads vectors, not text; it needs a task")
        if self.sequences < LEAST:
            raise InputError(f"--sequences {self.sequences}: {LEAST} are the least for intervals")
        if there is not None and there < self.sequences:
            raise InputError(
                f"--sequences {self.sequences}: the text has {there} windows of "
                f"{self.reading.length} tokens; give more text, a smaller --length or --sequences"
            )


def survey(
    survey: Survey, progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Audits the model and reads the atlas of its heads; writes nothing."""
    with one_thread():
        return _survey(survey, progress)


def _survey(asked: Survey, progress: Callable[[int, int], None]) -> Report:
    started = time.time()
    subject, reading = asked.subject, asked.reading
    checks = audit(subject.model, reading.draw(0, AUDITED, asked.seed), subject.original)
    findings: tuple[Finding, ...] = ()
    left_out = {}
    if wrong := failed(checks, PARTS):
        left_out[ATLAS] = f"the audit failed: {wrong.name} reads {wrong.reads}"
    else:

        def draw(first: int, count: int) -> Tokens:
            return reading.draw(first, count, asked.seed)

        atlas = read_atlas(subject.model, draw, asked.sequences, asked.seed, progress)
        findings = (finding_of(atlas),)
    return Report(
        subject=describe_subject(subject),
        task={
            "name": "text",
            "params": reading.params(),
            "sequences": asked.sequences,
            "seed": asked.seed,
        },
        verdict=None,
        reference=None,
        findings=findings,
        left_out=left_out,
        audit=checks,
        run=describe_run(subject, time.time() - started),
    )
