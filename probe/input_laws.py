"""Input laws among which an experiment may choose: other teachers, noise, starts and lengths."""

from dataclasses import dataclass, replace
from functools import singledispatch

from probe.tasks.base import Task
from probe.tasks.functions import ScaledFunctions
from probe.tasks.inputs import Geometric, InputLaw, Isotropic, ScaledInputs
from probe.tasks.interleaved_regression import InterleavedRegression
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import InContextRegression
from probe.tasks.shifts import SHIFTS, OrthogonalQueries
from probe.tasks.teachers import Contracting, GivenSpectrum, Orthogonal, TeacherLaw
from probe.tasks.weights import ScaledTeacher

OWN = "own law"
TWO_CLUSTER = "two-cluster spectrum"
FACTORS = (1 / 3, 1 / 2, 2.0, 3.0)


@dataclass(frozen=True)
class Inputs:
    """A task under an input law.

    Attributes:
        name: What was changed, in words.
        task: The task under that law.
    """

    name: str
    task: Task


def candidates(task: Task) -> tuple[Inputs, ...]:
    """The task's own law first, then its variations; no variation where none is known."""
    return (Inputs(OWN, task), *_variations(task))


@singledispatch
def _variations(task: Task) -> tuple[Inputs, ...]:
    return ()


@_variations.register
def _(task: LinearDynamics) -> tuple[Inputs, ...]:
    """Every spectrum of the teacher with every change of noise, start or length."""
    changed = {
        "": task,
        "noise x 10": replace(task, noise=10 * task.noise),
        "start / 3": replace(task, start=task.start / 3),
    }
    if task.length > 4 * task.width:  # else hardly any position is left to be judged
        changed["half the length"] = replace(task, length=task.length // 2)
    spectra = {"": task.teacher, **_spectra(task.width)}
    return tuple(
        Inputs(", ".join(part for part in (spectrum, change) if part), replace(made, teacher=law))
        for spectrum, law in spectra.items()
        for change, made in changed.items()
        if spectrum or change
    )


def _spectra(width: int) -> dict[str, TeacherLaw]:
    """Two clusters favour conjugate gradient, which sees them; wide spectra favour nobody."""
    geometric = {
        f"spectrum {ratio:g}^i": GivenSpectrum(tuple(ratio**i for i in range(width)))
        for ratio in (0.95, 0.8)
    }
    return {
        "orthogonal teachers": Orthogonal(),
        "contracting teachers": Contracting(),
        TWO_CLUSTER: GivenSpectrum((1.0, -1.0, 1.0, -1.0, 0.9)),
        **geometric,
    }


@_variations.register
def _(task: InContextRegression | InterleavedRegression) -> tuple[Inputs, ...]:
    """Every covariance of the inputs, with the task's noise and ten times as much."""
    laws: dict[str, InputLaw] = {
        "inputs of equal variance": Isotropic(),
        **{f"condition {c}": Geometric(float(c)) for c in (10, 30, 100)},
    }
    changed = {
        "": task,
        **({"noise x 10": replace(task, noise=10 * task.noise)} if task.noise else {}),
    }
    return tuple(
        Inputs(", ".join(part for part in (name, change) if part), replace(made, inputs=law))
        for name, law in laws.items()
        for change, made in changed.items()
    )


def shifts(task: InContextRegression | InterleavedRegression) -> tuple[Inputs, ...]:
    """The shifts of Garg et al. 2022, section 4, that the task can be sampled under.

    Queries elsewhere than the context, and inputs or labels of another size. Orthogonal queries
    are left out where the context can fill all directions.
    """
    pairs = task.pairs if isinstance(task, InContextRegression) else task.points - 1
    room = pairs < task.width
    moved = [
        Inputs(name, replace(task, shift=shift))
        for name, shift in SHIFTS.items()
        if room or not isinstance(shift, OrthogonalQueries)
    ]
    for factor in FACTORS:
        inputs = ScaledInputs(task.inputs, factor)
        moved.append(Inputs(f"inputs x {factor:.3g}", replace(task, inputs=inputs)))
        moved.append(Inputs(f"labels x {factor:.3g}", _with_labels(task, factor)))
    return tuple(moved)


def _with_labels(task: InContextRegression | InterleavedRegression, factor: float) -> Task:
    """The task with clean labels scaled; their noise stays."""
    if isinstance(task, InterleavedRegression):
        return replace(task, functions=ScaledFunctions(task.functions, factor))
    return replace(task, teacher=ScaledTeacher(task.teacher, factor))
