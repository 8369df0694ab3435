"""Any module as a model with named sites: a layout says where in it the stream and the heads pass.

The sites are hooks that stand only while the module runs, so that copies share nothing.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError
from probe.models.hooked import (
    Cache,
    Heads,
    HeadSites,
    LanguageModel,
    ResidualSum,
    SequenceModel,
    Tokens,
)

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
ROLES = ("q", "k", "v", "z")


@dataclass(frozen=True)
class Place:
    """Where a tensor passes: into a module, as its first argument, or out of it.

    Attributes:
        module: Its dotted name.
        enters: Whether the tensor goes in; otherwise it comes out, as the first of what does.
        piece: (i, n) where it is the i-th of n equal parts of the last axis, as in fused q, k, v.
    """

    module: str
    enters: bool = False
    piece: tuple[int, int] = (0, 1)


def into(module: str) -> Place:
    """What a module is given first."""
    return Place(module, enters=True)


def out_of(module: str, piece: int = 0, pieces: int = 1) -> Place:
    """What a module returns, or one of the equal parts of it."""
    return Place(module, piece=(piece, pieces))


@dataclass(frozen=True)
class BlockPlaces:
    """Where to look in one block. Edits must act: choose places that all later modules read.

    Attributes:
        stream: The stream before the block.
        attention: What the attention adds to it.
        q: Queries, heads joined in the last axis; as they meet keys in the score.
        k: Keys; there may be fewer heads than of queries.
        v: Values.
        z: What the heads gathered, before the output map.
        mlp: What the MLP adds to the stream; None if there is none.
    """

    stream: Place
    attention: Place
    q: Place
    k: Place
    v: Place
    z: Place
    mlp: Place | None = None


def causal_softmax(
    q: Float[Tensor, "batch time heads d_k"],
    k: Float[Tensor, "batch time heads d_k"],
    v: Float[Tensor, "batch time heads d_v"],
) -> Float[Tensor, "batch time heads d_v"]:
    """softmax(q.k / sqrt(d_k)) v over the past."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@dataclass(frozen=True)
class Layout:
    """What has to be known of a module.

    Attributes:
        blocks: Its blocks, first to last.
        last: The stream after the last block.
        heads: Query heads of each block.
        d_head: Width of a head.
        d_model: Width of the stream.
        read_out: (module, stream) to prediction or logits: the final norm and the head.
        mix: The rule of the heads, by which the audit checks who is who.
    """

    blocks: tuple[BlockPlaces, ...]
    last: Place
    heads: int
    d_head: int
    d_model: int
    read_out: Callable[[Any, Tensor], Tensor]
    mix: Mix = causal_softmax


class _Hooks(nn.Module):
    """The hook points of one block, so that they are named as in TransformerLens."""

    def __init__(self, mlp: bool):
        super().__init__()
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_mlp_out = HookPoint() if mlp else None
        self.attn = nn.Module()
        for role in ROLES:
            setattr(self.attn, f"hook_{role}", HookPoint())


