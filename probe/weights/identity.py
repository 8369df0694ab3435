"""How much of a matrix is multiples of the identity in the blocks of the slots."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.sampling import generator_for
from probe.weights.blocks import block_scalars

DRAWS = 999


@dataclass(frozen=True)
class Score:
    """The block-identity score of one matrix beside its null.

    Attributes:
        share: Share of the squared Frobenius norm that block multiples of the identity explain.
        null: Its mean under the null.
        null_hi: Its 95 % quantile under the null.
        p: Share of the null that reaches it, itself counted.
    """

    share: float
    null: float
    null_hi: float
    p: float


def identity_share(matrix: Float[Tensor, "*batch n m"], width: int) -> Float[Tensor, "*batch"]:
    """1 - sum |M_ab - m_ab I|^2 / sum |M_ab|^2 over all blocks (a, b); 0 for a matrix of zeros."""
    scalars = block_scalars(matrix, width)
    explained = width * scalars.square().sum((-2, -1))
    return explained / matrix.square().sum((-2, -1)).clamp(min=torch.finfo(matrix.dtype).tiny)


def identity_score(matrix: Float[Tensor, "n m"], width: int, draws: int = DRAWS) -> Score:
    """The share of a matrix, and of the same matrix with permuted channels in every column slot.

    One permutation per slot and draw: singular values and the norms of all blocks stay, and what
    is lost is that a channel of one slot stands for the same channel of another.

    Args:
        matrix: A product, in the basis of the slots.
        width: Width of a slot.
        draws: Number of permutations.
    """
    generator = generator_for(0, draws, *matrix.shape)
    slots = matrix.shape[1] // width
    order = torch.rand(draws, slots, width, generator=generator).argsort(-1)
    order = (order + width * torch.arange(slots)[:, None]).flatten(1)
    null = identity_share(matrix[:, order].transpose(0, 1), width)
    share = identity_share(matrix, width)
    reached = (null >= share * (1 - 1e-9)).sum()
    return Score(
        share=float(share),
        null=float(null.mean()),
        null_hi=float(null.quantile(0.95)),
        p=float((1 + reached) / (1 + draws)),
    )


def restricted(
    matrix: Float[Tensor, "*batch n n"],
    rows: Bool[Tensor, " slots"],
    columns: Bool[Tensor, " slots"],
) -> Float[Tensor, "*batch n_rows n_columns"]:
    """The blocks of the slots that can be read (rows) and those that matter (columns)."""
    width = matrix.shape[-1] // len(rows)
    return matrix[..., rows.repeat_interleave(width), :][..., columns.repeat_interleave(width)]
