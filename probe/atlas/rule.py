"""What the rule of a layer does whatever its heads were trained to: seen on white noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.models.hooked import Heads, HookedModel
from probe.sampling import normal

TIME = 64  # tokens of white noise, which are enough to see a rule
CLOSE = 1e-3  # share of the largest value by which an average may miss the range of the values


@dataclass(frozen=True)
class Rule:
    """A rule at work.

    Attributes:
        heads: White noise, and what the rule gathers from it.
        averages: Which heads take averages of their values by weights that add up to 1.
    """

    heads: Heads
    averages: Bool[Tensor, " heads"]


def rule_on_noise(
    model: HookedModel, layer: int, heads: Heads, generator: torch.Generator
) -> Rule | None:
    """The rule of a layer on noise as large as its own queries, keys and values; None if unknown.

    Args:
        model: The model.
        layer: The layer.
        heads: What its heads worked with; gates are kept.
        generator: Draws the noise.
    """
    heads = _each(heads, lambda part: part[:, :TIME])

    def white(own: Tensor) -> Tensor:
        size = own.double().square().mean((0, 1, 3), keepdim=True).sqrt()
        return (normal(generator, *own.shape).to(own.device) * size).to(own.dtype)

    noise = replace(
        heads, queries=white(heads.queries), keys=white(heads.keys), values=white(heads.values)
    )
    mixed = model.mix(layer, noise)
    ones = model.mix(layer, replace(noise, values=torch.ones_like(noise.values)))
    if mixed is None or ones is None:
        return None
    whole = ((ones - 1).abs() < CLOSE).flatten(0, 1).all(-1).all(0).cpu()
    return Rule(replace(noise, gathered=mixed), whole & within_range(noise.values, mixed))


def within_range(
    values: Float[Tensor, "batch time heads d_v"], mixed: Float[Tensor, "batch time heads d_v"]
) -> Bool[Tensor, " heads"]:
    """Whether what a head gathered always lies between the smallest and largest value so far."""
    room = CLOSE * values.abs().amax((0, 1, 3))[:, None]
    inside = mixed >= values.cummin(1).values - room
    inside &= mixed <= values.cummax(1).values + room
    return inside.flatten(0, 1).all(-1).all(0).cpu()


def finite(heads: Heads) -> Heads:
    """What is not finite counts as nothing."""
    return _each(heads, lambda part: torch.nan_to_num(part, 0.0, 0.0, 0.0))


def _each(heads: Heads, change: Callable[[Tensor], Tensor]) -> Heads:
    """Every tensor changed."""
    changed: Any = {name: change(part) for name, part in vars(heads).items() if part is not None}
    return replace(heads, **changed)
