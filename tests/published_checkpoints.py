"""The published checkpoints as subjects."""

from pathlib import Path

import pytest

from probe.checkpoints.base import Subject, load


def subject_of(paper_data: Path, file: str, preset: str) -> Subject:
    """A checkpoint by its preset; a folder that does not hold the file skips the test."""
    if not (paper_data / file.partition("#")[0]).exists():
        pytest.skip(f"the folder holds no {file}")
    return load(paper_data / file, f"von-oswald-2023/{preset}")
