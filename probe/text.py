"""Token ids for a language model to read: windows of a user's text, or ids drawn at random."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import InputError
from probe.files import require_file
from probe.models.hooked import LanguageModel
from probe.sampling import generator_for

LENGTH = 64  # tokens of a window, where nobody asks for another
LARGEST_TEXT = 2**28  # bytes


@runtime_checkable
class Reading(Protocol):
    """Something to read, as independent sequences of one length."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""

    @property
    def available(self) -> int | None:
        """How many different sequences there are; None if there is no end of them."""

    def draw(self, first: int, count: int, seed: int) -> Int[Tensor, "batch time"]:
        """Sequences `first` to `first + count` in an order that the seed decides.

        No sequence comes twice, and the order does not depend on how it is cut into calls.
        """

    def params(self) -> dict[str, object]:
        """What was read, as it stands in a report."""


@dataclass(frozen=True)
class RandomIds:
    """Ids drawn independently and uniformly: no language, but every head has to do something."""

    vocabulary: int
    length: int = LENGTH
    available: None = None

    def draw(self, first: int, count: int, seed: int) -> Int[Tensor, "batch time"]:
        """One generator per sequence, so that any cut gives the same."""
        return torch.stack([self._one(index, seed) for index in range(first, first + count)])

    def _one(self, index: int, seed: int) -> Tensor:
        generator = generator_for(seed, index)
        return torch.randint(self.vocabulary, (self.length,), generator=generator)

    def params(self) -> dict[str, object]:
        """That nothing was read."""
        return {"text": None, "ids": "uniform", "tokens": self.length}


@dataclass(frozen=True)
class TextWindows:
    """Windows of a text that do not overlap, in an order that the seed decides.

    Attributes:
        name: Name of the file.
        sha256: Hash of its bytes.
        ids: The text as token ids.
        length: Tokens of a window.
    """

    name: str
    sha256: str
    ids: Int[Tensor, " tokens"] = field(repr=False)
    length: int = LENGTH

    @property
    def available(self) -> int:
        """Whole windows."""
        return len(self.ids) // self.length

    def draw(self, first: int, count: int, seed: int) -> Int[Tensor, "batch time"]:
        """Windows by a permutation of all.

        Raises:
            InputError: The text is too short.
        """
        if first + count > self.available:
            raise InputError(
                f"{self.name}: {self.available} windows of {self.length} tokens; "
                f"{first + count} are needed"
            )
        order = torch.randperm(self.available, generator=generator_for(seed))
        windows = self.ids[: self.available * self.length].view(-1, self.length)
        return windows[order[first : first + count]]

    def params(self) -> dict[str, object]:
        """Which text was read."""
        return {
            "text": self.name,
            "sha256": self.sha256,
            "text_tokens": len(self.ids),
            "tokens": self.length,
        }


def reading_of(model: LanguageModel, text: Path | None, length: int | None) -> Reading:
    """The user's text as the model's tokens, or random ids if there is none.

    Raises:
        InputError: The length does not fit the model, or the text cannot be read or turned to ids.
    """
    longest = model.longest or LENGTH
    tokens = min(LENGTH, longest) if length is None else length
    if not 8 <= tokens <= (model.longest or tokens):
        raise InputError(f"--length {tokens}: the model reads 8 to {longest} tokens")
    if text is None:
        return RandomIds(model.vocabulary, tokens)
    if model.tokenizer is None:
        raise InputError(f"--text {text}: the checkpoint has no tokenizer to read it with")
    return TextWindows(text.name, *_ids(model, text), tokens)


def _ids(model: LanguageModel, path: Path) -> tuple[str, Int[Tensor, " tokens"]]:
    """Hash of the file, and its text as ids, without marks of begin or end."""
    require_file(path, LARGEST_TEXT)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 text ({type(error).__name__})") from None
    assert model.tokenizer is not None
    ids = torch.tensor(model.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < model.vocabulary:
        raise InputError(f"{path}: the tokenizer gives ids that the model does not have")
    return hashlib.sha256(raw).hexdigest(), ids
