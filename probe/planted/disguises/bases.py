"""The same model with its stream in another basis."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.planted.base import Planted
from probe.planted.disguises.base import rebuilt
from probe.planted.disguises.surgery import READERS, WRITERS


def in_basis(planted: Planted, basis: Float[Tensor, "d_model d_model"], name: str) -> Planted:
    """The model whose stream is h @ basis where it was h; its predictions are the same.

    Args:
        planted: The model.
        basis: M, invertible: what writes to the stream becomes W M, what reads it M^-1 W.
        name: Name of the disguise.
    """
    inverse = torch.linalg.inv(basis)
    weights = {
        key: _changed(key.split(".")[-1], value, basis, inverse)
        for key, value in planted.model.named_parameters()
    }
    states = tuple(
        replace(state, read=inverse @ state.read.double(), write=state.write.double() @ basis)
        for state in planted.states
    )
    return replace(
        planted,
        model=rebuilt(planted.model.config, weights),
        states=states,
        disguises=(*planted.disguises, name),
    )


def _changed(name: str, weight: Tensor, basis: Tensor, inverse: Tensor) -> Tensor:
    if name in WRITERS:
        return (weight.double() @ basis).to(weight.dtype)
    if name not in READERS:
        return weight
    # Queries and keys may read positions too, which are joined to the stream.
    stream, positions = weight[..., : len(basis), :], weight[..., len(basis) :, :]
    return torch.cat([(inverse @ stream.double()).to(weight.dtype), positions], -2)
