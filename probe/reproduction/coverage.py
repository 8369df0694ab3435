"""What became of every file of the folder."""

from collections.abc import Sequence
from functools import cache

from probe.reproduction.not_covered import NOT_COVERED, UNIDENTIFIED
from probe.reproduction.published import (
    CHEBYSHEV,
    CHECKPOINTS,
    INTERPOLATION,
    REFERENCES,
    TRAINING_RUNS,
    UNTRAINED,
    Checkpoint,
    Claim,
    Reference,
    Untrained,
)
from probe.reproduction.records import Coverage, Row, Skipped
from probe.reproduction.sources import Source

CONSTANTS = "constants of the recursions; compared through the losses that they give"
UNKNOWN = "belongs to nothing that we know"


@cache
def known_files() -> frozenset[str]:
    """Every file that is known, in the folder or not."""
    claims: list[Claim] = []
    measured: tuple[Checkpoint | Reference | Untrained, ...]
    measured = (*CHECKPOINTS, *REFERENCES, *UNTRAINED)
    for entry in measured:
        claims += entry.claims
    for run in TRAINING_RUNS:
        claims += (*run.trained, *run.untrained)
    claims += UNIDENTIFIED
    return frozenset(
        {CHEBYSHEV, *(claim.file for claim in claims), *(entry.file for entry in NOT_COVERED)}
        | _weights()
    )


def _weights() -> set[str]:
    return {INTERPOLATION, *(entry.file.partition("#")[0] for entry in CHECKPOINTS)}


def covered(
    source: Source, rows: Sequence[Row], skipped: Sequence[Skipped]
) -> tuple[Coverage, ...]:
    """One record per file of the folder, in the order of their names."""
    return tuple(_record(file, rows, skipped) for file in source.files())


def _record(file: str, rows: Sequence[Row], skipped: Sequence[Skipped]) -> Coverage:
    own = [row for row in rows if row.source.partition("#")[0] == file]
    left = [skip for skip in skipped if skip.file == file]
    quantities = dict.fromkeys(row.quantity for row in own)
    notes = [
        f"{skip.what.removeprefix(file).lstrip('#: ') or 'all'}: {skip.reason}" for skip in left
    ]
    if file in _weights():
        used = sum(row.checkpoint.partition("#")[0] == file for row in rows)
        notes.insert(0, f"weights that {used} of the numbers were measured with")
    if file == CHEBYSHEV:
        notes.insert(0, CONSTANTS)
    return Coverage(
        file=file,
        quantities=tuple(quantities),
        compared=len(own),
        met=sum(row.met is True for row in own),
        not_judged=sum(row.met is None for row in own),
        not_compared=sum(skip.numbers for skip in left),
        notes=tuple(notes) if file in known_files() else (UNKNOWN,),
    )
