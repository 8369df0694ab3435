"""The kinds of attention. Each is a small frozen description and the module that it builds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from probe.errors import InputError
from probe.mesa_layer import Chunkwise, mesa_layer

Changed = Float[Tensor, "changes batch heads d_head"]
Rows = tuple[Float[Tensor, "batch time heads d_head"], Float[Tensor, "batch time heads d_v"]]
Own = tuple[Changed, Float[Tensor, "changes batch heads d_v"]]


def _after(past: Rows, own: Own) -> tuple[Tensor, Tensor]:
    """Keys and values of all tokens, one copy of the past for every change."""
    k, v = (
        torch.cat([before.repeat(len(now), 1, 1, 1), now.flatten(0, 1)[:, None]], 1)
        for before, now in zip(past, own, strict=True)
    )
    return k, v


class Mixer(nn.Module, ABC):
    """What becomes of queries, keys and values; the only part in which the kinds differ."""

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "batch time heads d_head"],
        k: Float[Tensor, "batch time heads d_head"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """Mixes values over the past of each position; linear in the values."""

    def last(self, q: Changed, past: Rows, own: Own) -> Float[Tensor, "changes batch heads d_v"]:
        """What `forward` mixes at the last position, whose query, key and value are changed.

        Args:
            q: Its queries.
            past: Keys and values of the tokens before it, the same for all changes.
            own: Its own keys and values.
        """
        queries = q.flatten(0, 1)[:, None]
        k, v = _after(past, own)
        queries = nn.functional.pad(queries, (0, 0, 0, 0, k.shape[1] - 1, 0))
        mixed: Tensor = self(queries, k, v)
        return mixed[:, -1].unflatten(0, q.shape[:2])

    def paired(
        self, k: Float[Tensor, "batch time heads d_head"]
    ) -> Float[Tensor, "batch time heads d_head"]:
        """Keys as they meet queries and values: zero where there is no pair yet."""
        return k


@runtime_checkable
class AttentionKind(Protocol):
    """Describes a kind of attention and builds its mixer."""

    kind: ClassVar[str]

    @property
    def heads(self) -> int:
        """Number of heads."""

    @property
    def d_head(self) -> int:
        """Width of a head."""

    def build(self) -> Mixer:
        """A fresh mixer with its own parameters, if it has any."""


@dataclass(frozen=True)
class LinearAttention:
    """Scores q.k without scaling or normalisation; the future is masked to 0."""

    kind: ClassVar[str] = "linear"
    heads: int
    d_head: int

    def build(self) -> Mixer:
        """No parameters."""
        return ScoreMixer(1.0, _causal)


@dataclass(frozen=True)
class AveragedAttention:
    """Linear attention divided by the number of tokens so far.

    This is what softmax attention is to first order in its scores, but for their mean.
    """

    kind: ClassVar[str] = "linear-averaged"
    heads: int
    d_head: int

    def build(self) -> Mixer:
        """No parameters."""
        return ScoreMixer(1.0, _causal_average)


@dataclass(frozen=True)
class BidirectionalAttention:
    """Scores q.k without scaling, normalisation or mask: every token sees all tokens."""

    kind: ClassVar[str] = "linear-bidirectional"
    heads: int
    d_head: int

    def build(self) -> Mixer:
        """No parameters."""
        return ScoreMixer(1.0, lambda scores: scores)


@dataclass(frozen=True)
class SoftmaxAttention:
    """softmax(q.k / sqrt(d_head)) over the past."""

    kind: ClassVar[str] = "softmax"
    heads: int
    d_head: int

    def build(self) -> Mixer:
        """No parameters."""
        return ScoreMixer(self.d_head**-0.5, _causal_softmax)


@dataclass(frozen=True)
class MesaAttention:
    """Ridge regression of values on keys at every prefix; one trained lambda per head.

    The first `unpaired` tokens are no pairs: their keys count as zero. A block that copies the
    token before has none to copy at the first, and what it copies instead would be a wrong pair.
    """

    kind: ClassVar[str] = "mesa"
    heads: int
    d_head: int
    unpaired: int = 0

    def build(self) -> Mixer:
        """One parameter per head."""
        return MesaMixer(self.heads, self.unpaired)


@dataclass(frozen=True)
class MixedAttention:
    """Heads of different rules side by side: softmax first, then linear, then mesa heads.

    Of all heads `linear` are linear and `mesa` are mesa heads; the others are softmax heads.

    Raises:
        InputError: More linear and mesa heads than heads.
    """

    kind: ClassVar[str] = "mixed"
    heads: int
    d_head: int
    linear: int = 0
    mesa: int = 0

    def __post_init__(self) -> None:
        """Refuses what leaves a negative number of softmax heads."""
        if self.linear + self.mesa > self.heads:
            raise InputError(f"mixed attention: {self.heads} heads, more linear and mesa heads")

    def build(self) -> Mixer:
        """One parameter per mesa head."""
        return MixedMixer(self)


_Kind = (
    type[LinearAttention]
    | type[AveragedAttention]
    | type[BidirectionalAttention]
    | type[SoftmaxAttention]
    | type[MesaAttention]
    | type[MixedAttention]
)
KINDS: dict[str, _Kind] = {
    kind.kind: kind
    for kind in (
        LinearAttention,
        AveragedAttention,
        BidirectionalAttention,
        SoftmaxAttention,
        MesaAttention,
        MixedAttention,
    )
}


# Rows of scores belong to the last positions: to all of them, or to fewer.


def _causal(scores: Tensor) -> Tensor:
    queries, keys = scores.shape[-2:]
    return scores.tril(keys - queries)


def _causal_softmax(scores: Tensor) -> Tensor:
    queries, keys = scores.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(future.triu(1 + keys - queries), float("-inf")).softmax(-1)


def _causal_average(scores: Tensor) -> Tensor:
    queries, keys = scores.shape[-2:]
    seen = torch.arange(keys - queries, keys, device=scores.device, dtype=scores.dtype) + 1
    return _causal(scores) / seen[:, None]


class ScoreMixer(Mixer):
    """Attention through a T x T pattern."""

    def __init__(self, scale: float | Tensor, normalise: Callable[[Tensor], Tensor]):
        super().__init__()
        self.scale, self.normalise = scale, normalise
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()

    def forward(
        self,
        q: Float[Tensor, "batch time heads d_head"],
        k: Float[Tensor, "batch time heads d_head"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """Mixes values by a causal pattern of shape (batch, heads, query, key)."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = self.hook_attn_scores((q * self.scale) @ k.mT)
        pattern = self.hook_pattern(self.normalise(scores))
        return (pattern @ v).transpose(1, 2)

    def last(self, q: Changed, past: Rows, own: Own) -> Float[Tensor, "changes batch heads d_v"]:
        """One row of the pattern."""
        q = q * self.scale
        earlier = torch.einsum("cbhd,bthd->cbht", q, past[0])
        scores = torch.cat([earlier, (q * own[0]).sum(-1, keepdim=True)], -1)
        pattern = self.normalise(scores[..., None, :])[..., 0, :]
        mixed = torch.einsum("cbht,bthd->cbhd", pattern[..., :-1], past[1])
        return mixed + pattern[..., -1:] * own[1]


