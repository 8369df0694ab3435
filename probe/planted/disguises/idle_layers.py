"""Further layers that do nothing for the algorithm."""

from dataclasses import dataclass, replace

import torch

from probe.models.transformer import BlockConfig
from probe.planted.base import Planted
from probe.planted.disguises.base import is_linear_in_stream
from probe.planted.disguises.surgery import (
    BlockParts,
    blocks_of,
    random_attention,
    scale_writes,
    widened,
    with_blocks,
)
from probe.planted.scales import whole


@dataclass(frozen=True)
class IdleLayers:
    """One to three layers at random places, which write nothing or to channels that none reads."""

    name: str = "idle_layers"

    def fits(self, planted: Planted) -> bool:
        """Where matrices alone touch the stream."""
        return is_linear_in_stream(planted)

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws the layers and their places; their heads are like those of some other layer."""
        sinks = planted.task.width_out
        wide = widened(planted, sinks, generator)
        blocks, own = blocks_of(wide), wide.model.config.blocks
        for _ in range(whole(generator, 1, 3)):
            like = own[whole(generator, 0, len(own) - 1)]
            idle = _idle(like, wide.model.config.d_model, sinks, generator)
            blocks.insert(whole(generator, 0, len(blocks)), idle)
        changed = with_blocks(wide, blocks)
        for layer, block in enumerate(blocks):
            if block.origin is None:
                scale_writes(changed, layer, block.config.attention.heads, sinks, generator)
        return replace(changed, disguises=(*planted.disguises, self.name))


def _idle(like: BlockConfig, d_model: int, sinks: int, generator: torch.Generator) -> BlockParts:
    """A layer of random heads; half of them write nothing at all."""
    config = BlockConfig(like.attention)
    weights = random_attention(config, d_model, sinks, generator)
    weights["attn.W_O"] *= whole(generator, 0, 1)
    return BlockParts(config, {name: value.float() for name, value in weights.items()})


NAMED = {"idle_layers": IdleLayers()}
