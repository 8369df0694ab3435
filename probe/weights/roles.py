"""What the slots of a token hold, found by looking at a sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.problem import InContextProblem
from probe.tasks.base import Sequences, shifted

_LETTERS = {
    frozenset(("query", "value")): "s",
    frozenset(("query",)): "q",
    frozenset(("value",)): "v",
    frozenset(("key",)): "k",
}


@dataclass(frozen=True)
class Roles:
    """The letters of the slots: y is empty, s is value and query at once, k the key of the pair.

    Slots that hold the same before the first block share a letter; the second gets a prime.

    Attributes:
        letters: One per slot.
        query: The letter of the slots that hold the query.
        key: Of those that hold the key of the pair.
        value: Of those that hold its value.
        lagged: Whether the key is the value of the position before, as in dynamics.
    """

    letters: tuple[str, ...]
    query: str
    key: str
    value: str
    lagged: bool

    @classmethod
    def of(cls, sequences: Sequences, problem: InContextProblem) -> "Roles":
        """Compares the slots of a few sequences with what the problem poses."""
        slots = torch.unflatten(sequences.tokens, -1, (-1, problem.values.shape[-1])).unbind(-2)
        parts = {"query": problem.queries, "key": problem.keys, "value": problem.values}
        letters = tuple(_letter(slot, parts) for slot in slots)
        holders = {
            name: next((x for x, slot in zip(letters, slots, strict=True) if _same(slot, part)), "")
            for name, part in parts.items()
        }
        return cls(letters, **holders, lagged=_same(shifted(problem.values), problem.keys))

    @property
    def names(self) -> tuple[str, ...]:
        """The letters with primes where they repeat."""
        return tuple(
            letter + "′" * self.letters[:place].count(letter)
            for place, letter in enumerate(self.letters)
        )

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """The slots by letter."""
        return {
            letter: tuple(place for place, other in enumerate(self.letters) if other == letter)
            for letter in dict.fromkeys(self.letters)
        }

    @property
    def step(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The slots of query, key and value, of which a gradient step consists."""
        query, key, value = (self.groups.get(x, ()) for x in (self.query, self.key, self.value))
        return query, key, value


def _letter(slot: Tensor, parts: Mapping[str, Tensor]) -> str:
    if not bool(slot.any()):
        return "y"
    held = frozenset(name for name, part in parts.items() if _same(slot, part))
    return _LETTERS.get(held, "x")


def _same(slot: Tensor, part: Tensor) -> bool:
    return slot.shape == part.shape and torch.equal(slot, part.to(slot.dtype))
