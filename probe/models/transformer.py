"""SequenceTransformer: continuous tokens in, predictions out.

The stream passes `hook_embed`, then per block `hook_resid_pre`, `hook_attn_out`, `hook_mlp_out`
and `hook_resid_post` = pre + attn + mlp; after that it is clipped, where the block says so, and
goes on to the next block. What reaches the read-out is `hook_resid_final`. With a norm, attention,
MLP and read-out each read what their own norm makes of the stream, as in GPT-2; the stream itself
is never normalised.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError
from probe.models.attention import Attention, BidirectionalAttention, build_bias, shifted
from probe.models.config import BlockConfig, ModelConfig
from probe.models.hooked import Cache, Heads, HeadSites, ResidualSum, SequenceModel
from probe.models.norm import LayerNorm, build_norm

__all__ = ["Block", "BlockConfig", "Mlp", "ModelConfig", "SequenceTransformer"]


class Mlp(nn.Module):
    """Two layers with the tanh form of gelu."""

    def __init__(self, d_model: int, d_mlp: int, biased: bool = False):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, d_mlp))
        self.W_out = nn.Parameter(torch.empty(d_mlp, d_model))
        self.b_in = build_bias(biased, d_mlp)
        self.b_out = build_bias(biased, d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The MLP's output, without the residual."""
        hidden = self.hook_pre(shifted(x @ self.W_in, self.b_in))
        active = self.hook_post(nn.functional.gelu(hidden, approximate="tanh"))
        return shifted(active @ self.W_out, self.b_out)


class Block(nn.Module):
    """Attention, then an MLP where there is one, each added to the stream; then the clip."""

    def __init__(
        self, config: BlockConfig, d_model: int, norm: LayerNorm | None = None, biased: bool = False
    ):
        super().__init__()
        self.clip = config.clip
        self.ln1 = build_norm(norm, d_model)
        self.attn = Attention(config.attention, d_model, config.positions, config.unit, biased)
        self.ln2 = build_norm(norm if config.d_mlp else None, d_model)
        self.mlp = Mlp(d_model, config.d_mlp, biased) if config.d_mlp else None
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream after the block, clipped."""
        x = self.hook_resid_pre(x)
        x = x + self.hook_attn_out(self.attn(self.ln1(x)))
        if self.mlp is not None:
            x = x + self.hook_mlp_out(self.mlp(self.ln2(x)))
        x = self.hook_resid_post(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def last(
        self, before: Float[Tensor, "batch time d_model"], x: Float[Tensor, "changes batch d_model"]
    ) -> Float[Tensor, "changes batch d_model"]:
        """The stream after the block at the token after those of `before`; hooks are not passed."""
        x = x + self.attn.last(self.ln1(before), self.ln1(x))
        if self.mlp is not None:
            x = x + self.mlp(self.ln2(x))
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class SequenceTransformer(HookedRootModule, SequenceModel):  # type: ignore[misc]
    """A transformer on continuous tokens."""

    setup: Callable[[], None]

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d = config.d_model
        self.W_E = nn.Parameter(torch.empty(config.d_in, d)) if config.projected else None
        self.W_pos = nn.Parameter(torch.empty(config.n_ctx, d)) if config.n_ctx else None
        self.W_U = nn.Parameter(torch.empty(d, config.d_out)) if config.projected else None
        self.b_E = build_bias(config.biased and config.projected, d)
        self.b_U = build_bias(config.biased and config.projected, config.d_out)
        self.blocks = nn.ModuleList(
            Block(block, d, config.norm, config.biased) for block in config.blocks
        )
        self.ln_final = build_norm(config.norm, d)
        self.hook_embed, self.hook_resid_final = HookPoint(), HookPoint()
        self.setup()

    def forward(
        self, tokens: Float[Tensor, "batch time d_in"]
    ) -> Float[Tensor, "batch time d_out"]:
        """Predictions at every position."""
        x = tokens if self.W_E is None else shifted(tokens @ self.W_E, self.b_E)
        if self.W_pos is not None:
            if x.shape[1] > len(self.W_pos):
                raise InputError(f"{x.shape[1]} tokens; the model has {len(self.W_pos)} positions")
            x = x + self.W_pos[: x.shape[1]]
        if self.config.masked:
            keep = torch.arange(x.shape[-1], device=x.device) >= self.config.masked
            x = x * keep
        return self.resume(self.hook_embed(x), 0)

    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time d_out"]:
        """Predictions from the stream before block `layer`."""
        for block in self.blocks[layer:]:
            stream = block(stream)
        return self.read_out(self.hook_resid_final(stream))

    def resume_last(
        self,
        before: Float[Tensor, "layers batch time d_model"],
        last: Float[Tensor, "changes batch d_model"],
        layer: int,
    ) -> Float[Tensor, "changes batch d_out"]:
        """The changed token alone, beside the keys and values of the tokens before it."""
        if any(isinstance(b.attention, BidirectionalAttention) for b in self.config.blocks):
            return super().resume_last(before, last, layer)
        for block, stream in zip(self.blocks[layer:], before[layer:], strict=True):
            assert isinstance(block, Block)
            last = block.last(stream, last)
        return self.read_out(last)

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """The model's own prediction from any state of the stream, through the final norm."""
        read = self.ln_final(stream)
        return read[..., : self.d_out] if self.W_U is None else shifted(read @ self.W_U, self.b_U)

    def layer_sites(self) -> tuple[str, ...]:
        """Hook names of the stream before the first block, between blocks and after the last."""
        return (*self.at_blocks("hook_resid_pre"), "hook_resid_final")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.config.d_model

    @property
    def d_in(self) -> int:
        """Width of a token."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of a prediction."""
        return self.config.d_out

    @property
    def longest(self) -> int | None:
        """As many as there are trained positions."""
        return self.config.n_ctx or None

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """Before + attention + MLP = after, in every block; the clip comes later."""
        return tuple(
            ResidualSum(
                tuple(
                    f"blocks.{layer}.{part}"
                    for part in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
                    if part != "hook_mlp_out" or block.mlp is not None
                ),
                f"blocks.{layer}.hook_resid_post",
            )
            for layer, block in enumerate(self.blocks)
        )

    def head_sites(self, layer: int) -> HeadSites:
        """The hooks of the block's attention."""
        names = tuple(f"blocks.{layer}.attn.hook_{role}" for role in "qkvz")
        return HeadSites(names, names[-1], self.config.blocks[layer].attention.heads)

    def heads(self, layer: int, cache: Cache) -> Heads:
        """Queries, keys, values and what was gathered; keys are zero where there is no pair."""
        block: Any = self.blocks[layer]
        queries, keys, values, gathered = (cache[name] for name in self.head_sites(layer).seen)
        return Heads(queries, block.attn.mixer.paired(keys), values, gathered)

    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"]:
        """The block's mixer on other queries, keys and values."""
        block: Any = self.blocks[layer]
        mixed: Tensor = block.attn.mixer(heads.queries, heads.keys, heads.values)
        return mixed

    @torch.no_grad()
    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draws every matrix from N(0, std^2); biases stay at 0, gains and ridges at 1."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2].startswith("W_"):
                parameter.normal_(0.0, std, generator=generator)
