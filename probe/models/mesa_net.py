"""MesaNet: a language model whose attention is the mesa-layer with gates.

von Oswald et al. 2025, "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training"
(arXiv 2506.05233), with the parts and the names of parameters of flash-linear-attention. There a
head is solved by a fixed number of steps of conjugate gradient on keys rounded to half precision;
here the same problem is solved to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.linalg import LinAlgError
from probe.mesa_layer import ForgetData, mesa_layer
from probe.models.hooked import Cache, Heads, HeadSites, LanguageModel, ResidualSum

UNIT_EPS = 1e-6  # is added to the squared length of queries and keys before they are divided by it


@dataclass(frozen=True)
class MesaNetConfig:
    """Shape of a MesaNet.

    Attributes:
        vocabulary: Number of token ids.
        d_model: Width of the residual stream.
        layers: Number of blocks.
        heads: Heads of a block.
        d_head: Width of queries, keys and values of a head.
        d_mlp: Hidden width of the MLP.
        window: Positions that the convolution of queries and keys sees.
        least_penalty: What every channel's penalty exceeds, in units of the keys squared.
        norm_eps: Is added to the mean square in every norm.
        output_gate: Whether what a head gathered is gated after its norm.
        tied: Whether logits are read out by the embedding.
    """

    vocabulary: int
    d_model: int
    layers: int
    heads: int
    d_head: int
    d_mlp: int
    window: int
    least_penalty: float
    norm_eps: float
    output_gate: bool = False
    tied: bool = False


class CausalConvolution(nn.Module):
    """Every channel for itself sees its own last positions; then SiLU."""

    def __init__(self, channels: int, window: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, window))

    def forward(
        self, x: Float[Tensor, "batch time channels"]
    ) -> Float[Tensor, "batch time channels"]:
        """The last weight meets the position itself; before the first there are zeros."""
        channels, _, window = self.weight.shape
        past = functional.pad(x.mT, (window - 1, 0))
        return functional.silu(functional.conv1d(past, self.weight, groups=channels)).mT


class MesaAttention(nn.Module):
    """Ridge regression of values on keys with gates, at every prefix.

    `hook_q`, `hook_k` and `hook_v` are what the regression is given, `hook_write` and
    `hook_forget` its gates, and `hook_z` its answer, before the norm of the head.
    """

    def __init__(self, config: MesaNetConfig):
        super().__init__()
        self.heads, self.least_penalty = config.heads, config.least_penalty
        d, width = config.d_model, config.heads * config.d_head
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, width, bias=False) for _ in "qkv")
        self.a_proj, self.b_proj = nn.Linear(d, self.heads), nn.Linear(d, self.heads)
        self.q_conv1d, self.k_conv1d = (CausalConvolution(width, config.window) for _ in "qk")
        self.lambda_params = nn.Parameter(torch.empty(width))
        self.g_proj = nn.Linear(d, width, bias=False) if config.output_gate else None
        self.o_norm = nn.RMSNorm(config.d_head, config.norm_eps)
        self.o_proj = nn.Linear(width, d, bias=False)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_write, self.hook_forget = HookPoint(), HookPoint()
        self.hook_z = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The attention output, without the residual."""
        q = self.hook_q(_unit(self._split(self.q_conv1d(self.q_proj(x)))))
        k = self.hook_k(_unit(self._split(self.k_conv1d(self.k_proj(x)))))
        v = self.hook_v(self._split(self.v_proj(x)))
        write = self.hook_write(self.b_proj(x).sigmoid())
        # A gate of zero would have no logarithm.
        faded = self.a_proj(x).sigmoid().clamp(min=torch.finfo(x.dtype).tiny)
        z = self.hook_z(least_squares(q, k, v, self.penalty, write, self.hook_forget(faded)))
        normed = self.o_norm(z)
        if self.g_proj is not None:
            normed = normed * functional.silu(self._split(self.g_proj(x)))
        output: Tensor = self.o_proj(normed.flatten(2))
        return output

    @property
    def penalty(self) -> Float[Tensor, "heads d_head"]:
        """The diagonal of Lambda, in units of the keys squared."""
        return self._split(functional.softplus(self.lambda_params)) + self.least_penalty

    @property
    def typical_penalty(self) -> Float[Tensor, " heads"]:
        """The geometric mean of a head's penalties."""
        return self.penalty.log().mean(-1).exp()

    @property
    def alike(self) -> Float[Tensor, "heads d_head"]:
        """Factors of keys and queries after which every channel has the typical penalty.

        With D = (m / Lambda)^(1/2), C (G + Lambda)^-1 q = C D (D G D + m)^-1 D q.
        """
        return (self.typical_penalty[:, None] / self.penalty).sqrt()

    def _split(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch heads d_head"]:
        return x.unflatten(-1, (self.heads, -1))


def least_squares(
    q: Float[Tensor, "batch time heads d_k"],
    k: Float[Tensor, "batch time heads d_k"],
    v: Float[Tensor, "batch time heads d_v"],
    penalty: Float[Tensor, " heads"] | Float[Tensor, "heads d_k"],
    write: Float[Tensor, "batch time heads"] | None,
    forget: Float[Tensor, "batch time heads"] | None,
) -> Float[Tensor, "batch time heads d_v"]:
    """Phi_t q_t of `probe.mesa_layer`; the penalty stays while pairs are forgotten.

    Raises:
        torch.linalg.LinAlgError: A gate is not finite.
    """
    for gate in (write, forget):
        if gate is not None and not bool(gate.isfinite().all()):
            raise LinAlgError("mesa-layer: a gate is not finite")
    if not torch.is_grad_enabled():
        # An analysis looks: it wants the exact solution, not one to float32.
        q, k = q.double(), k.double()
    faded = None if forget is None else ForgetData(forget)
    return mesa_layer(k, v, q, penalty, faded, write)


def _unit(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    return x * (x.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202), no biases."""

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_mlp, bias=False)
        self.up_proj = nn.Linear(d_model, d_mlp, bias=False)
        self.down_proj = nn.Linear(d_mlp, d_model, bias=False)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The MLP's output, without the residual."""
        gate = functional.silu(self.hook_pre(self.gate_proj(x)))
        output: Tensor = self.down_proj(self.hook_post(gate * self.up_proj(x)))
        return output


class MesaBlock(nn.Module):
    """Attention, then an MLP, each on the normed stream and added to it."""

    def __init__(self, config: MesaNetConfig):
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attn = MesaAttention(config)
        self.mlp_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = GatedMlp(config.d_model, config.d_mlp)
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_resid_mid, self.hook_mlp_out = HookPoint(), HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream after the block."""
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.attn(self.attn_norm(x))))
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.mlp_norm(x))))


class MesaNet(HookedRootModule, LanguageModel):  # type: ignore[misc]
    """A MesaNet on token ids."""

    setup: Callable[[], None]

    def __init__(self, config: MesaNetConfig, tokenizer: Any | None = None):
        super().__init__()
        self.config, self._tokenizer = config, tokenizer
        self.embed = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList(MesaBlock(config) for _ in range(config.layers))
        self.ln_final = nn.RMSNorm(config.d_model, config.norm_eps)
        read_out = nn.Linear(config.d_model, config.vocabulary, bias=False)
        self.unembed = None if config.tied else read_out
        self.hook_embed = HookPoint()
        self.setup()

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_out"]:
        """Logits at every position."""
        return self.resume(self.hook_embed(self.embed(tokens)), 0)

    def resume(
        self, stream: Float[Tensor, "batch time d_model"], layer: int
    ) -> Float[Tensor, "batch time d_out"]:
        """Logits from the stream before block `layer`."""
        for block in self.blocks[layer:]:
            stream = block(stream)
        return self.read_out(stream)

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """Logits from any state of the stream."""
        weight = self.embed.weight if self.unembed is None else self.unembed.weight
        return functional.linear(self.ln_final(stream), weight)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.config.layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.config.d_model

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.config.vocabulary

    @property
    def longest(self) -> int | None:
        """No position is coded: there is no limit."""
        return None

    @property
    def tokenizer(self) -> Any | None:
        """Turns text into ids; None if the checkpoint has none."""
        return self._tokenizer

    def layer_sites(self) -> tuple[str, ...]:
        """Hook names of the stream before the first block, between blocks and after the last."""
        return (*self.at_blocks("hook_resid_pre"), f"blocks.{self.layers - 1}.hook_resid_post")

    def residual_sums(self) -> tuple[ResidualSum, ...]:
        """Before + attention + MLP = after, in every block."""
        parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        return tuple(
            ResidualSum(
                tuple(f"blocks.{layer}.{part}" for part in parts), f"blocks.{layer}.hook_resid_post"
            )
            for layer in range(self.layers)
        )

    def head_sites(self, layer: int) -> HeadSites:
        """The hooks of the block's attention."""
        roles = ("q", "k", "v", "z", "write", "forget")
        names = tuple(f"blocks.{layer}.attn.hook_{role}" for role in roles)
        return HeadSites(names, f"blocks.{layer}.attn.hook_z", self.config.heads)

    def heads(self, layer: int, cache: Cache) -> Heads:
        """What the regression of each head was given and what it answered.

        Keys and queries are scaled such that the head penalises every channel alike: what it
        solves is then ridge regression with one lambda, its `typical_penalty`. Where all its
        penalties are the same they are those of the hooks.
        """
        q, k, *others = (cache[name] for name in self.head_sites(layer).seen)
        alike = self.attention(layer).alike
        return Heads(q * alike, k * alike, *others)

    def mix(self, layer: int, heads: Heads) -> Float[Tensor, "batch time heads d_v"]:
        """Ridge regression with the typical penalty on keys and queries that are so scaled."""
        penalty = self.attention(layer).typical_penalty
        return least_squares(
            heads.queries, heads.keys, heads.values, penalty, heads.write, heads.forget
        )

    def attention(self, layer: int) -> MesaAttention:
        """The attention of a block."""
        block: Any = self.blocks[layer]
        attention: MesaAttention = block.attn
        return attention
