"""Hugging Face language models through the TransformerBridge of TransformerLens."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module

from probe.errors import InputError
from probe.models.hooked import Cache, Heads, HeadSites, LanguageModel, ResidualSum, Tokens

_COPYING = Lock()  # a joint attention takes its __deepcopy__ off its class while it is copied


@dataclass(frozen=True)
class SoftmaxRule:
    """Causal softmax attention.

    Attributes:
        scale: Factor of every score.
        cap: Scores become cap * tanh(score / cap); None: they stay.
        window: How many positions a query sees, its own among them; None: its whole past.
    """

    scale: float
    cap: float | None = None
    window: int | None = None

    def pattern(
        self,
        queries: Float[Tensor, "batch time heads d_k"],
        keys: Float[Tensor, "batch time heads d_k"],
    ) -> Float[Tensor, "batch heads time time"]:
        """The weights of query and key; each row sums to 1."""
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * self.scale
        if self.cap is not None:
            scores = self.cap * (scores / self.cap).tanh()
        place = torch.arange(queries.shape[1], device=queries.device)
        behind = place[:, None] - place
        unseen = (behind < 0) | (behind >= (self.window or len(place)))
        return scores.masked_fill(unseen, float("-inf")).softmax(-1)


class BridgedModel(LanguageModel):
    """A Hugging Face language model whose sites have the hook names of TransformerLens.

    The model computes in its own dtype. What it hands out is never narrower than float32.
    """

    def __init__(self, model: nn.Module, tokenizer: Any | None = None):
        """Wraps a causal language model in place; it must not be used on its own afterwards.

        Args:
            model: A PreTrainedModel with eager attention.
            tokenizer: Its tokenizer. The bridge is not told: it would pad and mask on its own.
        """
        super().__init__()
        config: Any = model.config
        self.config = config
        model.eval().requires_grad_(False)
        self.config.use_cache = False
        self.bridge: Any = build_bridge_from_module(
            model, type(model).__name__, hf_config=self.config
        )
        self.bridge.requires_grad_(False)
        for block in self.bridge.blocks:
            if hasattr(block.attn, "split_qkv_matrix"):
                _lighten(block.attn)
        self._tokenizer = tokenizer
        self._rules = tuple(_rule_of(block.attn, self.config) for block in self._blocks)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch time vocabulary"]:
        """Logits at every position.

        Raises:
            InputError: More tokens than the model reads, or ids beyond its vocabulary.
        """
        self._check(tokens)
        return _wide(self.bridge(tokens))

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.config.vocab_size)

    @property
    def longest(self) -> int | None:
        """Most tokens that it reads."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer of the checkpoint."""
        return self._tokenizer

    def layer_sites(self) -> tuple[str, ...]:
        """The stream before each block, then after the last."""
        before = self.at_blocks("hook_resid_pre")
        return (*before, self.at_blocks("hook_resid_post")[-1])

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """Before + attention + MLP = after, whether the two stand side by side or in a row."""
        parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        by_block = zip(*(self.at_blocks(part) for part in parts), strict=True)
        return tuple(
            ResidualSum(names, after)
            for names, after in zip(by_block, self.at_blocks("hook_resid_post"), strict=True)
        )

    def head_sites(self, layer: int) -> HeadSites:
        """Queries, keys, values, what was gathered; and the rotation, where it has no hook."""
        attention = self._blocks[layer].attn
        roles: tuple[str, ...] = ("q", "k", "v", "z")
        if hasattr(attention, "hook_cos"):
            # A joint attention has hooks of rotated queries and keys, but nothing passes them.
            joint = hasattr(attention, "split_qkv_matrix")
            roles = (*roles, "cos", "sin") if joint else ("rot_q", "rot_k", "v", "z")
        names = tuple(f"blocks.{layer}.attn.hook_{role}" for role in roles)
        return HeadSites(names, f"blocks.{layer}.attn.hook_z", int(self.bridge.cfg.n_heads))

    def heads(self, layer: int, cache: Cache) -> Heads:
        """Rotated and normalised; keys and values repeated for the queries of their group."""
        seen = (_wide(cache[name]) for name in self.head_sites(layer).seen)
        queries, keys, values, gathered, *rotation = seen
        if rotation:
            queries, keys = rotated(queries, *rotation), rotated(keys, *rotation)
        group = queries.shape[2] // keys.shape[2]
        keys, values = (part.repeat_interleave(group, 2) for part in (keys, values))
        return Heads(queries, keys, values, gathered)

    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"]:
        """Causal softmax with the block's scale, soft cap and window."""
        pattern = self._rules[layer].pattern(heads.queries, heads.keys)
        return torch.einsum("bhqk,bkhd->bqhd", pattern, heads.values)

    def read_out(
        self, stream: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch vocabulary"]:
        """Logits of the final norm and the unembedding, with their soft cap where there is one."""
        normed = self.bridge.ln_final(_beside(stream, self.bridge.ln_final))
        logits: Tensor = self.bridge.unembed(_beside(normed, self.bridge.unembed))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return _wide(logits if cap is None else cap * (logits / cap).tanh())

    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits from the stream before block `layer`.

        The bridge runs the blocks below too and throws away what they say, so it costs a whole
        pass, and hooks below `layer` see nothing that means anything.
        """
        if layer == self.layers:
            return self.read_out(stream)
        return _wide(self.bridge(_beside(stream, self._blocks[layer]), start_at_layer=layer))

    def hooks(
        self,
        fwd_hooks: list[tuple[Any, Callable[..., Any]]] = [],  # noqa: B006 (never changed)
    ) -> AbstractContextManager[Any]:
        """Functions (tensor, hook) at sites, in the model's own dtype."""
        return self.bridge.hooks(fwd_hooks=fwd_hooks)

    @torch.no_grad()
    def run_with_cache(
        self, tokens: Tokens, *, names_filter: Callable[[str], bool] | list[str] | None = None
    ) -> tuple[Tensor, Cache]:
        """Logits, and what passed the sites; the rotation, too, is given per sequence.

        Raises:
            InputError: More tokens than the model reads, or ids beyond its vocabulary.
        """
        self._check(tokens)
        said, cache = self.bridge.run_with_cache(
            tokens, return_cache_object=False, names_filter=names_filter
        )
        shared = ("hook_cos", "hook_sin")
        return _wide(said), {
            name: _wide(part.expand(len(tokens), -1, -1) if name.endswith(shared) else part)
            for name, part in cache.items()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "BridgedModel":
        """A model of its own: without hooks, and with the bridge's inner wiring laid anew."""
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        memo[id(self.tokenizer)] = self.tokenizer  # nothing changes it, and not all can be copied
        with _COPYING:
            clone.__dict__.update(deepcopy(self.__dict__, memo))
        clone.bridge.reset_hooks()
        for block in clone._blocks:  # the inner hooks are closures over the block of the original
            block._teardown_capture_hooks()
        return clone

    @property
    def _blocks(self) -> Any:
        return self.bridge.blocks

    def _check(self, tokens: Tensor) -> None:
        if self.longest is not None and tokens.shape[1] > self.longest:
            raise InputError(f"{tokens.shape[1]} tokens; the model reads at most {self.longest}")
        least, most = (int(end) for end in tokens.aminmax())
        if least < 0 or most >= self.vocabulary:
            wrong = least if least < 0 else most
            raise InputError(f"token id {wrong}; the model knows 0 to {self.vocabulary - 1}")


def rotated(
    x: Float[Tensor, "batch time heads d_k"],
    cos: Float[Tensor, "batch time rotary"],
    sin: Float[Tensor, "batch time rotary"],
) -> Float[Tensor, "batch time heads d_k"]:
    """Rotary positions on the first channels, which pair up by halves (Su et al. 2021, eq. 34)."""
    width = cos.shape[-1]
    turned, kept = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    quarter = torch.cat([-second, first], -1)
    return torch.cat([turned * cos[:, :, None] + quarter * sin[:, :, None], kept], -1)


def _rule_of(attention: Any, config: Any) -> SoftmaxRule:
    """What the attention module states of itself; what it does not, its config does."""
    module = attention.original_component
    everywhere = None if hasattr(config, "layer_types") else getattr(config, "sliding_window", None)
    window = getattr(module, "sliding_window", everywhere)
    return SoftmaxRule(module.scaling, getattr(module, "attn_logit_softcapping", None), window)


def _lighten(attention: Any) -> None:
    """Takes from a joint attention what no forward pass reads.

    That is the matrix which the bridge has split into queries, keys and values, the function that
    did so, which holds the whole model, and the last pattern, of batch * heads * time^2 numbers.
    """
    attention.split_qkv_matrix = None
    joint = attention.qkv.original_component
    for name in list(joint._parameters):
        joint.register_parameter(name, None)
    attention.register_forward_hook(_forget_pattern)


def _forget_pattern(attention: Any, inputs: Any, output: Any) -> None:
    attention._pattern = None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _beside(tensor: Tensor, module: nn.Module) -> Tensor:
    """In the dtype of a module and, but for one that accelerate keeps on disk, on its device."""
    first = next(module.parameters())
    return tensor.to(first.dtype) if first.is_meta else tensor.to(first)
