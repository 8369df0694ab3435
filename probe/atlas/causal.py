"""The causal weight of a head: how the output changes when the head answers the same everywhere."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.hooked import HookedModel, LanguageModel, Tokens, reading_device

NUMBERS = 2**25  # of an output that are held at once


@torch.no_grad()
def causal_weights(
    model: HookedModel, tokens: Tokens, first: int, done: Callable[[], None] = lambda: None
) -> dict[int, Float[Tensor, " heads"]]:
    """The weight of every head, by layer; layers without heads are left out.

    What a head gathered is replaced by its mean over all positions and sequences. The heads of a
    layer are edited side by side, from the stream before it. The weight is the Kullback-Leibler
    divergence of the edited from the clean next token in nats for language models, the squared
    change of the output beside its square for others.

    Args:
        model: The model.
        tokens: A few sequences.
        first: Position from which on the output is compared.
        done: Called after each layer that has heads.
    """
    tokens = tokens.to(reading_device(model))
    sites = {layer: found for layer in range(model.layers) if (found := model.head_sites(layer))}
    wanted = {model.layer_sites()[layer] for layer in sites}
    wanted |= {found.gathered for found in sites.values()}
    clean, cache = model.run_with_cache(tokens, names_filter=lambda name: name in wanted)
    change = _change_of(model, clean[:, first:])
    weights = {}
    for layer, found in sites.items():
        stream, gathered = cache[model.layer_sites()[layer]], cache[found.gathered]
        parts = []
        for heads in torch.arange(found.count).split(max(1, NUMBERS // clean.numel())):
            hook = (found.gathered, _ablation(heads.tolist(), gathered.mean((0, 1))))
            with model.hooks(fwd_hooks=[hook]):
                edited = model.resume(stream.repeat(len(heads), 1, 1), layer)[:, first:]
            parts.append(change(edited.unflatten(0, (len(heads), len(tokens)))))
        weights[layer] = torch.cat(parts).double().cpu()
        done()
    return weights


def _ablation(heads: list[int], mean: Float[Tensor, "heads d_v"]) -> Callable[..., Tensor]:
    """An edit of as many copies of a batch as there are heads: each lacks another head."""

    def ablated(gathered: Tensor, hook: object) -> Tensor:
        copies = gathered.clone().unflatten(0, (len(heads), -1))
        for copy, head in zip(copies, heads, strict=True):
            copy[:, :, head] = mean[head]
        return copies.flatten(0, 1)

    return ablated


def _change_of(model: HookedModel, clean: Tensor) -> Callable[[Tensor], Tensor]:
    """From outputs of shape (heads, batch, time, d_out) to one change per head."""
    if isinstance(model, LanguageModel):
        log_p = clean.float().log_softmax(-1)
        return lambda edited: (
            (log_p.exp() * (log_p - edited.float().log_softmax(-1))).sum(-1).mean((1, 2))
        )
    energy = clean.double().square().sum()
    return lambda edited: (edited.double() - clean.double()).square().sum((1, 2, 3)) / energy


def unit_of(model: HookedModel) -> str:
    """What the weights are counted in."""
    return "KL, nats" if isinstance(model, LanguageModel) else "share of the output's square"
