"""What a disguise is, and how far the label of a disguised model still holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe import registry
from probe.models.transformer import ModelConfig, SequenceTransformer
from probe.planted import disguises as all_disguises
from probe.planted.base import Planted, Truth
from probe.stages import Context

SAMPLE = 256


@runtime_checkable
class Disguise(Protocol):
    """Changes the weights of a planted model, not what it computes, or not by much."""

    name: str

    def fits(self, planted: Planted) -> bool:
        """Whether it can be applied."""

    def apply(self, planted: Planted, generator: torch.Generator) -> Planted:
        """The disguised model; the given one is left as it is."""


@cache
def disguises() -> Mapping[str, Disguise]:
    """All disguises, by name."""
    return MappingProxyType(registry.discover(all_disguises))


def is_linear_in_stream(planted: Planted) -> bool:
    """Whether matrices alone touch the stream: no clip, mask, norm, bias, read-out by position."""
    config = planted.model.config
    free = all(block.clip is None for block in config.blocks)
    return config.projected and config.bare and not config.masked and free


def blurred(truth: Truth) -> Truth:
    """What is true of weights that were moved a little.

    A single gradient step then has a preconditioner, W_Q W_K^T near a multiple of the identity.
    """
    return replace(truth, blurred=("preconditioned_gd",)) if truth.degree == 1 else truth


@torch.no_grad()
def rebuilt(config: ModelConfig, weights: Mapping[str, Tensor]) -> SequenceTransformer:
    """A model with these parameters, in the dtype of the first; its shape is that of `config`."""
    model = SequenceTransformer(config).to(next(iter(weights.values())).dtype)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    return model.eval().requires_grad_(False)


def label_holds(planted: Planted, generator: torch.Generator, count: int = SAMPLE) -> float:
    """R^2 of the planted solver against the model's output on fresh sequences.

    Args:
        planted: The model and its solver.
        generator: Draws the sequences.
        count: How many.
    """
    return Label.of(planted, generator, count).r2(planted.model)


@dataclass(frozen=True)
class Label:
    """What the planted solver predicts on one sample, to be held against models.

    Attributes:
        tokens: The sample.
        expected: Predictions of the solver.
        judged: The positions that count.
    """

    tokens: Float[Tensor, "batch time d_in"]
    expected: Float[Tensor, "batch time d_out"]
    judged: slice

    @classmethod
    def of(cls, planted: Planted, generator: torch.Generator, count: int = SAMPLE) -> "Label":
        """Draws the sample."""
        sequences = planted.task.sample(count, generator)
        expected = planted.solver(Context(sequences, planted.task.problem(sequences)))
        return cls(sequences.tokens, expected, slice(*planted.task.windows.judged))

    @torch.no_grad()
    def r2(self, model: SequenceTransformer) -> float:
        """Uncentred R^2 of the solver against the output, at judged positions."""
        output = output_of(model, self.tokens)[:, self.judged]
        error = (output - self.expected[:, self.judged]).square().sum()
        return float(1 - error / output.square().sum())


def output_of(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"]
) -> Float[Tensor, "batch time d_out"]:
    """Predictions in float64, computed in the dtype of the weights."""
    return model(tokens.to(next(model.parameters()).dtype)).double()
