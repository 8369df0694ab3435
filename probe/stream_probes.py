"""Linear probes of a language model's layers, fitted and scored from moments of its streams."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import InputError
from probe.linear_probe import RidgeProbe
from probe.models.hooked import HookedModel
from probe.moments import CentredMoments, Moments
from probe.ridge import TINY
from probe.streaming import BOUND, Targets, stream_groups


@dataclass(frozen=True)
class StreamProbe:
    """A ridge regression of targets on the stream at one site, y_hat = x W + b.

    Attributes:
        site: Where the stream was read.
        weights: W.
        offset: b.
        penalty: Of the standardised stream, summed over rows; chosen by generalised
            cross-validation.
        r2: R^2 of each target on tokens that were not fitted; NaN for a target that is constant.
    """

    site: str
    weights: Float[Tensor, "d k"]
    offset: Float[Tensor, " k"]
    penalty: float
    r2: Float[Tensor, " k"]


def stream_probes(
    model: HookedModel,
    fitted: Iterable[Tensor],
    held_out: Iterable[Tensor],
    targets: Targets,
    bound: int = BOUND,
) -> tuple[StreamProbe, ...]:
    """Probes of the stream before the first block and after each.

    Each batch is read once where the moments of all layers fit into `bound` bytes, otherwise once
    per group of layers.

    Raises:
        InputError: As in `probe.streaming.stream_groups`; or there are fewer than two tokens.
    """
    sites = model.layer_sites()

    def streamed(batches: Iterable[Tensor]) -> Iterator[tuple[str, CentredMoments]]:
        for group in stream_groups(model, batches, sites, targets, bound):
            for site, sums in group.items():
                yield site, sums.centred()

    learned = [(site, *_fit(moments)) for site, moments in streamed(fitted)]
    scores = [moments for _, moments in streamed(held_out)]
    return tuple(
        StreamProbe(site, weights, offset, penalty, _r2(weights, offset, moments))
        for (site, weights, offset, penalty), moments in zip(learned, scores, strict=True)
    )


def _fit(moments: CentredMoments) -> tuple[Tensor, Tensor, float]:
    """Weights, offset and penalty.

    The stream is standardised first: moments are rounded relative to each channel's own size, and
    trained language models have channels a thousand times as large as others.
    """
    if moments.rows < 2:
        raise InputError("a probe needs at least two tokens")
    size = (moments.centred.xx.diagonal() / moments.rows).clamp_min(0).sqrt()
    scale = torch.where(size > 0, size, 1.0)
    own = moments.centred
    scaled = Moments(own.xx / scale / scale[:, None], own.xy / scale[:, None], own.yy)
    standard = replace(moments, mean_x=moments.mean_x / scale, centred=scaled)
    probe = RidgeProbe.from_moments(standard, torch.finfo(torch.float32).eps)
    weights = torch.from_numpy(probe.coef_).T / scale[:, None]
    return weights, moments.mean_y - moments.mean_x @ weights, probe.alpha_


def _r2(weights: Tensor, offset: Tensor, moments: CentredMoments) -> Tensor:
    """From moments of other tokens: the spread of what is left about its mean, and that mean."""
    missed = moments.mean_y - moments.mean_x @ weights - offset
    error = moments.centred.squared_error(weights) + moments.rows * missed.square()
    energy = moments.centred.yy
    known = energy > TINY
    return torch.where(known, 1 - error / energy.clamp_min(TINY), torch.nan)
