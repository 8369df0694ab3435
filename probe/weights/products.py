"""The products of matrices through which heads act; the matrices themselves are not defined.

A head of linear attention adds sum_j (x_t A x_j) x_j B with A = W_Q W_K^T and B = W_V W_O, and
only these: W_Q M, W_K M^-T and W_V M, M^-1 W_O are the same head for every invertible M.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import KINDS, Attention
from probe.models.transformer import SequenceTransformer
from probe.weights.slots import SlotBasis


@dataclass(frozen=True)
class Products:
    """Of the heads of one block, in the basis of the slots.

    Attributes:
        scores: A = W_Q W_K^T: from a query's slots (rows) to a key's (columns).
        values: B = W_V W_O: from the slots that are read to those that are written.
    """

    scores: Float[Tensor, "heads n n"] = field(repr=False)
    values: Float[Tensor, "heads n n"] = field(repr=False)


def products(model: SequenceTransformer, basis: SlotBasis) -> tuple[Products, ...]:
    """The products of every block, in float64."""
    found = []
    for attention in _attentions(model):
        parts = (attention.W_Q, attention.W_K, attention.W_V, attention.W_O)
        q, k, v, o = (part.detach().double() for part in parts)
        scores = basis.write @ (q @ k.mT) @ basis.write.mT
        found.append(Products(scores, basis.write @ (v @ o) @ basis.read))
    return tuple(found)


@torch.no_grad()
def with_products(
    model: SequenceTransformer, basis: SlotBasis, layers: Sequence[Products]
) -> SequenceTransformer:
    """The model with other products, as heads as wide as the stream; the rest stays."""
    blocks = tuple(
        replace(
            block,
            attention=KINDS[block.attention.kind](len(layer.scores), basis.count * basis.width),
        )
        for block, layer in zip(model.config.blocks, layers, strict=True)
    )
    new = SequenceTransformer(replace(model.config, blocks=blocks))
    kept = {name: t for name, t in model.state_dict().items() if not name.startswith("blocks.")}
    new.load_state_dict(kept, strict=False)
    for attention, layer in zip(_attentions(new), layers, strict=True):
        attention.W_Q.copy_(basis.read @ layer.scores)
        attention.W_K.copy_(basis.read.expand_as(attention.W_K))
        attention.W_V.copy_(basis.read @ layer.values)
        attention.W_O.copy_(basis.write.expand_as(attention.W_O))
    return new.eval().requires_grad_(False)


def _attentions(model: SequenceTransformer) -> list[Attention]:
    return [part for part in model.modules() if isinstance(part, Attention)]
