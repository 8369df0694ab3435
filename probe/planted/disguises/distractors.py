"""Further channels and heads that compute other things from the same context."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
class Distractors:
    """One or two random heads in every block, on channels that the algorithm does not read."""

    name: str = "distractors"

    def fits(self, planted: Planted) -> bool:
        """Where matrices alone touch the stream."""
        return is_linear_in_stream(planted)

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """Draws channels, then heads."""
        width = planted.task.width_out
        extra, heads = whole(generator, max(width, 2), 2 * width), whole(generator, 1, 2)
        wide = widened(planted, extra, generator)
        sinks = extra // 2
        blocks = [_busier(block, heads, wide, sinks, generator) for block in blocks_of(wide)]
        changed = with_blocks(wide, blocks)
        for layer in range(len(blocks)):
            scale_writes(changed, layer, heads, sinks, generator)
        return replace(changed, disguises=(*planted.disguises, self.name))


def _busier(
    block: BlockParts, heads: int, wide: Planted, sinks: int, generator: torch.Generator
) -> BlockParts:
    """The block with further heads behind its own."""
    kind = block.config.attention
    added = replace(block.config, attention=replace(kind, heads=heads))  # type: ignore[type-var]
    drawn = random_attention(added, wide.model.config.d_model, sinks, generator)
    weights: dict[str, Tensor] = dict(block.weights)
    for name, value in drawn.items():
        weights[name] = torch.cat([weights[name], value.to(weights[name])])
    more = replace(kind, heads=kind.heads + heads)  # type: ignore[type-var]
    return replace(block, config=replace(block.config, attention=more), weights=weights)


NAMED = {"distractors": Distractors()}
