"""Input laws among which an experiment may choose: other teachers, noise, starts and lengths."""

from dataclasses import dataclass, replace
from functools import singledispatch

from probe.tasks.base import Task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import Covariance, Geometric, InContextRegression, Isotropic
from probe.tasks.teachers import Contracting, GivenSpectrum, Orthogonal, TeacherLaw

OWN = "own law"
TWO_CLUSTER = "two-cluster spectrum"


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
def _(task: InContextRegression) -> tuple[Inputs, ...]:
    """Every covariance of the inputs, with the task's noise and ten times as much."""
    covariances: dict[str, Covariance] = {
        "inputs of equal variance": Isotropic(),
        **{f"condition {c}": Geometric(float(c)) for c in (10, 30, 100)},
    }
    changed = {"": task, "noise x 10": replace(task, noise=10 * task.noise)}
    return tuple(
        Inputs(", ".join(part for part in (name, change) if part), replace(made, covariance=law))
        for name, law in covariances.items()
        for change, made in changed.items()
    )
