"""Positions in chunks: moments at the chunks' edges, causal products inside.

Symbols: c positions in each of n chunks; G, C the moments before a chunk, with Lambda in G unless
the penalty stays while data fade; r_t = prod of gamma from the chunk's start to t; D_tj = r_t / r_j
for j <= t, else 0. Then H_t = r_t G + sum_j D_tj beta_j k_j k_j^T (+ Lambda).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from probe.mesa_layer.problem import LeastSquares

_Rows = Float[Tensor, "batch heads n c _"]
_Square = Float[Tensor, "batch heads n c c"]
_Matrix = Float[Tensor, "batch heads n _ _"]


@dataclass(frozen=True)
class Chunks:
    """A problem cut into chunks; the last is filled up with keys, values and queries of zero.

    Attributes:
        k: Keys.
        v: Values.
        q: Queries.
        beta: Write gates; None: 1.
        log_r: Logarithm of r_t; None: nothing is forgotten.
        start: Lambda.
        stays: Whether Lambda is no part of the state.
        time: Positions without the filling.
    """

    k: _Rows
    v: _Rows
    q: _Rows
    beta: Float[Tensor, "batch heads n c"] | None
    log_r: Float[Tensor, "batch heads n c"] | None
    start: Float[Tensor, "heads d d"]
    stays: bool
    time: int

    @classmethod
    def cut(cls, problem: LeastSquares, longest: int) -> "Chunks":
        """Chunks of equal length, none longer than `longest`."""
        time = problem.keys.shape[2]
        number = -(-time // longest)
        length = -(-time // number)

        def fold(x: Tensor) -> Tensor:
            if number * length > time:
                filling = x.new_zeros(*x.shape[:2], number * length - time, *x.shape[3:])
                x = torch.cat([x, filling], 2)
            return x.unflatten(2, (number, length)).contiguous()

        return cls(
            fold(problem.keys),
            fold(problem.values),
            fold(problem.queries),
            None if problem.write is None else fold(problem.write),
            None if problem.log_forget is None else fold(problem.log_forget).cumsum(-1),
            problem.start,
            problem.stays,
            time,
        )

    def joined(
        self, rows: Float[Tensor, "batch heads n c *d"]
    ) -> Float[Tensor, "batch heads time *d"]:
        """Chunks put together, without the filling."""
        return rows.flatten(2, 3)[:, :, : self.time]

    @cached_property
    def decay(self) -> _Square | None:
        """D; None: ones on and below the diagonal."""
        if self.log_r is None:
            return None
        return (self.log_r[..., :, None] - self.log_r[..., None, :]).clamp(max=0).exp().tril()

    @cached_property
    def weights(self) -> _Square | None:
        """D beta; None: ones on and below the diagonal."""
        if self.beta is None:
            return self.decay
        mask = self.beta[..., None, :]
        return (
            mask.expand(*self.k.shape[:4], -1).tril() if self.decay is None else self.decay * mask
        )

    def weighted(self, scores: _Square) -> _Square:
        """Scores (t, j) times the weight of j at t; overwrites them."""
        if self.weights is None:
            return scores.tril_()
        return scores.mul_(self.weights[:, :, : scores.shape[2]])

    def decayed(self, scores: _Square) -> _Square:
        """The same without beta; overwrites them."""
        return scores.tril_() if self.decay is None else scores.mul_(self.decay)

    def rows(self, x: _Rows) -> _Rows:
        """Rows times r_t."""
        return x if self.log_r is None else x * self.log_r[:, :, : x.shape[2], :, None].exp()

    def to_end(self, x: _Rows) -> _Rows:
        """Rows j times what is left of pair j at the chunk's end, without beta."""
        if self.log_r is None:
            return x
        return x * (self.log_r[..., -1:] - self.log_r).exp()[..., None]

    def written(self, x: _Rows) -> _Rows:
        """Rows times beta."""
        return x if self.beta is None else x * self.beta[..., None]

    def before(self, sums: _Matrix, start: Tensor | None = None) -> _Matrix:
        """The state before each chunk, from what each adds and the state before the first."""
        state = torch.zeros_like(sums[:, :, 0]) if start is None else start.expand_as(sums[:, :, 0])
        return self._scan(sums, state, range(sums.shape[2]))

    def after(self, sums: _Matrix) -> _Matrix:
        """What later chunks add up to at each chunk's end, from what each adds at its start."""
        return self._scan(sums, torch.zeros_like(sums[:, :, 0]), range(sums.shape[2])[::-1])

    def _scan(self, sums: _Matrix, state: Tensor, order: range) -> _Matrix:
        """The state that each chunk meets in this order; every chunk fades it and adds its sum."""
        kept = None if self.log_r is None else self.log_r[..., -1, None, None].exp()
        met = torch.empty_like(sums)
        for n in order:
            met[:, :, n] = state
            state = (state if kept is None else kept[:, :, n] * state) + sums[:, :, n]
        return met

    @cached_property
    def gained(self) -> tuple[_Matrix, _Matrix]:
        """What each chunk adds to G and to the transpose of C."""
        written = self.written(self.to_end(self.k))
        if self.single:
            return written.mT @ self.k, self.v[:, :, :, :0]
        both = written.mT @ torch.cat([self.k, self.v], -1)
        return both[..., : self.k.shape[-1]], both[..., self.k.shape[-1] :]

    @cached_property
    def g(self) -> _Matrix:
        """G before each chunk."""
        return self.before(self.gained[0], None if self.stays else self.start)

    @cached_property
    def c(self) -> _Matrix:
        """The transpose of C before each chunk, (d_k, d_v)."""
        return self.before(self.gained[1])

    @property
    def single(self) -> bool:
        """Whether one chunk holds all; before it there are no pairs, only a diagonal Lambda."""
        return self.k.shape[2] == 1

    @property
    def ridge(self) -> Float[Tensor, "heads 1 1 d"]:
        """The diagonal of Lambda, to multiply rows with."""
        return self.start.diagonal(dim1=-2, dim2=-1)[:, None, None]

    def hessian(self, p: _Rows, first: int | None = None) -> _Rows:
        """H_t p_t, for the first chunks only if their number is given."""
        k = self.k[:, :, :first]
        whole = self.weighted(p @ k.mT) @ k
        if self.stays:
            whole += p * self.ridge
        if not self.single:
            whole += self.rows(p @ self.g[:, :, :first])
        elif not self.stays:
            whole += self.rows(p * self.ridge)
        return whole

    def read(self, p: _Rows) -> tuple[_Rows, _Square]:
        """C_t p_t, and the weighted scores p_t . k_j that it is made with."""
        scores = self.weighted(p @ self.k.mT)
        inside = scores @ self.v
        return inside if self.single else inside + self.rows(p @ self.c), scores

    def read_back(self, o: _Rows) -> tuple[_Rows, _Square]:
        """C_t^T o_t, and the weighted scores o_t . v_j that it is made with."""
        scores = self.weighted(o @ self.v.mT)
        inside = scores @ self.k
        return inside if self.single else inside + self.rows(o @ self.c.mT), scores
