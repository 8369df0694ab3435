"""The causal weight of a head: how the output changes when the head answers the same everywhere."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.hooked import HookedModel, LanguageModel, Tokens

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
        done: Called after each layer.
    """
    tokens = tokens.to(next(model.parameters()).device)
    found = {}
    for layer in range(model.layers):
        sites = model.head_sites(layer)
        if sites is not None:
            found[layer] = torch.cat(list(_of_layer(model, tokens, layer, first)))
        done()
    return found


def _of_layer(
    model: HookedModel, tokens: Tokens, layer: int, first: int
) -> Iterator[Float[Tensor, " some_heads"]]:
    sites = model.head_sites(layer)
    assert sites is not None
    before = model.layer_sites()[layer]
    clean, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name in (before, sites.gathered)
    )
    stream, mean = cache[before], cache[sites.gathered].mean((0, 1))
    change = _change_of(model, clean[:, first:])
    together = max(1, NUMBERS // clean.numel())
    for heads in torch.arange(sites.count).split(together):

        def ablated(gathered: Tensor, hook: object, heads: Tensor = heads) -> Tensor:
            copies = gathered.clone().unflatten(0, (len(heads), len(tokens)))
            for copy, head in zip(copies, heads.tolist(), strict=True):
                copy[:, :, head] = mean[head]
            return copies.flatten(0, 1)

        with model.hooks(fwd_hooks=[(sites.gathered, ablated)]):
            edited = model.resume(stream.repeat(len(heads), 1, 1), layer)[:, first:]
        yield change(edited.unflatten(0, (len(heads), len(tokens)))).double().cpu()


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
