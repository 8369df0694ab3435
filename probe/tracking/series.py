"""The checkpoints of a folder, in the order of training."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.checkpoints.base import Subject, is_checkpoint, load
from probe.checkpoints.native import CONFIG
from probe.errors import InputError
from probe.files import reading

LEAST = 3
INSIDE = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A model at a step of its training.

    Attributes:
        step: The last whole number in its name.
        subject: The model.
        copy_of: The step of an earlier checkpoint with the same weights; None for a new one.
    """

    step: int
    subject: Subject
    copy_of: int | None = None


@dataclass(frozen=True)
class Series:
    """Checkpoints of one training.

    Attributes:
        folder: Where they were found.
        task: Name of the task that they share.
        checkpoints: All of them, by step.
        left_out: Names in the folder that are no part of the series, each with the reason.
    """

    folder: Path
    task: str
    checkpoints: tuple[Checkpoint, ...]
    left_out: tuple[str, ...]

    @property
    def distinct(self) -> tuple[Checkpoint, ...]:
        """Those that equal no earlier one."""
        return tuple(point for point in self.checkpoints if point.copy_of is None)


def read_series(folder: Path, preset: str | None = None, task: str | None = None) -> Series:
    """Reads a folder of checkpoints, or the checkpoints of a training's output folder.

    Args:
        folder: Holds checkpoints of any format, or a folder `checkpoints` that does.
        preset: What the files do not state.
        task: Name of the task; the checkpoints' own by default.

    Raises:
        InputError: No such folder, a checkpoint that fails its checks, two of one step, models
            that differ in task or shape, or fewer than three that differ in their weights.
    """
    with reading(folder):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        if (folder / INSIDE).is_dir():
            folder = folder / INSIDE
        paths, left_out = _find(folder)
    subjects = {step: load(path, preset) for step, path in sorted(paths.items())}
    points = _mark_copies(subjects)
    distinct = sum(point.copy_of is None for point in points)
    if distinct < LEAST:
        left = f" (left out: {', '.join(left_out)})" if left_out else ""
        raise InputError(
            f"{folder}: holds {distinct} distinct checkpoints{left}; "
            f"a series needs at least {LEAST}"
        )
    _refuse_odd(folder, list(subjects.values()), task)
    name = task or points[0].subject.task
    if name is None:
        raise InputError(f"{folder}: the checkpoints state no task; give --task NAME")
    return Series(folder, name, points, left_out)


def _find(folder: Path) -> tuple[dict[int, Path], tuple[str, ...]]:
    """Paths by step, and what is left out.

    Raises:
        InputError: Two paths of one step.
    """
    found: dict[int, Path] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_checkpoint(path):
            continue
        if path.is_dir() and not (path / CONFIG).is_file():
            left_out.append(f"{path.name} (holds no {CONFIG})")
            continue
        step = _step(path)
        if step is None:
            left_out.append(f"{path.name} (no number in its name)")
        elif step in found:
            raise InputError(
                f"{folder}: {found[step].name} and {path.name} are both named for step {step}"
            )
        else:
            found[step] = path
    return found, tuple(left_out)


def _step(path: Path) -> int | None:
    numbers = re.findall(r"[0-9]+", path.name if path.is_dir() else path.stem)
    return int(numbers[-1]) if numbers else None


def _refuse_odd(folder: Path, subjects: Sequence[Subject], task: str | None) -> None:
    """What most checkpoints share is the rule; the others are odd.

    Raises:
        InputError: There is an odd one.
    """
    for what, values in (
        ("shape", [subject.model.config for subject in subjects]),
        ("task", [task or subject.task for subject in subjects]),
    ):
        if len(counts := Counter(values)) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [s.name for s, value in zip(subjects, values, strict=True) if value != usual]
            raise InputError(f"{folder}: {', '.join(odd)}: not of the {what} of the other models")


def _mark_copies(subjects: dict[int, Subject]) -> tuple[Checkpoint, ...]:
    first: dict[str, int] = {}
    points = []
    for step, subject in subjects.items():
        known = first.setdefault(subject.sha256, step)
        points.append(Checkpoint(step, subject, None if known == step else known))
    return tuple(points)
