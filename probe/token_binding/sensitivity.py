"""Norms of the derivatives of every layer's stream with respect to an earlier token.

One token is changed, in each of its channels, and the change is followed through all layers and
positions at once by forward-mode differentiation: exact columns of the Jacobian. The norm of lag j
is thus taken j positions after one source, and of every sequence for itself, since derivatives
of different sequences cancel in a mean.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from transformer_lens.hook_points import HookPoint

from probe.mesa_layer import Chunkwise, mesa_layer
from probe.models.attention import MesaMixer, Mixer, ScoreMixer
from probe.models.transformer import SequenceTransformer

AT_ONCE = 32  # copies of a sequence in one pass


@dataclass(frozen=True)
class Sensitivity:
    """Frobenius norms of the derivatives by the token at a source, per sequence.

    Attributes:
        stream: Of the stream before the first block and after each, so many lags later.
        output: Of the prediction.
    """

    stream: Float[Tensor, "batch layers_and_one lags"]
    output: Float[Tensor, "batch lags"]


@torch.no_grad()
def sensitivity(
    model: SequenceTransformer, tokens: Float[Tensor, "batch time d_in"], source: int, lags: int
) -> Sensitivity:
    """The norms of |d h_l[source + j] / d token_source| for j = 0 .. lags - 1.

    Args:
        model: A causal model; tokens behind those lags are left out.
        tokens: The sequences.
        source: Position of the token, from 0.
        lags: Number of lags; source + lags must not exceed the length.
    """
    model = differentiable(model)
    copies = max(1, AT_ONCE // tokens.shape[-1])
    shown = tokens[:, : source + lags]
    found = [_part(model, part, source) for part in shown.split(copies)]
    stream, output = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Sensitivity(stream, output)


def _part(model: SequenceTransformer, tokens: Tensor, source: int) -> tuple[Tensor, Tensor]:
    batch, _, width = tokens.shape
    change = tokens.new_zeros(width, *tokens.shape)
    change[:, :, source] = torch.eye(width).to(tokens)[:, None]
    moved: dict[str, Tensor] = {}

    def keep(stream: Tensor, hook: HookPoint) -> None:
        moved[hook.name] = _tangent(stream)[:, source:]

    sites = model.layer_sites()
    with forward_ad.dual_level(), model.hooks(fwd_hooks=[(site, keep) for site in sites]):
        _make_scales_dual(model)
        copies = forward_ad.make_dual(tokens.repeat(width, 1, 1), change.flatten(0, 1))
        output = _tangent(model(copies))[:, source:]

    def norms(derivative: Tensor) -> Tensor:
        by_channel = derivative.double().square().sum(-1).unflatten(0, (width, batch))
        return by_channel.sum(0).sqrt()

    return torch.stack([norms(moved[site]) for site in sites], 1), norms(output)


def _tangent(dual: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(dual)
    return torch.zeros_like(primal) if tangent is None else tangent


def _make_scales_dual(model: SequenceTransformer) -> None:
    """Scales of scores as duals of tangent 0: torch loads its compiler for plain constants."""
    for module in model.modules():
        if isinstance(module, ScoreMixer):
            scale = torch.tensor(float(module.scale), dtype=torch.float64)
            module.scale = forward_ad.make_dual(scale, torch.zeros_like(scale))


def differentiable(model: SequenceTransformer) -> SequenceTransformer:
    """A copy whose mesa-layers know their derivatives in forward mode."""
    copy = deepcopy(model)
    for module in list(copy.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, MesaMixer):
                setattr(module, name, _DualMesa(part))
    return copy


class _DualMesa(Mixer):
    """A mesa-layer z_t = sum_j v_j (k_j . p_t) with H_t p_t = q_t, and its derivative.

    Differentiated, H_t dp_t = dq_t - dH_t p_t with dH_t = sum_j dk_j k_j^T + k_j dk_j^T. The
    layer itself solves such systems: with keys for values it gives G_t p_t = q_t - ridge p_t.
    """

    def __init__(self, own: MesaMixer):
        super().__init__()
        self.own = own

    def forward(
        self,
        q: Float[Tensor, "batch time heads d_head"],
        k: Float[Tensor, "batch time heads d_head"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """Answers and their derivatives, in float64 inside."""
        duals = (q, self.own.paired(k), v)
        (q, dq), (k, dk), (v, dv) = (_heads_first(forward_ad.unpack_dual(x)) for x in duals)
        p = self._solved(q, k)
        sure, moved = (p @ k.mT).tril(), (p @ dk.mT).tril()
        dp = self._solved(dq - sure @ dk - moved @ k, k)
        answers, changes = sure @ v, sure @ dv + (moved + (dp @ k.mT).tril()) @ v
        dtype = duals[2].dtype
        return forward_ad.make_dual(
            answers.transpose(1, 2).to(dtype), changes.transpose(1, 2).to(dtype)
        )

    def _solved(self, rhs: Tensor, k: Tensor) -> Tensor:
        """H_t^-1 rhs_t."""
        ridge = self.own.log_ridge.double().exp()
        keys = k.transpose(1, 2)
        within = mesa_layer(keys, keys, rhs.transpose(1, 2), ridge, method=Chunkwise(rounds=2))
        return (rhs - within.transpose(1, 2)) / ridge[:, None, None]


def _heads_first(dual: tuple[Tensor, Tensor | None]) -> list[Tensor]:
    """Primal and tangent in float64, (batch, heads, time, width); tangents of constants are 0."""
    primal, tangent = dual
    tangent = torch.zeros_like(primal) if tangent is None else tangent
    return [part.double().transpose(1, 2) for part in (primal, tangent)]
