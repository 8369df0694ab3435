"""Models with other attention layers."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch

from probe.linearization.distill import Kind
from probe.models.attention import Attention, SoftmaxAttention
from probe.models.transformer import SequenceTransformer


def softmax_layers(model: SequenceTransformer) -> tuple[int, ...]:
    """The blocks with softmax attention, from 0."""
    blocks = enumerate(model.config.blocks)
    return tuple(at for at, block in blocks if isinstance(block.attention, SoftmaxAttention))


@torch.no_grad()
def with_layers(
    model: SequenceTransformer, kind: type[Kind], layers: Mapping[int, Attention], limit: float
) -> SequenceTransformer:
    """The model with linear attention in the place of that of some blocks.

    Layers that cube their input throw a rare stream far out, where the next layer cubes it again;
    so the stream is clipped after those blocks, as in the linear models of von Oswald et al. 2023.

    Args:
        model: The model; it is left as it is.
        kind: Kind of the new attention.
        layers: The new attention by block.
        limit: The stream is clipped to [-limit, limit] after each of them.
    """
    blocks = list(model.config.blocks)
    for at in layers:
        old = blocks[at]
        attention = kind(old.attention.heads, old.attention.d_head)
        clip = limit if old.clip is None else min(old.clip, limit)
        blocks[at] = replace(old, attention=attention, unit=(), clip=clip)
    new = SequenceTransformer(replace(model.config, blocks=tuple(blocks)))
    state = dict(model.state_dict())
    for at, layer in layers.items():
        state |= {f"blocks.{at}.attn.{name}": value for name, value in layer.state_dict().items()}
    new.load_state_dict(state)
    return new.eval().requires_grad_(False)


@torch.no_grad()
def without_layers(model: SequenceTransformer, layers: tuple[int, ...]) -> SequenceTransformer:
    """The model with nothing added by the attention of some blocks."""
    new = deepcopy(model)
    for at in layers:
        new.get_parameter(f"blocks.{at}.attn.W_O").zero_()
    return new
