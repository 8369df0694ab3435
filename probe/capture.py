"""Hooks to activations: one forward pass per batch, read at the sites that the stages ask for."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.transformer import SequenceTransformer

GROUP = 16


@dataclass(frozen=True)
class Capture:
    """What a model did on a batch.

    Attributes:
        output: Its predictions.
        layers: The stream before the first block and after each block; no layers for a predictor
            that has no inside.
        updates: What the attention of each block added to the stream.
        readouts: The model's own read-out of each of `layers`.
    """

    output: Float[Tensor, "batch time d_v"]
    layers: Float[Tensor, "layers_and_one batch time d_model"]
    updates: Float[Tensor, "layers batch time d_model"]
    readouts: Float[Tensor, "layers_and_one batch time d_v"]


def predictor_only(output: Float[Tensor, "batch time d_v"]) -> Capture:
    """The capture of a predictor without an inside."""
    nothing = output.new_zeros(0, *output.shape[:2], 0)
    return Capture(output, nothing, nothing, output.new_zeros(0, *output.shape))


@torch.no_grad()
def capture(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], batch_size: int
) -> Capture:
    """Runs the model on `batch_size` sequences at a time and keeps the stream and the updates.

    The batch size is rounded up to a multiple of 16: narrow float32 products take rows in groups,
    and those left over are rounded otherwise, so that the cut would show in the last bits.
    The model runs where its parameters are; what is kept comes back to where the tokens are.
    """
    device = next(model.parameters()).device
    stream = model.layer_sites()
    updates = tuple(f"blocks.{layer}.hook_attn_out" for layer in range(len(model.blocks)))
    wanted = {*stream, *updates}
    outputs, kept = [], []
    for part in tokens.split(-(-batch_size // GROUP) * GROUP):
        output, cache = model.run_with_cache(
            part.to(device), names_filter=lambda name: name in wanted
        )
        outputs.append(output)
        kept.append(cache)
    layers = torch.stack([torch.cat([cache[site] for cache in kept]) for site in stream])
    added = torch.stack([torch.cat([cache[site] for cache in kept]) for site in updates])
    found = (torch.cat(outputs), layers, added, model.read_out(layers))
    return Capture(*(part.to(tokens.device) for part in found))
