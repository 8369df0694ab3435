"""The linear attention layer closest to a given attention layer.

A layer of linear attention answers sum_h sum_{j <= t} (q_th . k_jh) v_jh O_h with q = x Q, k = x K
and v = x V. It is linear in each of its maps but not in all, so for given Q, K and V the best O is
a regression, and only the three are searched: variable projection (Golub and Pereyra 1973), where
the gradient of the least error takes O as a constant. The search is L-BFGS, in coordinates in
which the stream is white, from the layer's own maps and from random ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.models.attention import Attention, AveragedAttention, LinearAttention
from probe.sampling import normal

HISTORY = 30  # pairs of steps that L-BFGS remembers
SEEN = 1e-10  # share of the largest variance below which a direction is rounding
JITTER = 1e-9  # of the mean variance of what the heads gather: columns may be unused
TINY = torch.finfo(torch.float32).tiny

Kind = LinearAttention | AveragedAttention


@dataclass(frozen=True)
class Pairs:
    """What passes a layer.

    Attributes:
        stream: What the attention reads.
        added: What it adds to the stream.
    """

    stream: Float[Tensor, "batch time d_model"] = field(repr=False)
    added: Float[Tensor, "batch time d_model"] = field(repr=False)

    def part(self, first: int, after: int) -> "Pairs":
        """Some of the sequences."""
        return Pairs(self.stream[first:after], self.added[first:after])


@dataclass(frozen=True)
class Round:
    """One search: on so many sequences, with so many evaluations of error and gradient."""

    sequences: int
    evaluations: int


@dataclass(frozen=True)
class Distilled:
    """The layer that was found.

    Attributes:
        layer: It, in the coordinates of the stream.
        start: Where the search began.
        left: Share of the output's energy that was left at each evaluation of the last round.
        tried: The same in the first round, by start.
    """

    layer: Attention = field(repr=False)
    start: str
    left: tuple[float, ...]
    tried: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates u = x @ white in which the stream has unit variance, and x = u @ back.

    Directions that the stream never takes are left out.
    """

    white: Float[Tensor, "d_model rank"]
    back: Float[Tensor, "rank d_model"]

    @classmethod
    def of(cls, stream: Float[Tensor, "batch time d_model"]) -> "Coordinates":
        """From second moments, in float64."""
        rows = stream.flatten(0, 1).double()
        mu, basis = torch.linalg.eigh(rows.mT @ rows / len(rows))
        seen = mu > SEEN * mu[-1]
        scale, basis = mu[seen].sqrt(), basis[:, seen]
        return cls((basis / scale).to(stream.dtype), (basis * scale).mT.to(stream.dtype))


def distil(
    attention: Attention,
    pairs: Pairs,
    kind: Kind,
    rounds: tuple[Round, Round],
    generator: torch.Generator,
) -> Distilled:
    """Finds the layer of linear attention closest to an attention layer.

    The first round starts from the layer's own maps and from random ones; the start that does
    better on as many further sequences goes on to the second. Memory is that of the activations
    of one layer on the sequences of a round.

    Args:
        attention: The layer; where it takes positions, so does what replaces it.
        pairs: Its inputs and outputs, at least twice the sequences of the first round.
        kind: Kind and size of the linear attention: heads and their width as in the layer.
        rounds: The search from both starts, and the one from the better.
        generator: Draws the random start.
    """
    first, second = rounds
    sample = pairs.part(0, first.sequences)
    beside = pairs.part(first.sequences, 2 * first.sequences)
    found, tried = {}, {}
    for start, begun in _starts(attention, kind, generator).items():
        found[start], tried[start] = searched(begun, kind, sample, first.evaluations)
    best = min(found, key=lambda start: share_left(found[start], beside))
    whole = pairs.part(0, second.sequences)
    layer, left = searched(found[best], kind, whole, second.evaluations)
    return Distilled(layer, best, left, tried)


def searched(
    begun: Attention, kind: Kind, pairs: Pairs, evaluations: int
) -> tuple[Attention, tuple[float, ...]]:
    """Goes on from a layer of linear attention; its output map is fitted, whatever it was.

    Returns:
        The layer, and the share of the output's energy left at each evaluation.
    """
    place = Coordinates.of(pairs.stream)
    inner = _moved(begun, kind, place.back)
    maps = [inner.W_Q, inner.W_K, inner.W_V]
    stream, added = pairs.stream @ place.white, pairs.added.flatten(0, 1)
    energy = added.square().sum().clamp(min=TINY)
    left: list[float] = []
    optimiser = torch.optim.LBFGS(
        [parameter.requires_grad_(True) for parameter in maps],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def share() -> Tensor:
        optimiser.zero_grad()
        gathered = inner.gathered(stream).flatten(2).flatten(0, 1)
        error = added - gathered @ _output_map(gathered.detach(), added)
        lost = error.square().sum() / energy
        lost.backward()
        left.append(lost.item())
        return lost

    with torch.enable_grad():
        optimiser.step(share)
    layer = _moved(inner.requires_grad_(False), kind, place.white)
    gathered = layer.gathered(pairs.stream).flatten(2).flatten(0, 1)
    layer.W_O.copy_(_output_map(gathered, added).view_as(layer.W_O))
    return layer, tuple(left)


def share_left(layer: Attention, pairs: Pairs) -> float:
    """Share of the output's energy that a layer leaves unexplained."""
    error = (pairs.added - layer(pairs.stream)).double().square().sum()
    return float(error / pairs.added.double().square().sum().clamp(min=TINY))


def _starts(
    attention: Attention, kind: Kind, generator: torch.Generator
) -> Mapping[str, Attention]:
    """The layer's own maps, and random ones."""
    own, random = (_empty(kind, attention.W_V.shape[1], attention.positions) for _ in range(2))
    for name, parameter in own.named_parameters():
        parameter.copy_(attention.get_parameter(name))
    for parameter in random.parameters():
        parameter.copy_(normal(generator, *parameter.shape))
    return {"own maps": own, "random maps": random}


def _empty(kind: Kind, d_model: int, positions: int) -> Attention:
    return Attention(kind, d_model, positions, ()).requires_grad_(False)


def _moved(layer: Attention, kind: Kind, change: Float[Tensor, "new old"]) -> Attention:
    """The layer in other coordinates, each map of unit size; its output map is left out."""
    width, old = change.shape
    moved = _empty(kind, width, layer.positions)
    for name in ("W_Q", "W_K", "W_V"):
        matrix = layer.get_parameter(name)
        turned = torch.cat([change @ matrix[:, :old], matrix[:, old:]], 1)
        size = torch.linalg.matrix_norm(turned, keepdim=True).clamp(min=TINY)
        moved.get_parameter(name).copy_(turned / size)
    return moved


def _output_map(
    gathered: Float[Tensor, "rows features"], added: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "features d_model"]:
    """The regression of what is added on what the heads gather, in float64."""
    x, y = gathered.double(), added.double()
    gram = x.mT @ x
    jitter = (JITTER * gram.diagonal().mean()).clamp(min=TINY)
    solved = torch.linalg.solve(gram + jitter * torch.eye(len(gram), dtype=gram.dtype), x.mT @ y)
    return solved.to(added.dtype)
