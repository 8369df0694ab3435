"""What replacing the attention of a layer costs, and how much of it each replacement explains."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Edit
from probe.closeness import half_squares
from probe.models.attention import Attention
from probe.moments import Moments
from probe.ridge import least_squares
from probe.stages import Batch, Sums
from probe.views import SUBJECT

CONTROLS = ("map", "mean", "zero")


@dataclass(frozen=True)
class Simple:
    """What stands in for the attention of each layer as a control.

    Attributes:
        maps: The regression of what it adds on the stream at the same position.
        means: The mean of what it adds at each position.
        directions: Principal directions of what it adds as columns, first to last.
    """

    maps: Float[Tensor, "layers d_model d_model"]
    means: Float[Tensor, "layers time d_model"]
    directions: Float[Tensor, "layers d_model d_model"]


@dataclass(frozen=True, eq=False)
class ReplacementStage:
    """Replaces what each layer adds in turn.

    Attributes:
        layers: The layers, from 0.
        forms: Names of the forms of linear attention.
        linear: For each layer the linear attention of each form.
    """

    layers: tuple[int, ...]
    forms: tuple[str, ...]
    linear: tuple[tuple[Attention, ...], ...] = field(repr=False)
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of all replacements."""
        return (*self.forms, *CONTROLS)

    def fit(self, batch: Batch) -> Sums:
        """Moments of stream and output; cells are layers."""
        seen, layers = batch.capture, list(self.layers)
        x, y = seen.layers[layers].flatten(1, 2), seen.updates[layers].flatten(1, 2)
        return {
            "xx": x.mT @ x,
            "xy": x.mT @ y,
            "yy": y.mT @ y,
            "mean": seen.updates[layers].sum(1),
            "sequences": torch.tensor(len(batch.blocks)),
        }

    def learn(self, sums: Sums) -> Simple:
        """The maps, the means, and the directions."""
        total = {name: value.sum(0) for name, value in sums.items()}
        yy = total["yy"].diagonal(dim1=-2, dim2=-1)
        maps = least_squares(Moments(total["xx"], total["xy"], yy))
        directions = torch.linalg.eigh(total["yy"]).eigenvectors.flip(-1)
        return Simple(maps, total["mean"] / total["sequences"], directions)

    def test(self, batch: Batch, learned: Simple) -> Sums:
        """Squared errors and losses by block; the axes after that are layers and replacements."""
        parts = [self._of_layer(batch, learned, at) for at in range(len(self.layers))]
        return {name: torch.stack([part[name] for part in parts], 1) for name in parts[0]}

    def _of_layer(self, batch: Batch, learned: Simple, at: int) -> Sums:
        layer, runner = self.layers[at], batch.capture.runner
        if runner is None:
            raise TypeError("a predictor without an inside cannot be edited")
        stream, added = batch.capture.layers[layer], batch.capture.updates[layer].double()
        targets = batch.context.problem.targets
        site = f"blocks.{layer}.hook_attn_out"
        error, loss, turned = [], [], []
        for instead in self._instead(stream, learned, at):
            output = runner.resume(stream, layer, {site: _always(instead)})
            loss.append(batch.by_block(half_squares(output, targets).sum(1)))
            left = added - instead.double()
            error.append(batch.by_block(left.square().sum(-1)))
            turned.append(batch.by_block((left @ learned.directions[at]).square().sum(1)))
        along = (added @ learned.directions[at]).square().sum(1)
        return {
            "loss": torch.stack(loss, 1),
            "error": torch.stack(error, 1),
            "energy": batch.by_block(added.square().sum(-1)),
            "error_along": torch.stack(turned, 1),
            "energy_along": batch.by_block(along),
        }

    def _instead(self, stream: Tensor, learned: Simple, at: int) -> Iterator[Tensor]:
        """What is added instead, in the order of `ways`."""
        for linear in self.linear[at]:
            yield linear(stream)
        yield (stream.double() @ learned.maps[at]).to(stream.dtype)
        yield learned.means[at].to(stream.dtype).expand_as(stream)
        yield torch.zeros_like(stream)


def _always(new: Tensor) -> Edit:
    return lambda old: new
