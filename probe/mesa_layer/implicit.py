"""Forward by any solver of H_t p_t = q_t, backward by the implicit function theorem.

With o_t = C_t p_t, the incoming gradient o'_t, g_t = C_t^T o'_t and u_t = H_t^-1 g_t:

    q'_t = u_t
    v'_j = sum_{t>=j} w_tj (p_t . k_j) o'_t
    k'_j = sum_{t>=j} w_tj [ (o'_t . v_j) p_t - (p_t . k_j) u_t - (u_t . k_j) p_t ]
    Lambda' = - sum_t u_t p_t^T

where w_tj is the weight of pair j at t. The gates follow from k' and v', since scaling k_j and v_j
by s is scaling beta_j by s^2, and log gamma_i moves all weights across i. No step of a solver is
stored: the backward pass is one more solve and causal products.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from probe.mesa_layer.chunks import Chunks
from probe.mesa_layer.problem import LeastSquares

_Rows = Float[Tensor, "batch heads n c _"]


class Solver(ABC):
    """Solves H_t p_t = rhs_t at all positions of all chunks."""

    chunks: Chunks

    @abstractmethod
    def solve(self, rhs: _Rows) -> _Rows:
        """p_t."""


class Implicit(Function):
    """Phi_t q_t from a solver; gradients with respect to the tensors of a LeastSquares."""

    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        ridge: Tensor,
        write: Tensor | None,
        log_forget: Tensor | None,
        solver: Solver,
    ) -> Tensor:
        """The tensors stand here for autograd; the solver holds them in chunks."""
        chunks = solver.chunks
        p = solver.solve(chunks.q)
        output, scores = chunks.read(p)
        ctx.save_for_backward(p, scores)
        ctx.solver = solver
        return chunks.joined(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of forward's arguments."""
        p, read = ctx.saved_tensors
        solver: Solver = ctx.solver
        chunks = solver.chunks
        o = torch.zeros_like(chunks.v).flatten(2, 3)
        o[:, :, : chunks.time] = incoming
        o = o.view_as(chunks.v)
        rhs, told = chunks.read_back(o)
        u = solver.solve(rhs)
        if chunks.beta is not None:
            # beta is a factor of k' and v' alike, and may be 0: it is put in at the end.
            read, told = chunks.decayed(p @ chunks.k.mT), chunks.decayed(o @ chunks.v.mT)
        dk, dv = _pairs(chunks, (p, u, o), read, told)
        # Scaling k_j and v_j by s scales beta_j by s^2.
        scaled = 0.5 * ((chunks.k * dk).sum(-1) + (chunks.v * dv).sum(-1))
        dk, dv = chunks.written(dk), chunks.written(dv)
        products = u * p
        write = None if chunks.beta is None else chunks.joined(scaled)
        forget = None
        if chunks.log_r is not None:
            forget = chunks.joined(_forgetting(chunks, products, scaled))
        ridge = -_faded(chunks, products).sum((0, 2, 3))
        return (*map(chunks.joined, (dk, dv, u)), ridge, write, forget, None)


def _pairs(
    chunks: Chunks, solved: tuple[Tensor, Tensor, Tensor], read: Tensor, told: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values, before the factor beta.

    Args:
        chunks: The problem.
        solved: p_t, u_t and o'_t.
        read: D_tj (p_t . k_j).
        told: D_tj (o'_t . v_j).
    """
    k, v = chunks.k, chunks.v
    p, u, o = solved
    both = torch.cat([o, u], -1)
    dv, from_u = (read.mT @ both).split((o.shape[-1], u.shape[-1]), -1)
    dk = (told - chunks.decayed(u @ k.mT)).mT @ p - from_u
    if chunks.single:
        return dk, dv
    later, moved = chunks.after(chunks.rows(p).mT @ both).split((o.shape[-1], u.shape[-1]), -1)
    dv = dv + chunks.to_end(k @ later)
    return dk + chunks.to_end(v @ later.mT - k @ (moved + moved.mT)), dv


def _forgetting(chunks: Chunks, products: Tensor, scaled: Tensor) -> Tensor:
    """Gradient of log gamma_i: all that weights across i at later positions owe to it."""
    own = scaled if chunks.beta is None else scaled * chunks.beta
    per_position = -own
    if chunks.stays:
        per_position = per_position + (products * chunks.ridge).sum(-1)
    flat = per_position.flatten(2, 3)
    return flat.flip(-1).cumsum(-1).flip(-1).view_as(per_position)


def _faded(chunks: Chunks, products: Tensor) -> Tensor:
    """u_t p_t times what is left of Lambda at t."""
    if chunks.log_r is None or chunks.stays:
        return products
    ends = chunks.log_r[..., -1].cumsum(-1) - chunks.log_r[..., -1]
    return products * (chunks.log_r + ends[..., None]).exp()[..., None]


def solve_implicitly(problem: LeastSquares, solver: Solver) -> Float[Tensor, "batch heads time d"]:
    """Phi_t q_t by `solver`, differentiable with respect to every tensor of `problem`."""
    # torch's stubs leave the types of `apply` open.
    solved: Tensor = Implicit.apply(  # type: ignore[no-untyped-call]
        problem.keys,
        problem.values,
        problem.queries,
        problem.ridge,
        problem.write,
        problem.log_forget,
        solver,
    )
    return solved
