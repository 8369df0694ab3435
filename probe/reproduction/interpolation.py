"""A one-layer linear model, its compression to block scalars, and the model half way between."""

from dataclasses import dataclass, replace

import torch

from probe.models.transformer import SequenceTransformer
from probe.reproduction import measure
from probe.reproduction.measure import Measured
from probe.reproduction.published import COMPRESSED, INTERPOLATED, LOSS
from probe.tasks.base import Task
from probe.weights.blocks import compress
from probe.weights.products import Products, products, with_products
from probe.weights.slots import SlotBasis

SLOTS = 4
HALF_WAY = 0.5


def interpolated(
    model: SequenceTransformer, other: SequenceTransformer, alpha: float
) -> SequenceTransformer:
    """The model whose products W_Q W_K^T and W_V W_O are (1 - alpha) and alpha of two models'.

    Head by head as they stand, which is right for a model and its own compression.
    """
    basis = SlotBasis.of(model, SLOTS)
    pairs = zip(products(model, basis), products(other, basis), strict=True)
    layers = [
        Products(
            torch.lerp(start.scores, end.scores, alpha),
            torch.lerp(start.values, end.values, alpha),
        )
        for start, end in pairs
    ]
    return with_products(model, basis, layers)


def compressed(model: SequenceTransformer) -> SequenceTransformer:
    """Every block of the products replaced by the mean of its diagonal: 12 numbers that matter.

    The published formula of the compressed model does not clip its prediction; nor does this.
    """
    small = compress(model, SLOTS)
    blocks = tuple(replace(block, clip=None) for block in small.config.blocks)
    bare = SequenceTransformer(replace(small.config, blocks=blocks))
    bare.load_state_dict(small.state_dict())
    return bare.eval().requires_grad_(False)


@dataclass(frozen=True)
class Trio:
    """A model, its compression at the end of training, and what lies half way.

    Attributes:
        task: The task that they are measured on.
        models: By the quantity that their loss is published under.
    """

    task: Task
    models: dict[str, SequenceTransformer]

    @classmethod
    def of(cls, task: Task, model: SequenceTransformer, end: SequenceTransformer) -> "Trio":
        """The model at any step of training, and the compression of the model at its end."""
        half = interpolated(model, compressed(end), HALF_WAY)
        return cls(task, {LOSS: model, INTERPOLATED: half, COMPRESSED: compressed(end)})

    @torch.no_grad()
    def measure(self, seed: int, repetition: int) -> Measured:
        """The mean loss of each."""
        sequences = measure.sample(self.task, seed, repetition)
        targets = self.task.problem(sequences).targets
        losses = {
            name: measure.loss_by_position(model(sequences.tokens), targets)
            for name, model in self.models.items()
        }
        return {name: loss.mean()[None, None] for name, loss in losses.items()}
