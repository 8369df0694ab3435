"""Constants that suit a task, from a small sample of it."""

import math
from dataclasses import dataclass

import torch

from probe.sampling import uniform
from probe.tasks.base import Task

SAMPLE = 2048  # a step must suit the rarest eigenvalue that a run is likely to meet


@dataclass(frozen=True)
class Scales:
    """How large things are in a task.

    Attributes:
        top: 99 % quantile of the largest eigenvalue of G_T.
        peak: The largest eigenvalue of the sample.
        low: Median of the smallest eigenvalue of G_T above its rank cut-off.
        query: Median of |q_t|^2.
        largest_query: 99 % quantile of |q_t|^2.
    """

    top: float
    peak: float
    low: float
    query: float
    largest_query: float


def scales_of(task: Task, generator: torch.Generator) -> Scales:
    """Reads the scales off a sample of the task."""
    problem = task.problem(task.sample(SAMPLE, generator))
    keys = problem.keys.double()
    mu = torch.linalg.eigvalsh(keys.mT @ keys)
    cutoff = mu.shape[-1] * torch.finfo(problem.keys.dtype).eps * mu[:, -1:]
    least = torch.where(mu > cutoff, mu, torch.inf).amin(-1)
    squares = problem.queries.double().square().sum(-1).flatten()
    return Scales(
        top=float(mu[:, -1].quantile(0.99)),
        peak=float(mu[:, -1].max()),
        low=float(least.median()),
        query=float(squares.median()),
        largest_query=float(squares.quantile(0.99)),
    )


def between(generator: torch.Generator, low: float, high: float) -> float:
    """A uniform number."""
    return float(uniform(generator, low, high, 1))


def log_between(generator: torch.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return math.exp(between(generator, math.log(low), math.log(high)))


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
