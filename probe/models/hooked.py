"""What the instrument needs of a model: named sites, the stream between blocks, its heads.

Any model that offers this can be analysed: those of `probe.models.transformer`, Hugging
Face models, MesaNets, and modules of other people through an adapter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Cache = Mapping[str, Tensor]
Tokens = Float[Tensor, "batch time d_in"] | Int[Tensor, "batch time"]


@dataclass(frozen=True)
class Heads:
    """What the attention heads of one block worked with.

    Everything is as it meets in the score: rotated, normalised, and with the keys and values of a
    group repeated for each of its queries.

    Attributes:
        queries: q_t.
        keys: k_j.
        values: v_j.
        gathered: What each head gathered from the values, before the output map.
        write: The weight of each pair, where the head has a gate for it.
        forget: The factor in (0, 1] by which all earlier pairs fade, where there is such a gate.
    """

    queries: Float[Tensor, "batch time heads d_k"]
    keys: Float[Tensor, "batch time heads d_k"]
    values: Float[Tensor, "batch time heads d_v"]
    gathered: Float[Tensor, "batch time heads d_v"]
    write: Float[Tensor, "batch time heads"] | None = None
    forget: Float[Tensor, "batch time heads"] | None = None


@dataclass(frozen=True)
class HeadSites:
    """Where the heads of a block can be seen and changed.

    Attributes:
        seen: Hook names of all that `HookedModel.heads` reads from a cache.
        gathered: The site of what the heads gathered, (batch, time, heads, d_v): edits here ablate.
        count: Number of query heads.
    """

    seen: tuple[str, ...]
    gathered: str
    count: int


@dataclass(frozen=True)
class ResidualSum:
    """An identity of a block: the stream before it and what its parts add is the stream after."""

    parts: tuple[str, ...]
    after: str

    def total(self, cache: Cache) -> Float[Tensor, "batch time d_model"]:
        """What the parts make, added up in float64."""
        return torch.stack([cache[part].double() for part in self.parts]).sum(0)


class HookedModel(nn.Module, ABC):
    """A model with named sites. Sites are hook names as TransformerLens uses them."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the residual stream."""

    @abstractmethod
    def layer_sites(self) -> tuple[str, ...]:
        """Sites of the stream before the first block, between blocks and after the last."""

    def at_blocks(self, site: str) -> tuple[str, ...]:
        """The names of a site of every block."""
        return tuple(f"blocks.{layer}.{site}" for layer in range(self.layers))

    def update_sites(self) -> tuple[str, ...]:
        """Sites of what the attention of each block adds to the stream, after its own norm."""
        return self.at_blocks("hook_attn_out")

    @abstractmethod
    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """The identity of each block; all parts have the shape of the stream."""

    @abstractmethod
    def head_sites(self, layer: int) -> HeadSites | None:
        """The heads of a block; None where it has none that pose a problem."""

    @abstractmethod
    def heads(self, layer: int, cache: Cache) -> Heads:
        """The heads of a block from a cache that holds what `head_sites` names."""

    @abstractmethod
    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"] | None:
        """What the block's own rule makes of queries, keys and values; None if that is unknown.

        An audit compares it with `heads.gathered`: roles that are mistaken do not pass.
        """

    @abstractmethod
    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """The model's own prediction, or its logits, from any state of the stream."""

    @abstractmethod
    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time d_out"]:
        """What the model says from the stream before block `layer`."""

    def resume_last(
        self,
        before: Float[Tensor, "layers batch time d_model"],
        last: Float[Tensor, "changes batch d_model"],
        layer: int,
    ) -> Float[Tensor, "changes batch d_out"]:
        """What the model says at the last token once that token is changed before block `layer`.

        No hooks are passed. A causal model need only follow the last token; this follows all.

        Args:
            before: The stream before each block at the tokens before the last.
            last: The stream of the last token, before block `layer`.
            layer: The block.
        """
        earlier = before[layer].expand(len(last), *before.shape[1:])
        stream = torch.cat([earlier, last[:, :, None]], 2).flatten(0, 1)
        return self.resume(stream, layer)[:, -1].unflatten(0, last.shape[:2])

    @abstractmethod
    def hooks(
        self, fwd_hooks: list[tuple[Any, Callable[..., Any]]] = ...
    ) -> AbstractContextManager[Any]:
        """Functions (tensor, hook) at sites, while the context lasts; what they return goes on."""

    @abstractmethod
    def run_with_cache(
        self, tokens: Tokens, *, names_filter: Callable[[str], bool] | list[str] | None = None
    ) -> tuple[Tensor, Cache]:
        """What the model says, and what passed the sites that the filter lets through."""


def reading_device(model: nn.Module) -> torch.device:
    """Where a model wants its tokens; weights that are offloaded stand nowhere until they run."""
    places = (parameter.device for parameter in model.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


class SequenceModel(HookedModel):
    """Reads continuous tokens and predicts continuous targets."""

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of a token."""

    @property
    @abstractmethod
    def d_out(self) -> int:
        """Width of a prediction."""

    @property
    def longest(self) -> int | None:
        """Most tokens that it reads; None if no limit is known."""
        return None


class LanguageModel(HookedModel):
    """Reads token ids and says logits over a vocabulary."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def longest(self) -> int | None:
        """Most tokens that it reads; None if no limit is known."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any | None:
        """Turns text into ids, as Hugging Face tokenizers do; None if the checkpoint has none."""
