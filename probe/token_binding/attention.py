"""How much of each earlier token every head writes into the stream: exact, from the weights.

Every kind of attention is linear in its values, z_t = sum_j w_tj v_j, so that the unit vectors of
positions in place of the values give the weights w_tj: the pattern of softmax and linear
attention, and v_j's weight k_j . H_t^-1 q_t in mesa-attention. The measure is the norm of what
each token contributes, |w_tj| |v_j W_O|, the OV circuit applied to the stream at the source
(Kobayashi et al. 2020, "Attention is not only a weight", eq. 3). A bias of the values is part of
what each token contributes; one of the output map comes from no token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import Attention
from probe.models.transformer import Block, SequenceTransformer
from probe.token_binding.window import LagWindow


@dataclass(frozen=True)
class Contributions:
    """What the heads of one block add from earlier tokens, mean over positions per sequence.

    Attributes:
        by_lag: Norm of the contribution of the token each lag before.
        total: Sum of the norms over all tokens seen.
    """

    by_lag: Float[Tensor, "batch heads lags"]
    total: Float[Tensor, "batch heads"]

    def together(self) -> "Contributions":
        """All heads as one."""
        return Contributions(self.by_lag.sum(1, keepdim=True), self.total.sum(1, keepdim=True))


@torch.no_grad()
def contributions(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], window: LagWindow
) -> tuple[Contributions, ...]:
    """The contributions of all blocks, first to last."""
    _, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name.endswith(("hook_q", "hook_k", "hook_v"))
    )
    found = []
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = (cache[f"blocks.{layer}.attn.hook_{role}"] for role in "qkv")
        found.append(_of_block(block.attn, q, k, v, window))
    return tuple(found)


def mixing_weights(
    attention: Attention,
    q: Float[Tensor, "batch time heads d_head"],
    k: Float[Tensor, "batch time heads d_head"],
) -> Float[Tensor, "batch heads time time"]:
    """w_tj of every head."""
    batch, time, heads, _ = q.shape
    units = torch.eye(time).to(q)[:, None].expand(batch, time, heads, time)
    weights: Tensor = attention.mixer(q, k, units)
    return weights.transpose(1, 2)


@torch.no_grad()
def without(
    model: SequenceTransformer,
    tokens: Float[Tensor, "batch time d_in"],
    block: int,
    lags: Sequence[int],
) -> Float[Tensor, "batch time d_out"]:
    """Predictions once a block's heads write nothing from the tokens at these lags."""
    site = f"blocks.{block}.hook_attn_out"
    attention = model.blocks[block].attn
    assert isinstance(attention, Attention)
    roles = [f"blocks.{block}.attn.hook_{role}" for role in "qkv"]
    _, cache = model.run_with_cache(tokens, names_filter=roles)
    q, k, v = (cache[role] for role in roles)
    position = torch.arange(tokens.shape[1])
    named = torch.isin(position[:, None] - position, torch.tensor(list(lags)))
    weights = mixing_weights(attention, q, k) * named
    lost = torch.einsum("bhtj,bjhc,hcm->btm", weights, v, attention.W_O)
    run: Any = model.run_with_hooks
    changed: Tensor = run(tokens, fwd_hooks=[(site, lambda added, hook: added - lost)])
    return changed


def _of_block(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, window: LagWindow
) -> Contributions:
    written = torch.einsum("bjhc,hcm->bhjm", v, attention.W_O).norm(dim=-1)
    weights = mixing_weights(attention, q, k)[:, :, window.positions]
    parts = (weights.abs() * written[:, :, None]).double()
    sources = window.sources.expand(*parts.shape[:2], -1, -1)
    return Contributions(parts.gather(-1, sources).mean(2), parts.sum(-1).mean(2))
