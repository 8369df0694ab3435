"""A language model as a model of regression: ids in, the number that it expects out."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.models.hooked import (
    Cache,
    Heads,
    HeadSites,
    LanguageModel,
    ResidualSum,
    SequenceModel,
    Tokens,
)
from probe.tasks.numbers import Numerals

LOGITS = 2**25  # held at a time when many states of the stream are read out
ROWS = 16  # read out together at least; see `probe.capture.GROUP`
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def first_number(text: str) -> float | None:
    """The first number of a text; None if it has none."""
    found = _NUMBER.search(text)
    return float(found[0]) if found else None


@dataclass(frozen=True)
class Answers:
    """What a language model says where a number is asked for.

    Attributes:
        expected: The expected value, with the softmax over the numbers alone.
        mass: Probability of all numbers together, of all tokens.
        parsed: Whether the likeliest token of all is a number.
    """

    expected: Float[Tensor, "*batch"]
    mass: Float[Tensor, "*batch"]
    parsed: Bool[Tensor, "*batch"]


class NumberReader(SequenceModel):
    """Predicts the expected value over the single-token numbers, at every token.

    The softmax is taken over the numbers alone; `answers` says how probable they are together.
    """

    answer_ids: Tensor
    answer_values: Tensor

    def __init__(self, language: LanguageModel, numerals: Numerals):
        super().__init__()
        self.language, self.numerals = language, numerals
        self.register_buffer("answer_ids", torch.tensor(numerals.answers))
        self.register_buffer("answer_values", numerals.values())

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time 1"]:
        """Expected values."""
        return self.expected(self.language(tokens))

    def expected(self, logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch 1"]:
        """sum_n value(n) p(n), with p the softmax over numbers; summed in float64."""
        chances = logits[..., self.answer_ids].double().softmax(-1)
        return (chances @ self.answer_values)[..., None].to(logits.dtype)

    @torch.no_grad()
    def answers(self, tokens: Int[Tensor, "batch time"], asked: slice) -> Answers:
        """What is said at some of the tokens."""
        logits = self.language(tokens)[:, asked]
        mass = logits.double().softmax(-1)[..., self.answer_ids].sum(-1)
        likeliest = logits.argmax(-1)
        parsed = torch.isin(likeliest, self.answer_ids)
        return Answers(self.expected(logits)[..., 0].double(), mass, parsed)

    @torch.no_grad()
    def continued(self, tokens: Int[Tensor, "batch time"], steps: int = 4) -> list[str]:
        """The likeliest next tokens as text; a number may take several of them."""
        start = tokens.shape[1]
        for _ in range(steps):
            following = self.language(tokens)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], 1)
        tokenizer: Any = self.language.tokenizer
        return [tokenizer.decode(row[start:].tolist()) for row in tokens]

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The expected value by the model's own unembedding, from any state of the stream."""
        rows = stream.reshape(-1, stream.shape[-1])
        size = max(LOGITS // self.language.vocabulary // ROWS, 1) * ROWS
        said = [self.expected(self.language.read_out(part)) for part in rows.split(size)]
        return torch.cat(said).unflatten(0, stream.shape[:-1])

    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time 1"]:
        """Expected values from the stream before block `layer`."""
        return self.expected(self.language.resume(stream, layer))

    def run_with_cache(
        self, tokens: Tokens, *, names_filter: Callable[[str], bool] | list[str] | None = None
    ) -> tuple[Tensor, Cache]:
        """Expected values, and what passed the sites of the language model."""
        logits, cache = self.language.run_with_cache(tokens, names_filter=names_filter)
        return self.expected(logits), cache

    def hooks(
        self,
        fwd_hooks: list[tuple[Any, Callable[..., Any]]] = [],  # noqa: B006 (never changed)
    ) -> AbstractContextManager[Any]:
        """Functions at sites of the language model."""
        return self.language.hooks(fwd_hooks=fwd_hooks)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.language.layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.language.d_model

    @property
    def d_in(self) -> int:
        """A token is one id."""
        return 1

    @property
    def d_out(self) -> int:
        """One number."""
        return 1

    def layer_sites(self) -> tuple[str, ...]:
        """Those of the language model."""
        return self.language.layer_sites()

    def update_sites(self) -> tuple[str, ...]:
        """Those of the language model."""
        return self.language.update_sites()

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """Those of the language model."""
        return self.language.residual_sums()

    def head_sites(self, layer: int) -> HeadSites | None:
        """Those of the language model."""
        return self.language.head_sites(layer)

    def heads(self, layer: int, cache: Cache) -> Heads:
        """Those of the language model."""
        return self.language.heads(layer, cache)

    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"] | None:
        """The rule of the language model's block."""
        return self.language.mix(layer, heads)
