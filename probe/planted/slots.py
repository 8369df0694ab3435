"""Named slots of the residual stream, and exact weights written in terms of them.

Two identities carry all that is not attention. gelu(x) - gelu(-x) = x for every x, in the tanh
form too, so a pair of hidden units is a linear map; and both units vanish once a large number is
taken from their input, so the same pair is a gate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import (
    AttentionKind,
    BidirectionalAttention,
    LinearAttention,
    MesaAttention,
    SoftmaxAttention,
)
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer

SHUT = 1e3  # what closes a gate or hides a position; far above any number in a stream

Kind = (
    type[LinearAttention]
    | type[BidirectionalAttention]
    | type[SoftmaxAttention]
    | type[MesaAttention]
)


@dataclass(frozen=True)
class Slots:
    """Where each named vector lies in the stream, one after the other.

    Attributes:
        widths: Width by name.
    """

    widths: Mapping[str, int]

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return sum(self.widths.values())

    def read(
        self, name: str, change: Float[Tensor, "width new"] | float = 1.0
    ) -> Float[Tensor, "d_model new"]:
        """Columns that read the slot from a stream, times `change`, a matrix or a number."""
        names = list(self.widths)
        start = sum(self.widths[before] for before in names[: names.index(name)])
        eye = torch.eye(self.d_model, dtype=torch.float64)
        columns = eye[:, start : start + self.widths[name]]
        return columns @ change if isinstance(change, Tensor) else columns * change

    def write(self, name: str, scale: float = 1.0) -> Float[Tensor, "width d_model"]:
        """Rows that make of a vector a stream with it in the slot and nothing elsewhere."""
        return self.read(name, scale).mT


@dataclass(frozen=True)
class Head:
    """One attention head; each role reads the stream, `out` writes into it."""

    query: Float[Tensor, "d_model d_key"] = field(repr=False)
    key: Float[Tensor, "d_model d_key"] = field(repr=False)
    value: Float[Tensor, "d_model d_value"] = field(repr=False)
    out: Float[Tensor, "d_value d_model"] = field(repr=False)

    @property
    def width(self) -> int:
        """The least width that holds the head."""
        return max(self.query.shape[1], self.value.shape[1])


@dataclass(frozen=True)
class Hidden:
    """Hidden units of an MLP."""

    into: Float[Tensor, "d_model units"] = field(repr=False)
    out: Float[Tensor, "units d_model"] = field(repr=False)


def gated(
    read: Float[Tensor, "d_model width"],
    gate: Float[Tensor, "d_model 1"],
    write: Float[Tensor, "width d_model"],
) -> Hidden:
    """Adds x @ write with x = stream @ read where the gate reads 0, nothing where it reads -SHUT.

    At a gate g between them x becomes gelu(x + g) - gelu(-x + g).
    """
    return Hidden(torch.cat([read + gate, gate - read], 1), torch.cat([write, -write]))


def linear(read: Float[Tensor, "d_model width"], write: Float[Tensor, "width d_model"]) -> Hidden:
    """Adds (stream @ read) @ write, exactly."""
    return gated(read, torch.zeros_like(read[:, :1]), write)


@dataclass(frozen=True)
class Layer:
    """One block: heads of one kind, then hidden units.

    Attributes:
        kind: Kind of the heads.
        heads: The heads; without any the attention adds nothing.
        hidden: The MLP; without any there is none.
        ridge: lambda of mesa heads.
    """

    kind: Kind = LinearAttention
    heads: tuple[Head, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    ridge: float = 1.0

    @property
    def config(self) -> BlockConfig:
        """The shape of the block."""
        d_head = max((head.width for head in self.heads), default=1)
        attention: AttentionKind = self.kind(max(len(self.heads), 1), d_head)
        return BlockConfig(attention, d_mlp=sum(part.into.shape[1] for part in self.hidden))

    def weights(self) -> dict[str, Tensor]:
        """The block's parameters by name; widths that a head does not use stay zero."""
        found = {}
        if self.heads:
            width = self.config.attention.d_head
            # Softmax heads divide scores by the root of their width.
            sharp = width**0.5 if self.kind is SoftmaxAttention else 1.0
            heads = self.heads
            found["attn.W_Q"] = torch.stack([_widen(head.query, width) * sharp for head in heads])
            found["attn.W_K"] = torch.stack([_widen(head.key, width) for head in heads])
            found["attn.W_V"] = torch.stack([_widen(head.value, width) for head in heads])
            found["attn.W_O"] = torch.stack([_widen(head.out.mT, width).mT for head in heads])
        if self.kind is MesaAttention:
            found["attn.mixer.log_ridge"] = torch.tensor(self.ridge).log().expand(len(self.heads))
        if self.hidden:
            found["mlp.W_in"] = torch.cat([part.into for part in self.hidden], 1)
            found["mlp.W_out"] = torch.cat([part.out for part in self.hidden])
        return found


def _widen(columns: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(columns, (0, width - columns.shape[1]))


@torch.no_grad()
def assemble(
    embed: Float[Tensor, "d_in d_model"],
    positions: Float[Tensor, "time d_model"],
    layers: tuple[Layer, ...],
    unembed: Float[Tensor, "d_model d_out"],
) -> SequenceTransformer:
    """The model with these weights and zeros elsewhere; `positions` may have no rows."""
    config = ModelConfig(
        d_in=embed.shape[0],
        d_model=embed.shape[1],
        d_out=unembed.shape[1],
        blocks=tuple(layer.config for layer in layers),
        projected=True,
        n_ctx=len(positions),
    )
    weights = {"W_E": embed, "W_U": unembed, "W_pos": positions}
    for index, layer in enumerate(layers):
        named = layer.weights().items()
        weights |= {f"blocks.{index}.{name}": value for name, value in named}
    model = SequenceTransformer(config)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights.get(name, torch.zeros_like(parameter)))
    return model.eval().requires_grad_(False)
