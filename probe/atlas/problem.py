"""The problem that an attention head poses with its own keys, values and queries.

At position p there are the pairs (k_j, v_j), j <= p, each with a weight w_pj, and a query q_p. The
weight is 1, or what the gates of the head leave of the pair. The answer is what the head gathered.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.models.hooked import Heads
from probe.sampling import generator_for

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class HeadProblem:
    """The problems of the heads of a block at some positions, in float64.

    Attributes:
        keys: k_j.
        values: v_j.
        queries: q_p.
        weights: w_pj; 0 for the future.
        at: The positions p.
        eps: Rounding unit of the model's own numbers.
    """

    keys: Float[Tensor, "batch heads time d_k"]
    values: Float[Tensor, "batch heads time d_v"]
    queries: Float[Tensor, "batch heads at d_k"]
    weights: Float[Tensor, "#batch #heads at time"]
    at: Int[Tensor, " at"]
    eps: float

    @cached_property
    def scores(self) -> Float[Tensor, "batch heads at time"]:
        """q_p . k_j."""
        return self.queries @ self.keys.mT

    @cached_property
    def past(self) -> Float[Tensor, "at time"]:
        """1 for the past and the present, 0 for the future."""
        later = torch.arange(self.keys.shape[2], device=self.keys.device)
        return (later <= self.at[:, None]).to(self.keys.dtype)

    @cached_property
    def mass(self) -> Float[Tensor, "#batch #heads at 1"]:
        """The sum of the weights: without gates, the number of tokens so far."""
        return self.weights.sum(-1, keepdim=True).clamp_min(TINY)

    @cached_property
    def mean_value(self) -> Float[Tensor, "batch heads at d_v"]:
        """The mean of the values so far."""
        return self.weights @ self.values / self.mass

    @cached_property
    def mean_key(self) -> Float[Tensor, "batch heads at d_k"]:
        """The mean of the keys so far."""
        return self.weights @ self.keys / self.mass

    @cached_property
    def _moments(self) -> Float[Tensor, "batch heads at d_k_and_d_v d_k"]:
        """G_p above C_p."""
        return self.products(torch.cat([self.keys, self.values], -1), self.keys[..., None, :])

    def products(
        self,
        values: Float[Tensor, "batch heads time m"],
        keys: Float[Tensor, "batch heads time #at d_k"],
    ) -> Float[Tensor, "batch heads at m d_k"]:
        """sum_j w_pj v_j k_j^T of any values and keys, in one product for all positions."""
        weighted = self.weights.mT[..., None] * keys
        return (values.mT @ weighted.flatten(3)).unflatten(3, weighted.shape[3:]).transpose(2, 3)

    @property
    def gram(self) -> Float[Tensor, "batch heads at d_k d_k"]:
        """G_p = sum_j w_pj k_j k_j^T."""
        return self._moments[..., : self.keys.shape[-1], :]

    @property
    def cross(self) -> Float[Tensor, "batch heads at d_v d_k"]:
        """C_p = sum_j w_pj v_j k_j^T."""
        return self._moments[..., self.keys.shape[-1] :, :]

    @property
    def size(self) -> int:
        """Numbers in the weighted keys of one sequence, the largest part of a problem."""
        return self.keys[0].numel() * len(self.at)

    def rows(self, part: slice) -> "HeadProblem":
        """The problems of some sequences."""
        weights = self.weights if len(self.weights) == 1 else self.weights[part]
        return replace(
            self,
            keys=self.keys[part],
            values=self.values[part],
            queries=self.queries[part],
            weights=weights,
        )


def pose(heads: Heads, at: Int[Tensor, " at"]) -> HeadProblem:
    """The problems at some positions; gates make weights w_pj = write_j prod_{j<i<=p} forget_i.

    Args:
        heads: What the heads of a block worked with.
        at: The positions.
    """
    keys, values, queries = (
        part.double().transpose(1, 2) for part in (heads.keys, heads.values, heads.queries)
    )
    later = torch.arange(keys.shape[2], device=keys.device)
    weights = (later <= at[:, None]).double()[None, None]
    if heads.forget is not None:
        faded = heads.forget.double().clamp_min(TINY).log().cumsum(1).transpose(1, 2)
        since = faded[..., at, None] - faded[..., None, :]
        weights = weights * since.clamp_max(0).exp()
    if heads.write is not None:
        weights = weights * heads.write.double().transpose(1, 2)[:, :, None]
    eps = max(torch.finfo(heads.keys.dtype).eps, torch.finfo(torch.float32).eps)
    return HeadProblem(keys, values, queries[:, :, at], weights, at, eps)


def answers(heads: Heads, at: Int[Tensor, " at"]) -> Float[Tensor, "batch heads at d_v"]:
    """What the heads gathered at some positions, in float64."""
    return heads.gathered[:, at].double().transpose(1, 2)


def derangements(at: Int[Tensor, " at"], time: int) -> Int[Tensor, "at time"]:
    """For each position, one cycle through its whole past, the same in every run; the future stays.

    No pair of a past of two tokens or more keeps its key.
    """
    draws = torch.rand(len(at), time, generator=generator_for(0, time, 7), dtype=torch.float64)
    later = torch.arange(time)
    future = later > at[:, None]
    order = torch.where(future, 2.0 + later, draws).argsort(-1)
    following = order.gather(1, (later + 1) % (at[:, None] + 1))
    moved = torch.empty_like(order).scatter_(1, order, following)
    return torch.where(future, later.expand_as(moved), moved)
