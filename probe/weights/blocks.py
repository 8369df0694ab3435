"""Matrices as blocks of slots, and the part of them that is a multiple of the identity."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.transformer import SequenceTransformer
from probe.weights.products import Products, products, with_products
from probe.weights.slots import SlotBasis


def block_scalars(
    matrix: Float[Tensor, "*batch n m"], width: int
) -> Float[Tensor, "*batch rows columns"]:
    """The mean of the diagonal of every block: the best multiple of the identity in its place."""
    blocks = matrix.unflatten(-1, (-1, width)).unflatten(-3, (-1, width))
    return blocks.diagonal(dim1=-3, dim2=-1).mean(-1)


def from_scalars(
    scalars: Float[Tensor, "*batch slots slots"], width: int
) -> Float[Tensor, "*batch n n"]:
    """The matrix whose blocks are these multiples of the identity."""
    eye = torch.eye(width, dtype=scalars.dtype)
    return torch.einsum("...ab,ij->...aibj", scalars, eye).flatten(-4, -3).flatten(-2, -1)


@dataclass(frozen=True)
class Scalars:
    """The block scalars of one block of a model.

    Attributes:
        scores: Of A, from a query's slots to a key's.
        values: Of B, from the slots that are read to those that are written.
    """

    scores: Float[Tensor, "heads slots slots"] = field(repr=False)
    values: Float[Tensor, "heads slots slots"] = field(repr=False)

    @classmethod
    def of(cls, layer: Products, width: int) -> "Scalars":
        """Read off the products, by least squares."""
        return cls(block_scalars(layer.scores, width), block_scalars(layer.values, width))

    def products(self, width: int) -> Products:
        """The products that hold nothing else."""
        return Products(from_scalars(self.scores, width), from_scalars(self.values, width))


def compress(model: SequenceTransformer, slots: int) -> SequenceTransformer:
    """The model with every block of every product replaced by the mean of its diagonal.

    The reverse-engineered algorithm of von Oswald et al. 2023 (section 3.1), at any depth: of a
    one-layer model with two heads and two masked slots 12 numbers are left that matter.

    Args:
        model: A model of linear attention whose stream is its token.
        slots: Number of slots of a token.

    Returns:
        A new model in evaluation mode, with heads as wide as the stream.

    Raises:
        InputError: The model's stream is not made of that many slots.
    """
    basis = SlotBasis.of(model, slots)
    return with_scalars(model, basis, scalars(model, basis))


def scalars(model: SequenceTransformer, basis: SlotBasis) -> tuple[Scalars, ...]:
    """The block scalars of every block of a model."""
    return tuple(Scalars.of(layer, basis.width) for layer in products(model, basis))


def with_scalars(
    model: SequenceTransformer, basis: SlotBasis, layers: Sequence[Scalars]
) -> SequenceTransformer:
    """The model with these block scalars for products."""
    return with_products(model, basis, [layer.products(basis.width) for layer in layers])
