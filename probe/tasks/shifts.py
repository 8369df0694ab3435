"""Queries that follow another law than the context's inputs; Garg et al. 2022, section 4.

A shift changes what a sequence draws anyway and keeps all else: teacher, context and noise of a
task are the same under it where its documentation says no other.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import InputError
from probe.sampling import uniform

Drawn = tuple[Float[Tensor, "batch pairs width"], Float[Tensor, "batch queries width"]]


@runtime_checkable
class QueryShift(Protocol):
    """Changes the inputs of queries in view of those of the context."""

    def apply(
        self,
        context: Float[Tensor, "batch pairs width"],
        queries: Float[Tensor, "batch queries width"],
        generator: torch.Generator,
    ) -> Drawn:
        """Context and queries; rows of zeros in the context are no pairs and stay."""


@dataclass(frozen=True)
class NoShift:
    """Queries follow the law of the inputs."""

    def apply(
        self,
        context: Float[Tensor, "batch pairs width"],
        queries: Float[Tensor, "batch queries width"],
        generator: torch.Generator,
    ) -> Drawn:
        """Both as they are."""
        return context, queries


@dataclass(frozen=True)
class OtherOrthant:
    """The context's inputs are folded into one orthant, drawn at random; each query into another.

    Queries differ from the context in the sign of a channel at least, and of half of them on
    average.
    """

    def apply(
        self,
        context: Float[Tensor, "batch pairs width"],
        queries: Float[Tensor, "batch queries width"],
        generator: torch.Generator,
    ) -> Drawn:
        """Draws the orthants; a query that would share the context's turns in its first channel."""
        count, _, width = context.shape
        signs = 2.0 * (uniform(generator, 0.0, 1.0, count, 1, width) < 0.5) - 1
        apart = uniform(generator, 0.0, 1.0, *queries.shape) < 0.5
        apart[..., 0] |= ~apart.any(-1)
        return context.abs() * signs, torch.where(apart, -signs, signs) * queries.abs()


@dataclass(frozen=True)
class OrthogonalQueries:
    """Queries are orthogonal to all inputs of their context, and as long as they were.

    Whatever combines the pairs linearly predicts 0 there.
    """

    def apply(
        self,
        context: Float[Tensor, "batch pairs width"],
        queries: Float[Tensor, "batch queries width"],
        generator: torch.Generator,
    ) -> Drawn:
        """Takes from every query its projection on the context.

        Raises:
            InputError: The context has as many pairs as channels, and so leaves no direction.
        """
        _, pairs, width = context.shape
        if pairs >= width:
            raise InputError(
                f"orthogonal queries: {pairs} pairs of {width} channels leave no direction; "
                f"at most {width - 1} pairs do"
            )
        basis, sizes, _ = torch.linalg.svd(context.mT, full_matrices=False)
        spanned = sizes > width * torch.finfo(sizes.dtype).eps * sizes[:, :1]
        basis = basis * spanned[:, None, :]
        left = queries - queries @ basis @ basis.mT
        left = left - left @ basis @ basis.mT  # once more: the first difference rounds
        size = queries.norm(dim=-1, keepdim=True)
        return context, left * (size / left.norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class RepeatedQueries:
    """Every query is one of the inputs of its context: their label has been seen."""

    def apply(
        self,
        context: Float[Tensor, "batch pairs width"],
        queries: Float[Tensor, "batch queries width"],
        generator: torch.Generator,
    ) -> Drawn:
        """Each pair is as likely as any other."""
        count, pairs, width = context.shape
        lots = uniform(generator, 0.0, 1.0, count, queries.shape[1], pairs)
        there = context.ne(0).any(-1)
        chosen = lots.masked_fill(~there[:, None], -1.0).argmax(-1)
        return context, context.gather(1, chosen[..., None].expand(-1, -1, width))


SHIFTS: dict[str, QueryShift] = {
    "queries in another orthant": OtherOrthant(),
    "orthogonal queries": OrthogonalQueries(),
    "repeated queries": RepeatedQueries(),
}
