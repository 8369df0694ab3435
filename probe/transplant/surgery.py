"""Building the model in which one mesa-layer stands for all blocks from some layer on."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import MesaAttention, MesaMixer
from probe.models.transformer import Block, BlockConfig, ModelConfig, SequenceTransformer
from probe.transplant.binding import Binding
from probe.transplant.explicit import Answer

LOUD = (
    1e3  # how much the answer outweighs what the stream held along the directions it is read from
)


def explicit_config(old: ModelConfig, binding: Binding) -> ModelConfig:
    """The blocks before the binding, then one mesa-layer of a single head."""
    width = max(matrix.shape[1] for matrix in binding.maps.values())
    block = BlockConfig(MesaAttention(1, width, binding.unpaired))
    return replace(old, blocks=(*old.blocks[: binding.layer], block))


@torch.no_grad()
def transplant(
    model: SequenceTransformer,
    binding: Binding,
    answer: Answer,
) -> SequenceTransformer:
    """The model with an explicit mesa-layer in place of its last blocks.

    Args:
        model: The model; it is left as it is.
        binding: How the layer reads its problem, and the first block that it replaces.
        answer: Its penalty and output map.

    Returns:
        A new model in evaluation mode.
    """
    new = SequenceTransformer(explicit_config(model.config, binding))
    kept = {name: t for name, t in model.state_dict().items() if _kept(name, binding.layer)}
    new.load_state_dict(kept, strict=False)
    block = new.blocks[binding.layer]
    assert isinstance(block, Block) and isinstance(block.attn.mixer, MesaMixer)
    attention = block.attn
    parts = (attention.W_K, attention.W_V, attention.W_Q)
    for parameter, matrix in zip(parts, binding.maps.values(), strict=True):
        parameter.zero_()
        parameter[0, :, : matrix.shape[1]] = matrix
    block.attn.mixer.log_ridge.fill_(math.log(answer.ridge))
    directions, scale = _free_directions(model, binding.second, len(answer.out))
    attention.W_O.zero_()
    attention.W_O[0, : len(answer.out)] = answer.out @ directions.mT * scale
    if new.W_U is not None:
        new.W_U.copy_(directions / scale)
    return new.eval().requires_grad_(False)


def _kept(name: str, layer: int) -> bool:
    parts = name.split(".")
    return parts[0] != "blocks" or int(parts[1]) < layer


def _free_directions(
    model: SequenceTransformer, second: Tensor, width: int
) -> tuple[Float[Tensor, "d_model d_out"], float]:
    """Where the layer writes its answer, and how loud.

    A model with a read-out matrix gets a new one, along the directions in which the stream before
    the layer varies least. What it holds there is drowned: the answer is written louder by the
    factor by which the read-out is turned down. Without such a matrix the first channels are read
    as they stand.
    """
    if model.W_U is None:
        return torch.eye(len(second), width, dtype=second.dtype), 1.0
    mu, basis = torch.linalg.eigh(second)
    loudness = max(1.0, float((mu[width - 1].clamp(min=0) / mu.mean()).sqrt()) * LOUD)
    return basis[:, :width], loudness
