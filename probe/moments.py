"""Second moments of features and targets: all that least squares needs, however many rows.

A cell is one regression; leading axes of the tensors are cells. D features, K targets.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Uncentred sums over rows; they merge by addition.

    Attributes:
        xx: sum x x^T.
        xy: sum x y^T.
        yy: sum y^2 of each target.
    """

    xx: Float[Tensor, "*cells d d"]
    xy: Float[Tensor, "*cells d k"]
    yy: Float[Tensor, "*cells k"]

    def total(self) -> "Moments":
        """The sum over the first axis, such as folds."""
        return Moments(self.xx.sum(0), self.xy.sum(0), self.yy.sum(0))

    def at(self, index: int) -> "Moments":
        """One entry of the first axis."""
        return Moments(self.xx[index], self.xy[index], self.yy[index])

    def without(self, part: "Moments") -> "Moments":
        """What is left when the rows of `part` are taken out."""
        return Moments(self.xx - part.xx, self.xy - part.xy, self.yy - part.yy)

    def squared_error(self, weights: Float[Tensor, "*cells d k"]) -> Float[Tensor, "*cells k"]:
        """Squared error of y_hat = x W, for each target: yy - 2 <W, XY> + <W, XX W>."""
        return self.yy + (weights * (self.xx @ weights - 2 * self.xy)).sum(-2)


def layer_moments(
    x: Float[Tensor, "layers batch time d"], y: Float[Tensor, "batch time k"]
) -> Moments:
    """Moments over the batch for every (layer, position): cells are (layers, time).

    Products are taken in the dtype of the activations, all layers of a position in one product
    since they share their targets. Sums over many batches belong in float64.
    """
    layers, batch, time, d = x.shape
    by_position = y.transpose(0, 1)
    stacked = x.permute(2, 1, 0, 3).reshape(time, batch, layers * d)
    xy = (stacked.mT @ by_position).unflatten(1, (layers, d)).transpose(0, 1)
    rows = x.transpose(1, 2).contiguous()  # one copy; the product would make two
    yy = y.square().sum(0).expand(layers, time, -1)
    return Moments(rows.mT @ rows, xy, yy)


@dataclass(frozen=True)
class CentredMoments:
    """Means, and moments about them, in float64; they merge without cancellation.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", eq. 2.1.

    Attributes:
        rows: Number of rows.
        mean_x: Mean of the features.
        mean_y: Mean of the targets.
        centred: Moments of x - mean_x and y - mean_y.
    """

    rows: int
    mean_x: Float[Tensor, " d"]
    mean_y: Float[Tensor, " k"]
    centred: Moments

    @classmethod
    def of(cls, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows k"]) -> "CentredMoments":
        """The moments of a sample."""
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        dx, dy = x - mean_x, y - mean_y
        return cls(len(x), mean_x, mean_y, Moments(dx.T @ dx, dx.T @ dy, dy.square().sum(0)))

    @classmethod
    def from_sums(
        cls, rows: int, x: Float[Tensor, " d"], y: Float[Tensor, " k"], products: Moments
    ) -> "CentredMoments":
        """The moments from the sums of x and y and their moments about the origin."""
        mean_x, mean_y = x / rows, y / rows
        return cls(rows, mean_x, mean_y, products.without(_outer(mean_x, mean_y, rows)))

    def merge(self, other: "CentredMoments") -> "CentredMoments":
        """The moments of both samples together."""
        rows = self.rows + other.rows
        share = other.rows / rows
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        between = _outer(dx, dy, self.rows * share)
        ours, theirs = self.centred, other.centred
        merged = Moments(
            ours.xx + theirs.xx + between.xx,
            ours.xy + theirs.xy + between.xy,
            ours.yy + theirs.yy + between.yy,
        )
        return CentredMoments(rows, self.mean_x + share * dx, self.mean_y + share * dy, merged)

    def uncentred(self) -> Moments:
        """Moments about the origin."""
        around = _outer(self.mean_x, self.mean_y, self.rows)
        own = self.centred
        return Moments(own.xx + around.xx, own.xy + around.xy, own.yy + around.yy)


def _outer(x: Float[Tensor, " d"], y: Float[Tensor, " k"], weight: int | float) -> Moments:
    """`weight` times the moments of a single row."""
    return Moments(weight * torch.outer(x, x), weight * torch.outer(x, y), weight * y.square())
