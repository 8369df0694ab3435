"""Modules of other people, read and changed where a description names their parts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
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
    HookedModel,
    LanguageModel,
    ResidualSum,
    SequenceModel,
    Tokens,
    reading_device,
)
from probe.models.reading import BlockReading, HeadView, Reading, Site, attach

ROLES = ("q", "k", "v", "z")
TRIAL = 4  # tokens of the pass that shows the widths


class _Points(nn.Module):
    """Hook points of one block."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        for name in names:
            setattr(self, name, HookPoint())


class Wrapped(HookedRootModule, HookedModel):  # type: ignore[misc]
    """Any module whose parts are named.

    The module is hooked while a pass lasts and is itself otherwise, so copies share nothing.
    """

    setup: Callable[[], None]

    def __init__(self, module: nn.Module, reading: Reading, longest: int | None):
        super().__init__()
        self.reading, self._longest = reading, longest
        self.blocks = nn.ModuleList(_points_of(block) for block in reading.blocks)
        if not self.blocks:
            raise InputError("the description names no block")
        self.blocks[-1].hook_resid_post = HookPoint()
        self.setup()  # before the module is there: it would write a name into all its parts
        self.module = module.eval().requires_grad_(False)
        for name in (*(site.module for _, site, _ in self._passing()), *_named_steps(reading)):
            _part(module, name)
        tokens = self._blank(1, min(TRIAL, self.longest or TRIAL)).to(reading_device(self))
        with torch.no_grad():
            said, cache = self.run_with_cache(tokens)
        if said.ndim != 3 or said.shape[:2] != tokens.shape[:2]:
            raise InputError(f"the module says {list(said.shape)}, not (batch, time, width)")
        self._widths = cache[self.layer_sites()[0]].shape[-1], said.shape[-1]

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch time d_out"]:
        """What the module says at every position.

        Raises:
            InputError: Tokens that the model does not read, or a module that the description names
                and that is not called once.
        """
        self._check(tokens)
        with self._hooked():
            return self.bare(tokens)

    def bare(self, tokens: Tokens) -> Float[Tensor, "batch time d_out"]:
        """What the module says on its own, without a hook."""
        return (self.reading.said or _first)(self.module(tokens))

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._widths[0]

    @property
    def longest(self) -> int | None:
        """Most tokens that it reads; None if no limit is known."""
        return self._longest

    def layer_sites(self) -> tuple[str, ...]:
        """The stream before each block, then after the last."""
        return (*self.at_blocks("hook_resid_pre"), f"blocks.{self.layers - 1}.hook_resid_post")

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """The stream before a block, its attention and its MLP make the stream after it."""
        sites = self.layer_sites()
        return tuple(
            ResidualSum(
                (before, added, *([f"blocks.{layer}.hook_mlp_out"] if block.mlp else [])), after
            )
            for layer, (block, before, added, after) in enumerate(
                zip(self.reading.blocks, sites, self.update_sites(), sites[1:], strict=False)
            )
        )

    def head_sites(self, layer: int) -> HeadSites | None:
        """Queries, keys, values and what was gathered, where they are named."""
        read = self.reading.blocks[layer].heads
        if read is None:
            return None
        names = tuple(f"blocks.{layer}.attn.hook_{role}" for role in ROLES)
        return HeadSites(names, names[-1], read.q.heads)

    def heads(self, layer: int, cache: Cache) -> Heads:
        """Keys and values repeated for the queries of their group."""
        queries, *grouped, gathered = (cache[f"blocks.{layer}.attn.hook_{role}"] for role in ROLES)
        keys, values = (
            part.repeat_interleave(queries.shape[2] // part.shape[2], 2) for part in grouped
        )
        return Heads(queries, keys, values, gathered)

    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"] | None:
        """What the rule of the description makes of queries, keys and values."""
        read = self.reading.blocks[layer].heads
        return None if read is None else read.mix(heads)

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """What the description's read-out makes of any state of the stream."""
        steps = self.reading.read_out
        if callable(steps):
            return steps(self.module, stream)
        for name in steps:
            stream = _first(_part(self.module, name)(stream))
        return stream

    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time d_out"]:
        """What the model says from the stream before block `layer`.

        The blocks below run too, on blank tokens, and what they say is thrown away: it costs a
        whole pass, and hooks below `layer` see nothing that means anything.
        """
        if layer == self.layers:
            return self.read_out(stream)
        with self._hooked({self.layer_sites()[layer]: stream}):
            return self.bare(self._blank(*stream.shape[:2]).to(stream.device))

    def _blank(self, batch: int, time: int) -> Tensor:
        """Tokens that say nothing."""
        raise NotImplementedError

    def _check(self, tokens: Tensor) -> None:
        """Refuses more tokens than the model reads."""
        if self.longest is not None and tokens.shape[1] > self.longest:
            raise InputError(f"{tokens.shape[1]} tokens; the model reads at most {self.longest}")

    def _passing(self) -> Iterator[tuple[str, Site, HeadView | None]]:
        """Hook points, the sites that pass them, and the heads in those sites."""
        for layer, block in enumerate(self.reading.blocks):
            name = f"blocks.{layer}"
            yield f"{name}.hook_resid_pre", block.stream, None
            for role, view in _views(block):
                yield f"{name}.attn.hook_{role}", view.site, view
            yield f"{name}.hook_attn_out", block.attention, None
            if block.mlp is not None:
                yield f"{name}.hook_mlp_out", block.mlp, None
        yield self.layer_sites()[-1], self.reading.after, None

    @contextmanager
    def _hooked(self, replaced: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Lets the sites pass their hook points, with some tensors replaced before."""
        calls: dict[str, int] = {}
        passing = list(self._passing())
        handles = [
            attach(
                _part(self.module, site.module),
                site,
                partial(
                    _through, self.get_submodule(name), view, (replaced or {}).get(name), calls
                ),
            )
            for name, site, view in passing
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, site, _ in passing:
            if (times := calls.get(name, 0)) != 1:
                raise InputError(f"{site.module}: called {times} times in a pass, must be 1")


class WrappedSequenceModel(Wrapped, SequenceModel):
    """A module from continuous tokens (batch, time, d_in) to predictions."""

    def __init__(self, module: nn.Module, reading: Reading, d_in: int, longest: int | None = None):
        """Wraps a module, which is put into evaluation mode.

        Args:
            module: The module.
            reading: Where its parts are.
            d_in: Width of a token.
            longest: Most tokens that it reads; None if no limit is known.

        Raises:
            InputError: A name that the module lacks, or one that a pass does not meet once.
        """
        self._d_in = d_in
        super().__init__(module, reading, longest)

    @property
    def d_in(self) -> int:
        """Width of a token."""
        return self._d_in

    @property
    def d_out(self) -> int:
        """Width of a prediction."""
        return self._widths[1]

    def _blank(self, batch: int, time: int) -> Tensor:
        return torch.zeros(batch, time, self.d_in, dtype=_dtype(self.module))

    def _check(self, tokens: Tensor) -> None:
        super()._check(tokens)
        if tokens.shape[-1] != self.d_in:
            raise InputError(f"tokens of width {tokens.shape[-1]}; the model reads {self.d_in}")


class WrappedLanguageModel(Wrapped, LanguageModel):
    """A module from token ids (batch, time) to logits."""

    def __init__(
        self,
        module: nn.Module,
        reading: Reading,
        longest: int | None = None,
        tokenizer: Any | None = None,
    ):
        """Wraps a module, which is put into evaluation mode.

        Args:
            module: The module.
            reading: Where its parts are.
            longest: Most tokens that it reads; None if no limit is known.
            tokenizer: Turns text into ids, as Hugging Face tokenizers do.

        Raises:
            InputError: A name that the module lacks, or one that a pass does not meet once.
        """
        self._tokenizer = tokenizer
        super().__init__(module, reading, longest)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self._widths[1]

    @property
    def tokenizer(self) -> Any | None:
        """Turns text into ids; None if there is none."""
        return self._tokenizer

    def _blank(self, batch: int, time: int) -> Tensor:
        return torch.zeros(batch, time, dtype=torch.long)


def _points_of(block: BlockReading) -> _Points:
    mlp = ("hook_mlp_out",) if block.mlp else ()
    points = _Points(("hook_resid_pre", "hook_attn_out", *mlp))
    points.attn = _Points(tuple(f"hook_{role}" for role, _ in _views(block)))
    return points


def _views(block: BlockReading) -> tuple[tuple[str, HeadView], ...]:
    if (read := block.heads) is None:
        return ()
    return tuple(zip(ROLES, (read.q, read.k, read.v, read.gathered), strict=True))


def _named_steps(reading: Reading) -> tuple[str, ...]:
    return () if callable(reading.read_out) else reading.read_out


def _part(module: nn.Module, name: str) -> nn.Module:
    """A part by its name.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        close = get_close_matches(name, dict(module.named_modules()), 3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise InputError(f"{type(module).__name__} has no module {name!r}{hint}") from None


def _through(
    point: Any, view: HeadView | None, replaced: Tensor | None, calls: dict[str, int], held: Tensor
) -> Tensor:
    """A tensor as its hook point lets it pass."""
    calls[point.name] = calls.get(point.name, 0) + 1
    given = held if replaced is None else replaced.to(held)
    if view is None:
        passed: Tensor = point(given)
        return passed
    vectors = view.of(given)
    changed = point(vectors)
    return given if changed is vectors else view.put(changed, given)


def _first(held: Any) -> Tensor:
    """A tensor, or the first one of a tuple."""
    tensor: Tensor = held if isinstance(held, Tensor) else held[0]
    return tensor


def _dtype(module: nn.Module) -> torch.dtype:
    kinds = (parameter.dtype for parameter in module.parameters())
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)
