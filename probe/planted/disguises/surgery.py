"""Cutting a planted model up and putting it together again, wider or with other blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.transformer import BlockConfig
from probe.planted.base import Planted
from probe.planted.disguises.base import rebuilt
from probe.sampling import normal

SAMPLE = 32
WRITERS = ("W_E", "W_pos", "W_O", "W_out")
READERS = ("W_U", "W_Q", "W_K", "W_V", "W_in")


@dataclass(frozen=True)
class BlockParts:
    """A block with its weights.

    Attributes:
        config: Its shape.
        weights: Its parameters by their name within the block.
        origin: Its place in the planted model; None for one that was added.
    """

    config: BlockConfig
    weights: dict[str, Tensor]
    origin: int | None = None


def blocks_of(planted: Planted) -> list[BlockParts]:
    """The blocks, first to last."""
    config, model = planted.model.config, planted.model
    return [
        BlockParts(block, {n: p.clone() for n, p in module.named_parameters()}, index)
        for index, (block, module) in enumerate(zip(config.blocks, model.blocks, strict=True))
    ]


def with_blocks(planted: Planted, blocks: Sequence[BlockParts]) -> Planted:
    """The model with other blocks; states go along with the blocks that they stood before.

    A state also stands before all blocks that were added in front of its own.
    """
    config = replace(planted.model.config, blocks=tuple(block.config for block in blocks))
    weights: dict[str, Tensor] = {
        n: p for n, p in planted.model.named_parameters() if not n.startswith("blocks.")
    }
    for index, block in enumerate(blocks):
        weights |= {f"blocks.{index}.{name}": value for name, value in block.weights.items()}
    known = {state.layer: state for state in planted.states}
    following: int | None = None
    states = []
    for index, block in reversed(list(enumerate(blocks))):
        following = following if block.origin is None else block.origin
        if following in known:
            states.append(replace(known[following], layer=index))
    model = rebuilt(config, weights)
    return replace(planted, model=model, states=tuple(reversed(states)))


def widened(planted: Planted, extra: int, generator: torch.Generator) -> Planted:
    """The model with `extra` channels behind the others, filled with random maps of the token.

    No block reads them or writes to them.
    """
    config = planted.model.config
    weights = {
        name: _padded(name.split(".")[-1], value, config.d_model, extra)
        for name, value in planted.model.named_parameters()
    }
    for name in ("W_E", "W_pos"):
        if name in weights:
            drawn = normal(generator, len(weights[name]), extra) / config.d_in**0.5
            weights[name][:, config.d_model :] = drawn.to(weights[name])
    states = tuple(
        replace(
            state,
            read=torch.nn.functional.pad(state.read, (0, 0, 0, extra)),
            write=torch.nn.functional.pad(state.write, (0, extra)),
        )
        for state in planted.states
    )
    wide = replace(config, d_model=config.d_model + extra)
    return replace(planted, model=rebuilt(wide, weights), states=states)


def _padded(name: str, weight: Tensor, width: int, extra: int) -> Tensor:
    """Zeros to and from the new channels."""
    if name in WRITERS:
        return torch.nn.functional.pad(weight, (0, extra))
    if name in READERS:
        stream, positions = weight[..., :width, :], weight[..., width:, :]
        return torch.cat([torch.nn.functional.pad(stream, (0, 0, 0, extra)), positions], -2)
    return weight


def random_attention(
    block: BlockConfig, d_model: int, sinks: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "heads ..."]]:
    """Heads that read all channels but the last `sinks` and write to these alone, by parameter.

    Reading what such heads wrote would cube it in every layer, up to infinity on rare sequences.
    """
    kind, d_qk = block.attention, d_model + block.positions
    heads = {
        "attn.W_Q": normal(generator, kind.heads, d_qk, kind.d_head) / d_qk**0.5,
        "attn.W_K": normal(generator, kind.heads, d_qk, kind.d_head) / d_qk**0.5,
        "attn.W_V": normal(generator, kind.heads, d_model, kind.d_head) / d_model**0.5,
        "attn.W_O": normal(generator, kind.heads, kind.d_head, d_model),
    }
    for name in ("attn.W_Q", "attn.W_K", "attn.W_V"):
        heads[name][:, d_model - sinks : d_model] = 0
    heads["attn.W_O"][..., : d_model - sinks] = 0
    if kind.kind == "mesa":
        heads["attn.mixer.log_ridge"] = torch.zeros(kind.heads, dtype=torch.float64)
    return heads


@torch.no_grad()
def scale_writes(
    planted: Planted, layer: int, heads: int, sinks: int, generator: torch.Generator
) -> None:
    """Scales what the last heads of a layer write, in place, to half of what is there already."""
    writes = planted.model.get_parameter(f"blocks.{layer}.attn.W_O")[-heads:]
    before, mixed = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_z"
    tokens = planted.task.sample(SAMPLE, generator).tokens.to(writes)
    _, cache = planted.model.run_with_cache(tokens, names_filter=[before, mixed])
    added = cache[mixed][..., -heads:, :].flatten(2) @ writes.flatten(0, 1)
    if added.any():
        held = cache[before][..., -sinks:].square().mean().sqrt()
        writes *= 0.5 * held / added[..., -sinks:].square().mean().sqrt()
