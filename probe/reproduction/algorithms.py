"""The reference algorithms of the published figures, as they were computed there.

Their least squares leaves out the last known pair: at position t it uses the pairs j < t, not
j <= t, which costs it a factor of up to 20 around t = d. The gradient step uses all pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.problem import InContextProblem, prefix_moments
from probe.solvers.chebyshev_recursion import Recursion
from probe.tasks.base import shifted
from probe.tasks.partial_observation import delay_embedding

CHUNK = 4


@runtime_checkable
class Algorithm(Protocol):
    """Predicts at every position."""

    @property
    def recursion(self) -> str | None:
        """Name of the trained constants that it needs."""

    def predict(
        self, problem: InContextProblem, recursions: Mapping[str, Recursion]
    ) -> Float[Tensor, "batch time d_v"]:
        """The predictions, in float64."""


@dataclass(frozen=True)
class GradientStep:
    """One step of gradient descent from zero: eta C_t q_t."""

    eta: float
    recursion: str | None = None

    def predict(
        self, problem: InContextProblem, recursions: Mapping[str, Recursion]
    ) -> Float[Tensor, "batch time d_v"]:
        """Uses all pairs."""
        return self.eta * _apply(prefix_moments(problem).cross, problem.queries)


@dataclass(frozen=True)
class LaggedLeastSquares:
    """C_{t-1} A^-1 q_t with A = G_{t-1} + ridge I; by a trained recursion, or exactly (None)."""

    recursion: str | None
    ridge: float

    def predict(
        self, problem: InContextProblem, recursions: Mapping[str, Recursion]
    ) -> Float[Tensor, "batch time d_v"]:
        """Leaves out the last pair."""
        gram, cross = _lagged_moments(problem, self.ridge)
        query = problem.queries.double()[..., None]
        if self.recursion is None:
            solved = torch.linalg.solve(gram, query)
        else:
            solved = recursions[self.recursion].solve(gram, query)
        return _apply(cross, solved[..., 0])


@dataclass(frozen=True)
class NewtonLeastSquares:
    """C_{t-1} X_k q_t, where X_k is Newton's k-th iterate to A^-1 from X_0 = I / tr A.

    X_{k+1} = X_k (2 I - A X_k) (Schulz 1933); A = G_{t-1} + ridge I.
    """

    steps: int
    ridge: float
    recursion: str | None = None

    def predict(
        self, problem: InContextProblem, recursions: Mapping[str, Recursion]
    ) -> Float[Tensor, "batch time d_v"]:
        """Leaves out the last pair."""
        gram, cross = _lagged_moments(problem, self.ridge)
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
        inverse = identity / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        for _ in range(self.steps):
            inverse = inverse @ (2 * identity - gram @ inverse)
        return _apply(cross, _apply(inverse, problem.queries))


@dataclass(frozen=True)
class Delayed:
    """An algorithm on pairs (z_{t-1}, o_t), where z_t joins the last `depth` observations."""

    algorithm: LaggedLeastSquares
    depth: int

    @property
    def recursion(self) -> str | None:
        """That of the algorithm."""
        return self.algorithm.recursion

    def predict(
        self, problem: InContextProblem, recursions: Mapping[str, Recursion]
    ) -> Float[Tensor, "batch time d_v"]:
        """A few sequences at a time, since moments of wide embeddings are large."""
        parts = []
        for start in range(0, len(problem.values), CHUNK):
            own = slice(start, start + CHUNK)
            z = delay_embedding(problem.values[own], self.depth)
            part = InContextProblem(
                keys=shifted(z),
                values=problem.values[own],
                queries=z,
                targets=problem.targets[own],
                oracle=problem.oracle[own],
                first=problem.first,
            )
            parts.append(self.algorithm.predict(part, recursions))
        return torch.cat(parts)


def _lagged_moments(problem: InContextProblem, ridge: float) -> tuple[Tensor, Tensor]:
    """G_{t-1} + ridge I and C_{t-1}."""
    known = replace(problem, keys=shifted(problem.keys), values=shifted(problem.values))
    moments = prefix_moments(known)
    moments.gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return moments.gram, moments.cross


def _apply(maps: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("btij,btj->bti", maps, vectors.double())
