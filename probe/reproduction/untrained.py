"""Sensitivity of the first block of an untrained model to the tokens before."""

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.transformer import SequenceTransformer
from probe.presets.base import find_preset
from probe.reproduction.measure import Measured
from probe.reproduction.published import SENSITIVITY, SENSITIVITY_RANGE, SENSITIVITY_TO_OLDER
from probe.sampling import generator_for
from probe.tasks.base import find_task

INITIAL_STD = 0.05
# Of 64 that were published: before training the spread between initialisations is all that shows.
SEQUENCES = 8


def untrained_sensitivity(preset: str, query: int, seed: int, repetition: int) -> Measured:
    """Fresh weights and sequences: sensitivity to the last tokens, and the mean of older ones.

    Args:
        preset: Full name of a preset.
        query: The position that is differentiated, counted from 0.
        seed: Seed of the run.
        repetition: Which weights and sequences of that seed.
    """
    described = find_preset(preset)
    model = SequenceTransformer(described.config)
    model.initialise(INITIAL_STD, generator_for(seed, repetition, 1))
    model.requires_grad_(False)
    sample = find_task(described.task).sample(SEQUENCES, generator_for(seed, repetition))
    found = sensitivity(model, sample.tokens, query)
    first = max(0, query - SENSITIVITY_RANGE)
    recent = {SENSITIVITY: found[first:, None]}
    return recent | ({SENSITIVITY_TO_OLDER: found[:first].mean()[None, None]} if first else {})


def sensitivity(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], query: int
) -> Float[Tensor, " context"]:
    """How the stream after the first block depends on each token up to the query.

    The mean over sequences and channels l of |d h_query[l] / d x_j|, j = 0 .. query; the stream h
    is clipped where the block clips it.

    Args:
        model: A model with a read-in matrix.
        tokens: The sequences at which it is differentiated.
        query: Position of the stream, counted from 0.
    """
    inputs = tokens[:, : query + 1].clone().requires_grad_()
    embedded = inputs if model.W_E is None else inputs @ model.W_E
    stream = model.blocks[0](embedded)[:, query]
    channels = torch.eye(stream.shape[-1], dtype=stream.dtype)
    directions = channels[:, None].expand(-1, len(tokens), -1)
    (gradients,) = torch.autograd.grad(stream, inputs, directions, is_grads_batched=True)
    return gradients.double().norm(dim=-1).mean((0, 1))
