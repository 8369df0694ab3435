"""Norms of the derivatives of every layer's stream with respect to an earlier token.

One token is changed, in each of its channels, and the change is followed through all layers and
positions at once by forward-mode differentiation: exact columns of the Jacobian. The norm of lag j
is thus taken j positions after one source, and of every sequence for itself, since derivatives
of different sequences cancel in a mean.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from probe.mesa_layer.direct import Direct
from probe.models.attention import MesaMixer
from probe.models.transformer import SequenceTransformer

AT_ONCE = 64  # copies of a sequence in one pass


@dataclass(frozen=True)
class Sensitivity:
    """Frobenius norms of the derivatives by the token at a source, per sequence.

    Attributes:
        stream: Of the stream before the first block and after each, so many lags later.
        output: Of the prediction.
    """

    stream: Float[Tensor, "batch layers_and_one lags"]
    output: Float[Tensor, "batch lags"]


@torch.no_grad()
def sensitivity(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], source: int, lags: int
) -> Sensitivity:
    """The norms of |d h_l[source + j] / d token_source| for j = 0 .. lags - 1.

    Args:
        model: A causal model; tokens behind those lags are left out.
        tokens: The sequences.
        source: Position of the token, from 0.
        lags: Number of lags; source + lags must not exceed the length.
    """
    model = differentiable(model)
    copies = max(1, AT_ONCE // tokens.shape[-1])
    shown = tokens[:, : source + lags]
    found = [_part(model, part, source) for part in shown.split(copies)]
    stream, output = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Sensitivity(stream, output)


def _part(model: SequenceTransformer, tokens: Tensor, source: int) -> tuple[Tensor, Tensor]:
    batch, _, width = tokens.shape
    change = tokens.new_zeros(width, *tokens.shape)
    change[:, :, source] = torch.eye(width).to(tokens)[:, None]
    moved: dict[str, Tensor] = {}

    def keep(stream: Tensor, hook: object) -> None:
        moved[hook.name] = _tangent(stream)[:, source:]  # type: ignore[attr-defined]

    sites = model.layer_sites()
    with forward_ad.dual_level(), model.hooks(fwd_hooks=[(site, keep) for site in sites]):
        copies = forward_ad.make_dual(tokens.repeat(width, 1, 1), change.flatten(0, 1))
        output = _tangent(model(copies))[:, source:]

    def norms(derivative: Tensor) -> Tensor:
        by_channel = derivative.double().square().sum(-1).unflatten(0, (width, batch))
        return by_channel.sum(0).sqrt()

    return torch.stack([norms(moved[site]) for site in sites], 1), norms(output)


def _tangent(dual: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(dual)
    return torch.zeros_like(primal) if tangent is None else tangent


def differentiable(model: SequenceTransformer) -> SequenceTransformer:
    """A copy whose mesa-layers are solved by factors that forward-mode derivatives pass."""
    copy = deepcopy(model)
    for mixer in _mesa_mixers(copy):
        mixer.method = Direct()
    return copy


def _mesa_mixers(model: SequenceTransformer) -> Iterator[MesaMixer]:
    return (module for module in model.modules() if isinstance(module, MesaMixer))
