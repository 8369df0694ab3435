"""Shapes of a SequenceTransformer, and how they stand in a file."""

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from probe.errors import InputError
from probe.models.attention import KINDS, AttentionKind
from probe.models.norm import LayerNorm

LARGEST_SIDE, MOST_BLOCKS = 100_000, 200  # of a model read from a file
_ABSENT: dict[str, Any] = {"norm": None, "biased": False}


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
        norm: What attention, MLP and read-out read the stream through; None: they read it as it is.
        biased: Whether every linear map has a bias: read-in, heads, MLPs and read-out.
    """

    d_in: int
    d_model: int
    d_out: int
    blocks: tuple[BlockConfig, ...]
    projected: bool
    masked: int = 0
    n_ctx: int = 0
    norm: LayerNorm | None = None
    biased: bool = False

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

    @property
    def bare(self) -> bool:
        """Whether matrices alone lead into and out of the stream: neither norms nor biases."""
        return self.norm is None and not self.biased

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back. What a bare model lacks is left out."""
        plain = asdict(self)
        for block, config in zip(plain["blocks"], self.blocks, strict=True):
            block["attention"] = _attention_to_dict(config.attention)
        return {
            name: value for name, value in plain.items() if (name, value) not in _ABSENT.items()
        }

    @classmethod
    def from_dict(cls, plain: object) -> "ModelConfig":
        """Reads what `to_dict` wrote.

        Raises:
            InputError: A field is missing, unknown or of the wrong kind.
        """
        known = _known_fields(plain, cls, "model", {"masked": 0, "n_ctx": 0, **_ABSENT})
        blocks = known["blocks"]
        if not isinstance(blocks, list | tuple) or len(blocks) > MOST_BLOCKS:
            raise InputError(f"model: blocks must be a list of at most {MOST_BLOCKS}")
        for name in ("projected", "biased"):
            if not isinstance(known[name], bool):
                raise InputError(f"model: {name} must be true or false")
        return cls(
            d_in=_size(known, "d_in"),
            d_model=_size(known, "d_model"),
            d_out=_size(known, "d_out"),
            blocks=tuple(_block_from_dict(block) for block in blocks),
            projected=known["projected"],
            masked=_size(known, "masked", least=0),
            n_ctx=_size(known, "n_ctx", least=0),
            norm=_norm_from_dict(known["norm"]),
            biased=known["biased"],
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


def _norm_from_dict(plain: object) -> LayerNorm | None:
    if plain is None:
        return None
    eps = _known_fields(plain, LayerNorm, "norm", {})["eps"]
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise InputError(f"norm: eps is {eps!r:.40}, expected a number between 0 and 1")
    return LayerNorm(float(eps))


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
