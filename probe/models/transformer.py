"""SequenceTransformer: continuous tokens in, predictions out; no biases, no layer norm.

The stream passes `hook_embed`, then per block `hook_resid_pre`, `hook_attn_out`, `hook_mlp_out`
and `hook_resid_post` = pre + attn + mlp; after that it is clipped, where the block says so, and
goes on to the next block. What reaches the read-out is `hook_resid_final`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError
from probe.models.attention import KINDS, Attention, AttentionKind


@dataclass(frozen=True)
class BlockConfig:
    """One block.

    Attributes:
        attention: Kind of attention with its heads.
        positions: Width of sinusoidal positions joined to the input of queries and keys; 0: none.
        unit: Those of "q", "k", "v" that each head normalises to length 1.
        d_mlp: Hidden width of the MLP after the attention; 0: none.
        clip: The stream is clipped to [-clip, clip] after the block; None: never.
    """

    attention: AttentionKind
    positions: int = 0
    unit: tuple[str, ...] = ()
    d_mlp: int = 0
    clip: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a SequenceTransformer.

    Attributes:
        d_in: Width of a token.
        d_model: Width of the residual stream.
        d_out: Width of a prediction.
        blocks: The blocks, first to last.
        projected: Whether tokens are read in and predictions read out by trained matrices;
            otherwise the token is the stream and the prediction is its first d_out channels.
        masked: So many leading channels of the stream are set to 0 before the first block.
    """

    d_in: int
    d_model: int
    d_out: int
    blocks: tuple[BlockConfig, ...]
    projected: bool
    masked: int = 0

    def __post_init__(self) -> None:
        """Refuses shapes that fit no tensor."""
        if not self.projected and self.d_in != self.d_model:
            raise InputError(
                f"model without read-in: d_in {self.d_in} must equal d_model {self.d_model}"
            )
        if not self.blocks:
            raise InputError("model without blocks")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        plain = asdict(self)
        for block, config in zip(plain["blocks"], self.blocks, strict=True):
            block["attention"]["kind"] = config.attention.kind
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "ModelConfig":
        """Reads what `to_dict` wrote.

        Raises:
            InputError: A field is missing, unknown or of the wrong kind.
        """
        try:
            blocks = tuple(_block_from_dict(block) for block in plain["blocks"])
            return cls(**{**plain, "blocks": blocks})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"model description: {type(error).__name__}: {error}") from None


def _block_from_dict(plain: dict[str, Any]) -> BlockConfig:
    attention = dict(plain["attention"])
    kind = attention.pop("kind")
    if kind not in KINDS:
        raise InputError(f"unknown kind of attention {kind!r}; known: {', '.join(KINDS)}")
    unit = tuple(plain.get("unit", ()))
    return BlockConfig(**{**plain, "attention": KINDS[kind](**attention), "unit": unit})


class Mlp(nn.Module):
    """Two layers with the tanh form of gelu, no biases."""

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, d_mlp))
        self.W_out = nn.Parameter(torch.empty(d_mlp, d_model))
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The MLP's output, without the residual."""
        hidden = self.hook_pre(x @ self.W_in)
        return self.hook_post(nn.functional.gelu(hidden, approximate="tanh")) @ self.W_out


class Block(nn.Module):
    """Attention, then an MLP where there is one, each added to the stream; then the clip."""

    def __init__(self, config: BlockConfig, d_model: int):
        super().__init__()
        self.clip = config.clip
        self.attn = Attention(config.attention, d_model, config.positions, config.unit)
        self.mlp = Mlp(d_model, config.d_mlp) if config.d_mlp else None
        self.hook_resid_pre, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The stream after the block, clipped."""
        x = self.hook_resid_pre(x)
        x = x + self.hook_attn_out(self.attn(x))
        if self.mlp is not None:
            x = x + self.hook_mlp_out(self.mlp(x))
        x = self.hook_resid_post(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class SequenceTransformer(HookedRootModule):  # type: ignore[misc]
    """A transformer on continuous tokens."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d = config.d_model
        self.W_E = nn.Parameter(torch.empty(config.d_in, d)) if config.projected else None
        self.W_U = nn.Parameter(torch.empty(d, config.d_out)) if config.projected else None
        self.blocks = nn.ModuleList(Block(block, d) for block in config.blocks)
        self.hook_embed, self.hook_resid_final = HookPoint(), HookPoint()
        self.setup()

    def forward(
        self, tokens: Float[Tensor, "batch time d_in"]
    ) -> Float[Tensor, "batch time d_out"]:
        """Predictions at every position."""
        x = tokens if self.W_E is None else tokens @ self.W_E
        if self.config.masked:
            keep = torch.arange(x.shape[-1], device=x.device) >= self.config.masked
            x = x * keep
        x = self.hook_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.read_out(self.hook_resid_final(x))

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """The model's own prediction from any state of the stream."""
        return stream[..., : self.config.d_out] if self.W_U is None else stream @ self.W_U

    def layer_sites(self) -> tuple[str, ...]:
        """Hook names of the stream before the first block, between blocks and after the last."""
        between = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(self.blocks)))
        return (*between, "hook_resid_final")

    @torch.no_grad()
    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draws every matrix from N(0, std^2); the ridge of mesa heads starts at 1."""
        for name, parameter in self.named_parameters():
            if not name.endswith("log_ridge"):
                parameter.normal_(0.0, std, generator=generator)
