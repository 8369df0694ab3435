"""The models that the detector is graded on: a label, a task, a size and disguises, all drawn."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from probe.planted.base import Planted, Truth, families_planted
from probe.planted.disguises.base import Disguise, disguises, label_holds
from probe.sampling import generator_for
from probe.tasks.base import Task, find_task
from probe.validation.bench import Bench

Half = Literal["calibration", "report"]
STREAM = 42
MARGIN = 0.02  # by which the exact algorithm must differ from all other classes
ATTEMPTS = 100
KEPT = 0.8  # R^2 of the planted solver against the disguised model's output


@dataclass(frozen=True)
class Design:
    """How specimens are drawn; data, kept in design.json.

    Attributes:
        calibration: Families on which thresholds are set; all others are reported on.
        tasks: Names of tasks.
        shares: The probability of each group of disguises, in the order of their application.
        groups: The disguises of each group.
    """

    calibration: tuple[str, ...]
    tasks: tuple[str, ...]
    shares: Mapping[str, float]
    groups: Mapping[str, tuple[str, ...]]

    @classmethod
    @cache
    def load(cls) -> "Design":
        """Reads the file beside this module."""
        plain = json.loads(Path(__file__).with_name("design.json").read_text())
        groups = {name: tuple(members) for name, members in plain["groups"].items()}
        return cls(tuple(plain["calibration"]), tuple(plain["tasks"]), plain["shares"], groups)

    def families(self, half: Half) -> tuple[str, ...]:
        """The planted families of a half."""
        chosen = half == "calibration"
        return tuple(n for n in families_planted() if (n in self.calibration) == chosen)


@dataclass(frozen=True)
class Label:
    """What is known of a model; the grader sees it after the verdict.

    Attributes:
        name: A number.
        family: The planted family.
        planted: The algorithm in words.
        task: Name of the task.
        truth: What the verdict should say.
        disguises: What hides it.
        redrawn: How many draws before it could not be told from another class, or lost their label.
    """

    name: str
    family: str
    planted: str
    task: str
    truth: Truth
    disguises: tuple[str, ...]
    redrawn: int


@dataclass(frozen=True)
class Specimen:
    """A model to be graded, and its label."""

    planted: Planted
    family: str
    index: int
    redrawn: int

    @property
    def name(self) -> str:
        """A number, since graders are blind."""
        return f"model-{self.index:04d}"

    @property
    def label(self) -> Label:
        """The label without the weights."""
        p = self.planted
        return Label(
            self.name, self.family, p.name, p.task.name, p.truth, p.disguises, self.redrawn
        )


def draw(indices: Iterable[int], seed: int, half: Half) -> Iterator[Specimen]:
    """Draws specimens, each from a random stream of its own."""
    benches = _Benches(seed)
    for index in indices:
        yield _draw(index, generator_for(seed, STREAM, index + 1), half, benches)


class _Benches:
    """One bench per task, made when first needed."""

    def __init__(self, seed: int):
        self._seed, self._kept = seed, dict[str, Bench]()

    def of(self, task: Task) -> Bench:
        """The bench of a task."""
        if task.name not in self._kept:
            self._kept[task.name] = Bench.of(task, self._seed)
        return self._kept[task.name]


def _draw(index: int, generator: torch.Generator, half: Half, benches: _Benches) -> Specimen:
    design = Design.load()
    tasks = [find_task(name) for name in design.tasks]
    for redrawn in range(ATTEMPTS):
        family = _choose_family(design.families(half), generator)
        fitting = [task for task in tasks if families_planted()[family].fits(task)]
        task = fitting[_pick(len(fitting), generator)]
        plain = families_planted()[family].draw(task, generator)
        disguised = _disguise(plain, design, generator)
        apart = not benches.of(task).nearest_other(disguised) < MARGIN  # NaN: predicts nothing
        if apart and _keeps_its_label(disguised, generator):
            return Specimen(disguised, family, index, redrawn)
    raise RuntimeError(f"no model with a label of its own in {ATTEMPTS} draws")


def _keeps_its_label(planted: Planted, generator: torch.Generator) -> bool:
    """Noise that costs a poor predictor little loss may leave nothing of its algorithm."""
    if planted.exact or planted.truth.also:
        return True
    return label_holds(planted, generator) >= KEPT


def _choose_family(names: tuple[str, ...], generator: torch.Generator) -> str:
    """An optimizer or another with equal chances, then one of its families."""
    learners = [n for n in names if families_planted()[n].learns]
    others = [n for n in names if n not in learners]
    pool = [learners, others][_pick(2, generator)] or list(names)
    return pool[_pick(len(pool), generator)]


def _disguise(planted: Planted, design: Design, generator: torch.Generator) -> Planted:
    """At most one disguise of each group."""
    for group, share in design.shares.items():
        if float(torch.rand((), generator=generator)) >= share:
            continue
        fitting: list[Disguise] = [
            disguises()[name] for name in design.groups[group] if disguises()[name].fits(planted)
        ]
        if fitting:
            planted = fitting[_pick(len(fitting), generator)].apply(planted, generator)
    return planted


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