class _Wrapped(HookedRootModule):  # type: ignore[misc]
    """What both kinds of wrapped model share; `stand_in` makes tokens of a shape."""

    def __init__(self, inner: nn.Module, layout: Layout):
        super().__init__()
        self.inner, self.layout = inner.eval().requires_grad_(False), layout
        self.blocks = nn.ModuleList(_Hooks(block.mlp is not None) for block in layout.blocks)
        self.hook_resid_final = HookPoint()
        self.setup()
        known = dict(inner.named_modules())
        for place in self._places().values():
            if place.module not in known:
                close = ", ".join(difflib.get_close_matches(place.module, known, 3)) or "none"
                raise InputError(f"adapter: no module {place.module!r}; close names: {close}")

    def forward(self, tokens: Tokens) -> Tensor:
        """What the module says, while its hooks stand."""
        with self._attached():
            said = self.inner(tokens)
        first: Tensor = said[0] if isinstance(said, tuple) else said
        return first

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.layout.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.layout.d_model

    def layer_sites(self) -> tuple[str, ...]:
        """Hook names of the stream before each block and after the last."""
        before = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(self.layers))
        return (*before, "hook_resid_final")

    def update_sites(self) -> tuple[str, ...]:
        """Hook names of what the attention of each block adds."""
        return tuple(f"blocks.{layer}.hook_attn_out" for layer in range(self.layers))

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """Before + attention + MLP is what the next block reads."""
        sites = self.layer_sites()
        return tuple(
            ResidualSum(
                (sites[layer], f"blocks.{layer}.hook_attn_out")
                + ((f"blocks.{layer}.hook_mlp_out",) if block.mlp else ()),
                sites[layer + 1],
            )
            for layer, block in enumerate(self.layout.blocks)
        )

    def head_sites(self, layer: int) -> HeadSites:
        """The hooks of the block's attention."""
        names = tuple(f"blocks.{layer}.attn.hook_{role}" for role in ROLES)
        return HeadSites(names, names[-1], self.layout.heads)

    def heads(self, layer: int, cache: Cache) -> Heads:
        """Queries, keys, values and what was gathered; keys of a group stand once per query."""
        parts = [cache[name].float() for name in self.head_sites(layer).seen]
        count, found = self.layout.heads, parts[0].shape[2]
        if found != count or any(count % part.shape[2] for part in parts):
            raise InputError(f"adapter: block {layer} has {found} heads, the layout says {count}")
        return Heads(*(part.repeat_interleave(count // part.shape[2], 2) for part in parts))

    def mix(self, layer: int, heads: Heads) -> Tensor:
        """The rule of the layout."""
        return self.layout.mix(heads.queries, heads.keys, heads.values)

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """The module's own last steps."""
        return self.layout.read_out(self.inner, stream)

    def resume(self, stream: Float[Tensor, "batch time d_model"], layer: int) -> Tensor:
        """Runs the module on stand-in tokens with the stream in its place."""
        site = self.layer_sites()[layer]
        with self.hooks(fwd_hooks=[(site, lambda value, hook: stream.to(value))]):
            said: Tensor = self(self.stand_in(stream))
        return said

    def stand_in(self, stream: Tensor) -> Tokens:
        """Tokens of the right shape, whatever they are."""
        raise NotImplementedError

    def _places(self) -> Mapping[str, Place]:
        """Every site with its place in the module."""
        places = {"hook_resid_final": self.layout.last}
        for layer, block in enumerate(self.layout.blocks):
            name = f"blocks.{layer}"
            places[f"{name}.hook_resid_pre"] = block.stream
            places[f"{name}.hook_attn_out"] = block.attention
            if block.mlp:
                places[f"{name}.hook_mlp_out"] = block.mlp
            for role in ROLES:
                places[f"{name}.attn.hook_{role}"] = getattr(block, role)
        return places

    @contextmanager
    def _attached(self) -> Iterator[None]:
        handles = []
        try:
            for site, place in self._places().items():
                module = self.inner.get_submodule(place.module)
                show = partial(self._show, site, place.piece)
                if place.enters:
                    handles.append(module.register_forward_pre_hook(partial(_entering, show)))
                else:
                    handles.append(module.register_forward_hook(partial(_leaving, show)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _show(self, site: str, piece: tuple[int, int], value: Tensor) -> Tensor:
        """Passes a tensor, or a part of it, through its hook point; heads get an axis."""
        index, pieces = piece
        parts = list(value.chunk(pieces, -1))
        if ".attn." not in site:
            parts[index] = self.hook_dict[site](parts[index])
        else:
            d_head, width = self.layout.d_head, parts[index].shape[-1]
            if width % d_head:
                raise InputError(f"adapter: {site} is {width} wide, no multiple of {d_head}")
            heads = parts[index].unflatten(-1, (-1, d_head))
            parts[index] = self.hook_dict[site](heads).flatten(-2)
        return parts[0] if pieces == 1 else torch.cat(parts, -1)


def _entering(show: Callable[[Tensor], Tensor], module: nn.Module, given: Any) -> Any:
    return (show(given[0]), *given[1:])


def _leaving(show: Callable[[Tensor], Tensor], module: nn.Module, given: Any, said: Any) -> Any:
    return (show(said[0]), *said[1:]) if isinstance(said, tuple) else show(said)


class WrappedSequence(_Wrapped, SequenceModel):
    """A module that reads vectors and predicts vectors."""

    def __init__(self, inner: nn.Module, layout: Layout, d_in: int, d_out: int):
        super().__init__(inner, layout)
        self._widths = d_in, d_out

    @property
    def d_in(self) -> int:
        """Width of a token."""
        return self._widths[0]

    @property
    def d_out(self) -> int:
        """Width of a prediction."""
        return self._widths[1]

    def stand_in(self, stream: Tensor) -> Tokens:
        """Zeros."""
        return stream.new_zeros(*stream.shape[:2], self.d_in)


class WrappedLanguage(_Wrapped, LanguageModel):
    """A module that reads token ids and says logits."""

    def __init__(
        self, inner: nn.Module, layout: Layout, vocabulary: int, tokenizer: Any | None = None
    ):
        super().__init__(inner, layout)
        self._vocabulary, self._tokenizer = vocabulary, tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self._vocabulary

    @property
    def longest(self) -> int | None:
        """Unknown."""
        return None

    @property
    def tokenizer(self) -> Any | None:
        """What the adapter handed over."""
        return self._tokenizer

    def stand_in(self, stream: Tensor) -> Tokens:
        """Zeros."""
        return torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)
