"""SequenceTransformer: continuous tokens in, predictions out; no biases, no layer norm.

The stream passes `hook_embed`, then per block `hook_resid_pre`, `hook_attn_out`, `hook_mlp_out`
and `hook_resid_post` = pre + attn + mlp; after that it is clipped, where the block says so, and
goes on to the next block. What reaches the read-out is `hook_resid_final`.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError
from probe.models.attention import KINDS, Attention, AttentionKind
from probe.models.hooked import Cache, Heads, HeadSites, ResidualSum, SequenceModel

LARGEST_SIDE, MOST_BLOCKS = 100_000, 200  # of a model read from a file


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

    def __post_init__(self) -> None:
        """Refuses what no block can do."""
        if self.positions % 2:
            raise InputError(f"positions of odd width {self.positions}: sines and cosines pair up")
        if unknown := set(self.unit) - {"q", "k", "v"}:
            raise InputError(f"unit names {sorted(unknown)}; known: q, k, v")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise InputError(f"clip is {self.clip}, expected a positive number")


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
        n_ctx: Longest sequence of the trained positions that are added to the stream; 0: none.
    """

    d_in: int
    d_model: int
    d_out: int
    blocks: tuple[BlockConfig, ...]
    projected: bool
    masked: int = 0
    n_ctx: int = 0

    def __post_init__(self) -> None:
        """Refuses shapes that fit no tensor."""
        if not self.projected and self.d_in != self.d_model:
            raise InputError(
                f"model without read-in: d_in {self.d_in} must equal d_model {self.d_model}"
            )
        if not self.projected and self.d_out > self.d_model:
            raise InputError(
                f"model without read-out: d_out {self.d_out} exceeds d_model {self.d_model}"
            )
        if self.masked >= self.d_model:
            raise InputError(f"masked {self.masked} leaves nothing of d_model {self.d_model}")
        if not self.blocks:
            raise InputError("model without blocks")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        plain = asdict(self)
        for block, config in zip(plain["blocks"], self.blocks, strict=True):
            block["attention"] = _attention_to_dict(config.attention)
        return plain

    @classmethod
    def from_dict(cls, plain: object) -> "ModelConfig":
        """Reads what `to_dict` wrote.

        Raises:
            InputError: A field is missing, unknown or of the wrong kind.
        """
        known = _known_fields(plain, cls, "model", {"masked": 0, "n_ctx": 0})
        blocks = known["blocks"]
        if not isinstance(blocks, list | tuple) or len(blocks) > MOST_BLOCKS:
            raise InputError(f"model: blocks must be a list of at most {MOST_BLOCKS}")
        if not isinstance(known["projected"], bool):
            raise InputError("model: projected must be true or false")
        return cls(
            d_in=_size(known, "d_in"),
            d_model=_size(known, "d_model"),
            d_out=_size(known, "d_out"),
            blocks=tuple(_block_from_dict(block) for block in blocks),
            projected=known["projected"],
            masked=_size(known, "masked", least=0),
            n_ctx=_size(known, "n_ctx", least=0),
        )


def _known_fields(
    plain: object, kind: type[Any], where: str, defaults: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a description, neither more nor fewer than `kind` has."""
    if not isinstance(plain, dict):
        raise InputError(f"{where}: expected an object with named fields")
    filled = {**defaults, **plain}
    names = {field.name for field in fields(kind)}
    wrong = [f"missing {name}" for name in sorted(names - filled.keys())]
    wrong += [f"unknown {name!r:.40}" for name in filled.keys() - names]
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong[:6])}")
    return filled


def _size(plain: dict[str, Any], name: str, least: int = 1) -> int:
    """A whole number that can be a side of a tensor."""
    value = plain[name]
    if type(value) is not int or not least <= value <= LARGEST_SIDE:
        expected = f"a whole number from {least} to {LARGEST_SIDE}"
        raise InputError(f"model: {name} is {value!r:.40}, expected {expected}")
    return value


def _block_from_dict(plain: object) -> BlockConfig:
    defaults = {"positions": 0, "unit": (), "d_mlp": 0, "clip": None}
    known = _known_fields(plain, BlockConfig, "block", defaults)
    unit, clip = known["unit"], known["clip"]
    if not isinstance(unit, list | tuple) or not all(isinstance(role, str) for role in unit):
        raise InputError("block: unit must be a list of names")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float)):
        raise InputError("block: clip must be a number or null")
    if clip is not None and not abs(clip) < LARGEST_SIDE:
        raise InputError(f"block: clip must be below {LARGEST_SIDE}")
    return BlockConfig(
        attention=_attention_from_dict(known["attention"]),
        positions=_size(known, "positions", least=0),
        unit=tuple(unit),
        d_mlp=_size(known, "d_mlp", least=0),
        clip=None if clip is None else float(clip),
    )


def _attention_to_dict(attention: AttentionKind) -> dict[str, Any]:
    """The kind and its sizes; what stands at its default is left out."""
    optional = _optional(type(attention))
    sizes = {name: size for name, size in vars(attention).items() if optional.get(name) != size}
    return {**sizes, "kind": attention.kind}


def _optional(kind: type[Any]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


def _attention_from_dict(plain: Any) -> AttentionKind:
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"unknown kind of attention {kind!r:.40}; known: {', '.join(KINDS)}")
    described = {name: value for name, value in plain.items() if name != "kind"}
    optional = _optional(KINDS[kind])
    described = _known_fields(described, KINDS[kind], f"{kind} attention", optional)
    sizes = {name: _size(described, name, least=0 if name in optional else 1) for name in described}
    return KINDS[kind](**sizes)


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
        self.blocks = nn.ModuleList(Block(block, d) for block in config.blocks)
        self.hook_embed, self.hook_resid_final = HookPoint(), HookPoint()
        self.setup()

    def forward(
        self, tokens: Float[Tensor, "batch time d_in"]
    ) -> Float[Tensor, "batch time d_out"]:
        """Predictions at every position."""
        x = tokens if self.W_E is None else tokens @ self.W_E
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

    def read_out(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """The model's own prediction from any state of the stream."""
        return stream[..., : self.config.d_out] if self.W_U is None else stream @ self.W_U

    def layer_sites(self) -> tuple[str, ...]:
        """Hook names of the stream before the first block, between blocks and after the last."""
        between = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(self.blocks)))
        return (*between, "hook_resid_final")

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

    def update_sites(self) -> tuple[str, ...]:
        """Hook names of what the attention of each block adds to the stream."""
        return tuple(f"blocks.{layer}.hook_attn_out" for layer in range(len(self.blocks)))

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
        """Draws every matrix from N(0, std^2); the ridge of mesa heads starts at 1."""
        for name, parameter in self.named_parameters():
            if not name.endswith("log_ridge"):
                parameter.normal_(0.0, std, generator=generator)
