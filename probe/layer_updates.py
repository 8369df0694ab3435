"""What examples in the context change in each layer, beside what a gradient step on them changes.

At layer l the stream at a question is h_l. Its *update by context* is h_l behind the examples minus
h_l without them. Its *update by training* is the change of h_l, without examples, when all weights
take one small gradient step on the same examples, each a text of its own. In plain training the
loss is that of the output. In *layer-causal* training (Deutch et al. 2023, arXiv:2311.07772) the
update of h_l comes from a loss that is read out at h_l itself, so that it depends on lower layers
only, as an update by context does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.models.number_reader import NumberReader

STEP = 1e-3  # length of the gradient step, in lengths of the weights
TINY = 1e-12


@dataclass(frozen=True)
class Updates:
    """Updates of the stream after each block, for the same questions behind every context.

    Attributes:
        context: By examples in the context.
        causal: By layer-causal training.
        plain: By plain training.
    """

    context: Float[Tensor, "contexts layers questions d_model"]
    causal: Float[Tensor, "contexts layers questions d_model"]
    plain: Float[Tensor, "contexts layers questions d_model"]


@dataclass(frozen=True)
class Examples:
    """The texts of one context.

    Attributes:
        told: Each question behind all examples.
        bare: Each question alone.
        single: Each example's question alone.
        answers: The answers of the examples.
    """

    told: Int[Tensor, "questions long"]
    bare: Int[Tensor, "questions short"]
    single: Int[Tensor, "examples short"]
    answers: Float[Tensor, " examples"]


def updates(
    reader: NumberReader,
    contexts: Sequence[Examples],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Updates:
    """Of every context; the reader's weights take steps and come back exactly."""
    found = []
    for done, examples in enumerate(contexts):
        found.append(_updates_of(reader, examples))
        progress(done + 1, len(contexts))
    return Updates(*(torch.stack(parts).cpu() for parts in zip(*found, strict=True)))


def streams(
    reader: NumberReader, tokens: Int[Tensor, "batch time"]
) -> Float[Tensor, "layers batch d_model"]:
    """The stream after each block, at the last token; gradients go through."""
    kept: dict[str, Tensor] = {}
    sites = reader.layer_sites()[1:]

    def keep(site: str) -> Callable[..., None]:
        def look(tensor: Tensor, hook: object) -> None:
            kept[site] = tensor[:, -1]

        return look

    with reader.hooks(fwd_hooks=[(site, keep(site)) for site in sites]):
        reader(tokens)
    return torch.stack([kept[site] for site in sites])


def _updates_of(reader: NumberReader, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        context = streams(reader, examples.told) - streams(reader, examples.bare)
    steps = _gradients(reader, examples)
    moved = [_moved(reader, examples.bare, step) for step in steps]
    causal = torch.stack([after[layer] for layer, after in enumerate(moved)])
    return context.double(), causal, moved[-1]


def _gradients(reader: NumberReader, examples: Examples) -> list[list[Tensor]]:
    """Of the loss read out after each block, for every weight."""
    weights = list(reader.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            said = [reader.read_out(stream)[:, 0] for stream in streams(reader, examples.single)]
            losses = [(one.double() - examples.answers).square().mean() for one in said]
            return [
                list(
                    torch.autograd.grad(
                        loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                )
                for loss in losses
            ]
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@torch.no_grad()
def _moved(reader: NumberReader, tokens: Tensor, gradient: list[Tensor]) -> Tensor:
    """The change of all streams by a small step, from one step either way."""
    weights = list(reader.parameters())
    before = [weight.clone() for weight in weights]
    size = _length(gradient)
    if size < TINY:
        return torch.zeros_like(streams(reader, tokens).double())
    found = []
    for direction in (-1, 1):
        factor = direction * STEP * _length(before) / size
        for weight, start, slope in zip(weights, before, gradient, strict=True):
            weight.copy_(start + factor * slope)
        found.append(streams(reader, tokens).double())
    for weight, start in zip(weights, before, strict=True):
        weight.copy_(start)
    return (found[0] - found[1]) / 2


def _length(tensors: list[Tensor]) -> float:
    return float(sum(tensor.double().square().sum() for tensor in tensors)) ** 0.5


def cosines(
    one: Float[Tensor, "contexts layers questions d_model"],
    other: Float[Tensor, "contexts layers questions d_model"],
) -> Float[Tensor, "contexts layers"]:
    """Cosine of two updates, mean over questions; 0 where one of them is nothing."""
    return torch.nn.functional.cosine_similarity(one, other, -1, eps=TINY).mean(2)


def about_their_mean(
    update: Float[Tensor, "contexts layers questions d_model"],
) -> Float[Tensor, "contexts layers questions d_model"]:
    """Without what is the same behind every context: positions, the question, the format."""
    return update - update.mean(0)
