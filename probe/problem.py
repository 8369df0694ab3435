"""The in-context problem, and the prefix moments that are all a linear solver needs.

Symbols, used everywhere: B sequences, T positions, d_k and d_v the widths of keys and values;
k_j, v_j the offered pair at position j; q_t the query and y_t the target at position t;
G_t = sum_{j<=t} k_j k_j^T, C_t = sum_{j<=t} v_j k_j^T; mu the eigenvalues of G_t.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class InContextProblem:
    """At position t: pairs (k_j, v_j) for first <= j <= t, a query q_t and a target y_t.

    Attributes:
        keys: Keys; zero before position `first`.
        values: Values; the value of a position before `first` belongs to no pair.
        queries: Queries.
        targets: What a learner should predict, noise included.
        oracle: The expectation of the target for one who knows the teacher.
        first: Position of the first pair.
    """

    keys: Float[Tensor, "batch time d_k"]
    values: Float[Tensor, "batch time d_v"]
    queries: Float[Tensor, "batch time d_k"]
    targets: Float[Tensor, "batch time d_v"]
    oracle: Float[Tensor, "batch time d_v"]
    first: int

    def with_swapped_context(self) -> "InContextProblem":
        """The preceding sequence's pairs under the own query: a null for a learner."""
        return replace(self, keys=self.keys.roll(1, 0), values=self.values.roll(1, 0))

    def of_another_sequence(self) -> "InContextProblem":
        """The preceding sequence's whole problem: a null for anything read from a model."""
        return InContextProblem(
            keys=self.keys.roll(1, 0),
            values=self.values.roll(1, 0),
            queries=self.queries.roll(1, 0),
            targets=self.targets.roll(1, 0),
            oracle=self.oracle.roll(1, 0),
            first=self.first,
        )


@dataclass(frozen=True)
class PrefixMoments:
    """G_t and C_t at every prefix, in float64."""

    gram: Float[Tensor, "batch time d_k d_k"]
    cross: Float[Tensor, "batch time d_v d_k"]


def prefix_moments(problem: InContextProblem) -> PrefixMoments:
    """Cumulative sums of outer products, without a loop over positions."""
    keys = problem.keys.double()
    values = problem.values.double()
    gram = (keys[..., :, None] * keys[..., None, :]).cumsum(1)
    cross = (values[..., :, None] * keys[..., None, :]).cumsum(1)
    return PrefixMoments(gram, cross)


@dataclass(frozen=True)
class Spectrum:
    """The problem in the eigenbasis of G_t = U diag(mu) U^T.

    Any linear learner's prediction is y_hat = C f(G) q = sum_i f(mu_i) (C u_i) (u_i . q).

    Attributes:
        mu: Eigenvalues, ascending; 0 where `present` is false.
        present: Whether an eigenvalue is above the rank cut-off of the tokens' dtype.
        query: Coordinates u_i . q of the query.
        maps: C u_i, one column per eigenvector; zero where `present` is false.
        basis: U, one eigenvector per column.
    """

    mu: Float[Tensor, "batch time d_k"]
    present: Bool[Tensor, "batch time d_k"]
    query: Float[Tensor, "batch time d_k"]
    maps: Float[Tensor, "batch time d_v d_k"]
    basis: Float[Tensor, "batch time d_k d_k"]

    def predict(
        self, f: Callable[[Float[Tensor, "batch time d_k"]], Float[Tensor, "batch time d_k"]]
    ) -> Float[Tensor, "batch time d_v"]:
        """C f(G) q. Directions below the rank cut-off hold no pair and contribute nothing."""
        weight = torch.where(self.present, f(self.mu), 0.0)
        return torch.einsum("btvi,bti->btv", self.maps, weight * self.query)

    def of_queries(self, queries: Float[Tensor, "batch time d_k"]) -> "Spectrum":
        """The same moments under other queries."""
        coordinates = torch.einsum("btki,btk->bti", self.basis, queries.double())
        return replace(self, query=coordinates)

    def filtered_query(
        self, f: Callable[[Float[Tensor, "batch time d_k"]], Float[Tensor, "batch time d_k"]]
    ) -> Float[Tensor, "batch time d_k"]:
        """f(G) q; here directions without pairs count, with mu = 0."""
        return torch.einsum("btki,bti->btk", self.basis, f(self.mu) * self.query)


def spectrum(
    moments: PrefixMoments,
    queries: Float[Tensor, "batch time d_k"],
    token_dtype: torch.dtype = torch.float32,
) -> Spectrum:
    """Eigendecomposition of every G_t.

    The rank cut-off is d_k * eps(token_dtype) * mu_max, since float64 moments of float32 tokens
    carry rounding noise that float64's own eps would take for signal.
    """
    mu, basis = torch.linalg.eigh(moments.gram)
    cutoff = mu.shape[-1] * torch.finfo(token_dtype).eps * mu[..., -1:]
    present = (mu > cutoff) & (mu > 0)
    query = torch.einsum("btki,btk->bti", basis, queries.double())
    maps = (moments.cross @ basis) * present[..., None, :]
    return Spectrum(torch.where(present, mu, 0.0), present, query, maps, basis)