class MesaMixer(Mixer):
    """The reference mesa-layer with a trained ridge exp(log_ridge) per head."""

    def __init__(self, heads: int, unpaired: int = 0):
        super().__init__()
        self.unpaired = unpaired
        self.log_ridge = nn.Parameter(torch.zeros(heads))

    def forward(
        self,
        q: Float[Tensor, "batch time heads d_head"],
        k: Float[Tensor, "batch time heads d_head"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """Exact least squares at every prefix."""
        k = self.paired(k)
        if torch.is_grad_enabled():
            return mesa_layer(k, v, q, self.log_ridge.exp())
        # Without gradients an analysis looks, which promises the same bits however sequences are
        # cut into batches: nothing of the solution may depend on the others in the batch.
        exact = mesa_layer(
            k.double(), v.double(), q.double(), self.log_ridge.exp(), method=Chunkwise(rounds=2)
        )
        return exact.to(v.dtype)

    def last(self, q: Changed, past: Rows, own: Own) -> Float[Tensor, "changes batch heads d_v"]:
        """One solution, in float64."""
        k, v = _after(past, own)
        keys, values = (part.double().transpose(1, 2) for part in (self.paired(k), v))
        penalty = self.log_ridge.double().exp()[:, None, None] * torch.eye(k.shape[-1]).to(keys)
        rhs = q.flatten(0, 1).double()[..., None]
        dual = torch.linalg.solve(keys.mT @ keys + penalty, rhs)
        mixed = ((keys @ dual).mT @ values)[..., 0, :]
        return mixed.unflatten(0, q.shape[:2]).to(v.dtype)

    def paired(
        self, k: Float[Tensor, "batch time heads d_head"]
    ) -> Float[Tensor, "batch time heads d_head"]:
        """Keys, zero where there is no pair yet."""
        if not self.unpaired:
            return k
        return torch.cat([torch.zeros_like(k[:, : self.unpaired]), k[:, self.unpaired :]], 1)


class MixedMixer(Mixer):
    """Each group of heads through the mixer of its own rule."""

    def __init__(self, kind: MixedAttention):
        super().__init__()
        rules: tuple[AttentionKind, ...] = (
            SoftmaxAttention(kind.heads - kind.linear - kind.mesa, kind.d_head),
            LinearAttention(kind.linear, kind.d_head),
            MesaAttention(kind.mesa, kind.d_head),
        )
        self.rules = nn.ModuleDict({rule.kind: rule.build() for rule in rules if rule.heads})
        self.sizes = [rule.heads for rule in rules if rule.heads]

    def forward(
        self,
        q: Float[Tensor, "batch time heads d_head"],
        k: Float[Tensor, "batch time heads d_head"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """Mixes values, each head by its own rule."""
        groups = zip(*(t.split(self.sizes, 2) for t in (q, k, v)), strict=True)
        mixed = [rule(*group) for rule, group in zip(self.rules.values(), groups, strict=True)]
        return torch.cat(mixed, 2)

    def paired(
        self, k: Float[Tensor, "batch time heads d_head"]
    ) -> Float[Tensor, "batch time heads d_head"]:
        """As the rules say."""
        rules: list[Any] = list(self.rules.values())
        groups = zip(rules, k.split(self.sizes, 2), strict=True)
        return torch.cat([rule.paired(part) for rule, part in groups], 2)


class Attention(nn.Module):
    """Projections around a mixer; hooks are named as in TransformerLens.

    `positions` is the width of the sinusoidal table that is concatenated to the input of
    queries and keys only; 0 for none. `unit` names those of q, k and v that are normalised to
    length 1 in each head. With biases there is one for each map.
    """

    def __init__(
        self,
        kind: AttentionKind,
        d_model: int,
        positions: int,
        unit: tuple[str, ...],
        biased: bool = False,
    ):
        super().__init__()
        self.positions, self.unit = positions, unit
        d_qk = d_model + positions
        shape = (kind.heads, d_qk, kind.d_head)
        self.W_Q = nn.Parameter(torch.empty(shape))
        self.W_K = nn.Parameter(torch.empty(shape))
        self.W_V = nn.Parameter(torch.empty(kind.heads, d_model, kind.d_head))
        self.W_O = nn.Parameter(torch.empty(kind.heads, kind.d_head, d_model))
        self.b_Q, self.b_K, self.b_V = (
            build_bias(biased, kind.heads, kind.d_head) for _ in range(3)
        )
        self.b_O = build_bias(biased, d_model)
        self.mixer = kind.build()
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_z = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time d_model"]:
        """The attention output, without the residual."""
        return shifted(self.gathered(x).flatten(2) @ self.W_O.flatten(0, 1), self.b_O)

    def gathered(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> Float[Tensor, "batch time heads d_head"]:
        """What each head gathers, before the output map."""
        placed = self._place(x)
        q = self.hook_q(self._normalise("q", _project(placed, self.W_Q, self.b_Q)))
        k = self.hook_k(self._normalise("k", _project(placed, self.W_K, self.b_K)))
        v = self.hook_v(self._normalise("v", _project(x, self.W_V, self.b_V)))
        return self.hook_z(self.mixer(q, k, v))

    def last(
        self, before: Float[Tensor, "batch time d_model"], x: Float[Tensor, "changes batch d_model"]
    ) -> Float[Tensor, "changes batch d_model"]:
        """The output at the token x after those of `before`; hooks are not passed."""
        own = self._place(x.flatten(0, 1)[:, None], before.shape[1])[:, 0].unflatten(0, x.shape[:2])
        q = self._normalise("q", _project(own, self.W_Q, self.b_Q))
        keys, values = (
            tuple(self._normalise(role, _project(rows, weight, bias)) for rows in both)
            for role, both, weight, bias in (
                ("k", (self._place(before), own), self.W_K, self.b_K),
                ("v", (before, x), self.W_V, self.b_V),
            )
        )
        mixed = self.mixer.last(q, (keys[0], values[0]), (keys[1], values[1]))
        return shifted(mixed.flatten(2) @ self.W_O.flatten(0, 1), self.b_O)

    def _place(self, x: Tensor, first: int = 0) -> Tensor:
        if not self.positions:
            return x
        table = sinusoids(first + x.shape[1], self.positions)[first:].to(x)
        return torch.cat([x, table.expand(x.shape[0], -1, -1)], -1)

    def _normalise(self, role: str, heads: Tensor) -> Tensor:
        return nn.functional.normalize(heads, dim=-1) if role in self.unit else heads


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    heads, width, d_head = weight.shape
    flat = weight.transpose(0, 1).reshape(width, heads * d_head)
    return shifted((x @ flat).unflatten(-1, (heads, d_head)), bias)


def build_bias(biased: bool, *shape: int) -> nn.Parameter | None:
    """A fresh bias, at 0, where a map has one."""
    return nn.Parameter(torch.zeros(shape)) if biased else None


def shifted(
    x: Float[Tensor, "*shape"], bias: Float[Tensor, "..."] | None
) -> Float[Tensor, "*shape"]:
    """What a linear map says, with its bias where it has one."""
    return x if bias is None else x + bias


def sinusoids(length: int, width: int) -> Float[Tensor, "length width"]:
    """Sinusoidal positions with base 10000, sines on even channels (Vaswani et al. 2017, 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
