"""Objectives beside plain least squares: pairs that fade with age, and a fixed preconditioner.

A learner that forgets weights the pair j by gamma^(t - j) in G_t and C_t. A learner with a fixed
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
from probe.columns import Columns
from probe.problem import InContextProblem, PrefixMoments, spectrum
from probe.response import FINE, hat_features, log_knots
from probe.sampling import generator_for
from probe.solvers.base import Fitted, Quadratic
from probe.sweep import Batch, Sums
from probe.views import PLANTED, SUBJECT

GAMMAS = (0.99, 0.97, 0.95, 0.9, 0.8)
POPULATION = 512
EVERY = 3  # neighbouring positions hold nearly the same pairs
FADED = 100  # how far eigenvalues of faded pairs fall below those of the task
LEAST_SHARE = 0.25  # of the sequences: 64 of a shard of 256, one for every block
ENOUGH = 512  # sequences of each split


@runtime_checkable
class Objective(Protocol):
    """What a learner minimises, as moments and queries of its own."""

    @property
    def name(self) -> str:
        """The objective in words."""

    def moments(self, problem: InContextProblem) -> PrefixMoments:
        """G_t and C_t of this objective."""

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

    def moments(self, problem: InContextProblem) -> PrefixMoments:
        """By the recursion G_t = gamma G_{t-1} + k_t k_t^T, which never divides."""
        keys, values = problem.keys.double(), problem.values.double()
        pairs = torch.cat([keys, values], -1)
        faded = pairs.new_zeros(len(keys), pairs.shape[-1], keys.shape[-1])
        sums = []
        for pair, key in zip(pairs.unbind(1), keys.unbind(1), strict=True):
            faded = self.gamma * faded + pair[..., :, None] * key[..., None, :]
            sums.append(faded)
        gram, cross = torch.stack(sums, 1).split([keys.shape[-1], values.shape[-1]], dim=2)
        return PrefixMoments(gram, cross)

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

    def moments(self, problem: InContextProblem) -> PrefixMoments:
        """P^(1/2) G P^(1/2) and C P^(1/2)."""
        plain = Forgetting(1.0).moments(problem)
        root = self._matrix
        return PrefixMoments(root @ plain.gram @ root, plain.cross @ root)

    def queries(self, problem: InContextProblem) -> Float[Tensor, "batch time d_k"]:
        """P^(1/2) q."""
        return problem.queries.double() @ self._matrix


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
    """Plain least squares, forgetting at several rates, and the whitening of the task's keys.

    The covariance is that of the population, from sequences that no split holds.
    """
    task = setting.task
    problem = task.problem(task.sample(POPULATION, generator_for(0, 5, POPULATION)))
    keys = problem.keys.flatten(0, 1)
    root = whitening(keys[keys.ne(0).any(-1)])
    rows = tuple(tuple(row) for row in root.tolist())
    return (*(Forgetting(gamma) for gamma in (1.0, *GAMMAS)), Preconditioned(rows))


@dataclass(frozen=True)
class ExtensionStage:
    """The response of the output under every objective, at every third judged position.

    Attributes:
        objectives: The objectives, plain least squares first.
        window: The judged positions.
        knots: The knots of the response.
        step_bound: The largest step of gradient descent.
        share: The share of the sequences that it looks at.
        views: The subject, and the planted mesa-layer as the control.
    """

    objectives: tuple[Objective, ...]
    window: tuple[int, int]
    knots: tuple[float, ...]
    step_bound: float
    share: float
    views: tuple[str, ...] = (SUBJECT, PLANTED)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Products of hats and output, summed over the sequences."""
        found = self._products(batch)
        return {"gram": found.sum(0), "rows": torch.tensor(float(len(found)))}

    def learn(self, sums: Sums) -> tuple[tuple[Fitted, ...], ...]:
        """The spectral families under each objective."""
        columns = Columns(self.knots, ())
        rows = int(sums["rows"].sum()) * len(range(*self.window, EVERY))
        forms = [
            Quadratic(gram[:FINE, :FINE], gram[:FINE, FINE], float(gram[FINE, FINE]))
            for gram in sums["gram"].sum(0)
        ]
        return tuple(columns.fit(form, rows, self.step_bound) for form in forms)

    def test(self, batch: Batch, learned: tuple[tuple[Fitted, ...], ...]) -> Sums:
        """The same products by block."""
        return {"gram": batch.head(self.share).by_block(self._products(batch))}

    def _products(self, batch: Batch) -> Float[Tensor, "batch objectives columns columns"]:
        """Per sequence: X^T X of the hats under each objective with the output beside them."""
        hats = batch.context.once(self, lambda: self._hats(batch.head(self.share).context.problem))
        said = batch.capture.output[: len(hats[0]), slice(*self.window, EVERY), :, None].float()
        joined = [torch.cat([part, said], -1).flatten(1, 2) for part in hats]
        return torch.stack([part.mT @ part for part in joined], 1).double()

    def _hats(self, problem: InContextProblem) -> list[Tensor]:
        places = slice(*self.window, EVERY)
        knots = torch.tensor(self.knots, dtype=torch.float64)
        hats = []
        for objective in self.objectives:
            moments, queries = objective.moments(problem), objective.queries(problem)
            here = PrefixMoments(moments.gram[:, places], moments.cross[:, places])
            hats.append(hat_features(spectrum(here, queries[:, places]), knots))
        return hats


def extension_stage(setting: Setting) -> ExtensionStage:
    """The stage of a task; its knots reach down to the eigenvalues of faded pairs."""
    knots = log_knots(setting.knots[3] / FADED, setting.knots[-1])
    return ExtensionStage(
        objectives(setting),
        setting.windows.judged,
        tuple(knots.tolist()),
        setting.step_bound,
        min(1.0, max(LEAST_SHARE, 2 * ENOUGH / setting.sequences)),
    )
