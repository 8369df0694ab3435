"""The straight path between two models of linear attention, in the space of their products.

Weights themselves cannot be interpolated: W_Q M and W_K M^-T are the same head as W_Q and W_K,
heads have no order, and (A, B) is the head (-A, -B), or (c A, B / c). So products are interpolated,
of heads that are matched, with signs that agree and norms that are balanced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probe.capture import capture_output
from probe.closeness import LossStage
from probe.errors import InputError
from probe.models.transformer import SequenceTransformer
from probe.plan import Plan
from probe.statistics import Interval, bootstrap_interval, mean_per_sequence
from probe.sweep import Sweep
from probe.views import seen_as
from probe.weights.products import Products, products, with_products
from probe.weights.slots import SlotBasis

STEPS = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Path:
    """Losses along a path.

    Attributes:
        alphas: Shares of the other model, from 0 to 1.
        losses: The loss at each.
        barrier: The largest excess over the straight line between the losses at the ends.
    """

    alphas: tuple[float, ...]
    losses: tuple[Interval, ...]
    barrier: Interval


def interpolate(
    model: SequenceTransformer,
    other: SequenceTransformer,
    slots: int,
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> Path:
    """The path from a model to another one: another seed, its compression, a construction.

    Args:
        model: A model of linear attention.
        other: One with as many blocks and heads on the same tokens.
        slots: Number of slots of a token.
        plan: The data; losses are those of the test split.
        progress: Told of the shards.

    Raises:
        InputError: A stream is not made of slots, or the models differ in blocks or heads.
    """
    basis = SlotBasis.of(model, slots)
    start = products(model, basis)
    end = products(other, SlotBasis.of(other, slots))
    if [p.scores.shape for p in start] != [p.scores.shape for p in end]:
        raise InputError("no path between models that differ in blocks, heads or width")
    return along(model, basis, (balanced(start), matched(start, end)), plan, progress)


def along(
    model: SequenceTransformer,
    basis: SlotBasis,
    ends: tuple[Sequence[Products], Sequence[Products]],
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Losses on the path between two sets of products as they stand."""
    alphas = [step / STEPS for step in range(STEPS + 1)]
    models = {
        f"{alpha:.3f}": with_products(
            model, basis, [mixed(*pair, alpha) for pair in zip(*ends, strict=True)]
        )
        for alpha in alphas
    }
    views = {name: seen_as(name) for name in models}
    stage = LossStage(tuple(views))
    results = Sweep(plan, models, views, capture_output, progress).run((stage,))
    sums = [results[stage, view].sums for view in views]
    losses = torch.stack([one["loss"].mean(1) for one in sums], 1)
    count = sums[0]["sequences"]
    line = torch.tensor(alphas, dtype=torch.float64)

    def barrier(weights: Float[Tensor, "draws blocks"]) -> Float[Tensor, " draws"]:
        mean = (weights @ losses) / (weights @ count)[:, None]
        return (mean - mean[:, :1] * (1 - line) - mean[:, -1:] * line).amax(1)

    return Path(
        alphas=tuple(alphas),
        losses=tuple(mean_per_sequence(loss, count) for loss in losses.T),
        barrier=bootstrap_interval(barrier),
    )


def mixed(start: Products, end: Products, alpha: float) -> Products:
    """(1 - alpha) start + alpha end, product by product."""
    return Products(
        torch.lerp(start.scores, end.scores, alpha), torch.lerp(start.values, end.values, alpha)
    )


def balanced(layers: Sequence[Products]) -> tuple[Products, ...]:
    """The same heads with |A| = |B|."""
    return tuple(_balanced(layer) for layer in layers)


def _balanced(layer: Products) -> Products:
    sizes = [m.flatten(1).norm(dim=1).clamp(min=1e-300) for m in (layer.scores, layer.values)]
    factor = (sizes[1] / sizes[0]).sqrt()[:, None, None]
    return Products(layer.scores * factor, layer.values / factor)


def matched(start: Sequence[Products], end: Sequence[Products]) -> tuple[Products, ...]:
    """The heads of `end` in the order, and with the signs, that are nearest those of `start`.

    The assignment maximises sum_h <A_h, A'_h> <B_h, B'_h>, on which signs and scales have no say.
    """
    return tuple(
        _placed(one, two, _assigned(one, two), 1.0)
        for one, two in zip(balanced(start), balanced(end), strict=True)
    )


def misplaced(start: Sequence[Products], end: Sequence[Products]) -> tuple[Products, ...]:
    """The same function as `matched`, each head in the next one's place and with the wrong sign.

    What the path to it crosses shows what a barrier looks like.
    """
    found = []
    for one, two in zip(balanced(start), balanced(end), strict=True):
        order = _assigned(one, two)
        found.append(_placed(one, two, [*order[1:], order[0]], -1.0))
    return tuple(found)


def _assigned(one: Products, two: Products) -> list[int]:
    inner = [
        m.flatten(1) @ n.flatten(1).mT
        for m, n in ((one.scores, two.scores), (one.values, two.values))
    ]
    order: list[int] = linear_sum_assignment(-inner[0] * inner[1])[1].tolist()
    return order


def _placed(one: Products, two: Products, order: list[int], way: float) -> Products:
    scores, values = two.scores[order], two.values[order]
    agree = (one.scores * scores).sum((1, 2)) + (one.values * values).sum((1, 2))
    sign = way * torch.where(agree < 0, -1.0, 1.0)[:, None, None].double()
    return Products(scores * sign, values * sign)
