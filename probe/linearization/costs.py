"""From summed losses and errors to ratios and shares with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import bdtr
from torch import Tensor

from probe.linearization.run import FORMS, Linearised
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.views import SUBJECT


@dataclass(frozen=True)
class Cost:
    """What a layer costs when something stands in its place.

    Attributes:
        layer: The layer, from 1.
        ratio: Loss over the loss of the model, by what replaces the layer.
        r2: Share of the layer's output that the replacement explains.
    """

    layer: int
    ratio: Mapping[str, Interval]
    r2: Mapping[str, Interval]


def cost_alone(found: Linearised, at: int) -> Cost:
    """The cost of each replacement of one layer, the others as they are."""
    sums, ways = found.replaced.sums, found.stage.ways
    loss, energy = sums["loss"][:, at], sums["energy"][:, at].sum(-1)
    error = sums["error"][:, at].sum(-1)
    return Cost(
        found.layers[at] + 1,
        {way: _ratio(loss[:, i], found.losses[SUBJECT]) for i, way in enumerate(ways)},
        {way: share_explained(error[:, i], energy) for i, way in enumerate(ways)},
    )


def cost_together(found: Linearised, name: str) -> Interval:
    """Loss of a model whose later layers are replaced together, over that of the model."""
    return _ratio(found.losses[name], found.losses[SUBJECT])


def typical_cost(found: Linearised, name: str) -> Interval:
    """The median over blocks of that ratio, which rare sequences do not move.

    Its interval lies between order statistics (David and Nagaraja 2003, section 7.1).
    """
    ratios = (found.losses[name] / found.losses[SUBJECT]).sort().values.tolist()
    below = int((bdtr(np.arange(len(ratios)), len(ratios), 0.5) < 0.025).sum())
    median = float(torch.tensor(ratios, dtype=torch.float64).quantile(0.5))
    return Interval(median, ratios[below - 1], ratios[-below])


def _ratio(total: Float[Tensor, " blocks"], clean: Float[Tensor, " blocks"]) -> Interval:
    return bootstrap_interval(lambda weights: (weights @ total) / (weights @ clean))


def shares(found: Linearised, error: str, energy: str) -> Float[Tensor, "layers forms places"]:
    """Share of each layer's output that each form explains, at positions or along directions."""
    sums = found.replaced.sums
    left = sums[error].sum(0)[:, : len(FORMS)]
    return 1 - left / sums[energy].sum(0)[:, None].clamp(min=torch.finfo(torch.float32).tiny)
