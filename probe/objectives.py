"""Objectives beside plain least squares: weighted pairs, and a fixed preconditioner.

A learner that forgets weights the pair j by gamma^(t - j) in G_t and C_t; one that trusts late or
early pairs more weights it by a power of j. A learner with a fixed
preconditioner P predicts C P^(1/2) f(P^(1/2) G P^(1/2)) P^(1/2) q; Ahn et al. 2023 (theorem 1)
find the inverse covariance of the inputs for P in trained linear attention, which whitens keys and
queries. Under each objective the response f is fitted anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.extensions import ExtensionStage, Places, enough, places_of
from probe.problem import InContextProblem, PrefixMoments, Spectrum, spectrum
from probe.response import log_knots
from probe.sampling import generator_for
from probe.stages import Batch
from probe.views import PLANTED, SUBJECT

GAMMAS = (0.99, 0.97, 0.95, 0.9, 0.8)
POWERS = (-1.0, -0.6, -0.3, 0.3, 0.6, 1.0)
POPULATION = 512
FADED = 100  # how far eigenvalues of weighted pairs fall below those of the task


@runtime_checkable
class Objective(Protocol):
    """What a learner minimises, as moments and queries of its own."""

    @property
    def name(self) -> str:
        """The objective in words."""

    def moments(self, problem: InContextProblem, places: Places | None = None) -> PrefixMoments:
        """G_t and C_t of this objective at the positions asked for; None: at all."""

    def queries(self, problem: InContextProblem) -> Float[Tensor, "batch time d_k"]:
        """The queries that belong to them, in float64."""


@dataclass(frozen=True)
class Forgetting:
    """The sum of gamma^(t - j) |v_j - W k_j|^2; plain least squares for gamma = 1."""

    gamma: float

    @property
    def name(self) -> str:
        """With its constant."""
        return f"forgetting {self.gamma:g}" if self.gamma < 1 else "plain"

    def moments(self, problem: InContextProblem, places: Places | None = None) -> PrefixMoments:
        """Pairs weighted by gamma^(t - j)."""
        later = torch.arange(problem.keys.shape[1], dtype=torch.float64)
        return weighted_moments(problem, self.gamma ** (later[:, None] - later), places)

    def queries(self, problem: InContextProblem) -> Float[Tensor, "batch time d_k"]:
        """As they are."""
        return problem.queries.double()


@dataclass(frozen=True)
class PowerWeighted:
    """The sum of j^power |v_j - W k_j|^2: late pairs count more for a power above 0, early below.

    Attributes:
        power: The exponent; weights are scaled to mean 1 over the sequence.
    """

    power: float

    @property
    def name(self) -> str:
        """With its constant."""
        return f"weights j^{self.power:g}"

    def moments(self, problem: InContextProblem, places: Places | None = None) -> PrefixMoments:
        """Pairs weighted by their position; the first pair has j = 1."""
        time = problem.keys.shape[1]
        weights = torch.arange(1, time - problem.first + 1, dtype=torch.float64) ** self.power
        weights = torch.nn.functional.pad(weights / weights.mean(), (problem.first, 0))
        return weighted_moments(problem, weights.expand(time, time), places)

    def queries(self, problem: InContextProblem) -> Float[Tensor, "batch time d_k"]:
        """As they are."""
        return problem.queries.double()


@dataclass(frozen=True)
class Preconditioned:
    """Plain least squares on keys and queries that a matrix P^(1/2) has changed.

    Attributes:
        root: P^(1/2), row by row.
    """

    root: tuple[tuple[float, ...], ...]
    name: str = "preconditioned"

    @cached_property
    def _matrix(self) -> Tensor:
        return torch.tensor(self.root, dtype=torch.float64)

    def moments(self, problem: InContextProblem, places: Places | None = None) -> PrefixMoments:
        """P^(1/2) G P^(1/2) and C P^(1/2)."""
        plain = Forgetting(1.0).moments(problem, places)
        root = self._matrix
        return PrefixMoments(root @ plain.gram @ root, plain.cross @ root)

    def queries(self, problem: InContextProblem) -> Float[Tensor, "batch time d_k"]:
        """P^(1/2) q."""
        return problem.queries.double() @ self._matrix


def weighted_moments(
    problem: InContextProblem, weights: Float[Tensor, "time time"], places: Places | None
) -> PrefixMoments:
    """G_t and C_t with the weight of pair j at position t; what comes after t does not count.

    Args:
        problem: The problem.
        weights: One row per position.
        places: The positions asked for; None: all.
    """
    keys, values = problem.keys.double(), problem.values.double()
    pairs = torch.cat([keys, values], -1)[..., :, None] * keys[..., None, :]
    chosen = torch.where(torch.ones_like(weights).tril() > 0, weights, 0.0)
    rows = chosen if places is None else chosen[list(places)]
    sums = (rows @ pairs.flatten(2)).unflatten(-1, pairs.shape[2:])
    gram, cross = sums.split([keys.shape[-1], values.shape[-1]], dim=2)
    return PrefixMoments(gram, cross)


def whitening(keys: Float[Tensor, "rows d_k"]) -> Float[Tensor, "d_k d_k"]:
    """Sigma^(-1/2) of the keys' second moment, scaled so that their mean square stays the same.

    Directions below a millionth of the largest variance are left as small as they are.
    """
    keys = keys.double()
    variances, basis = torch.linalg.eigh(keys.mT @ keys / len(keys))
    kept = variances.clamp(min=1e-6 * float(variances[-1]))
    scale = (variances.mean() / (variances / kept).mean()).sqrt()
    return scale * (basis / kept.sqrt()) @ basis.mT


def objectives(setting: Setting) -> tuple[Objective, ...]:
    """Plain least squares, weighted pairs of several kinds, and the whitening of the task's keys.

    The covariance is that of the population, from sequences that no split holds.
    """
    task = setting.task
    problem = task.problem(task.sample(POPULATION, generator_for(0, 5, POPULATION)))
    keys = problem.keys.flatten(0, 1)
    root = whitening(keys[keys.ne(0).any(-1)])
    rows = tuple(tuple(row) for row in root.tolist())
    fading = (Forgetting(gamma) for gamma in (1.0, *GAMMAS))
    return (*fading, *map(PowerWeighted, POWERS), Preconditioned(rows))


@dataclass(frozen=True)
class Under:
    """The task's problem under an objective.

    Attributes:
        objective: The objective.
        knots: Knots of the response.
    """

    objective: Objective
    knots: tuple[float, ...]

    @property
    def name(self) -> str:
        """The objective in words."""
        return self.objective.name

    def spectrum(self, batch: Batch, places: Places) -> Spectrum:
        """The weighted moments in their eigenbases."""
        problem = batch.context.problem
        moments = self.objective.moments(problem, places)
        return spectrum(moments, self.objective.queries(problem)[:, list(places)])


def objective_stage(setting: Setting) -> ExtensionStage:
    """The responses of a task; their knots reach down to the eigenvalues of weighted pairs."""
    knots = tuple(log_knots(setting.knots[3] / FADED, setting.knots[-1]).tolist())
    return ExtensionStage(
        tuple(Under(objective, knots) for objective in objectives(setting)),
        places_of(setting.windows.judged, every=3),
        setting.step_bound,
        enough(setting.sequences),
        (SUBJECT, PLANTED),
    )
