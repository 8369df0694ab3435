"""Linear centred kernel alignment of features, from moments that merge by addition.

CKA(X, Y) = |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) for centred X and Y; Kornblith, Norouzi, Lee and
Hinton 2019, "Similarity of neural network representations revisited", section 3 and table 1. It is
1 for features that differ by a rotation and a scale, and not for those that differ by any other
linear map. Rows are tokens. Of independent features it is not 0 but about sqrt(d k) / rows, for
independent rows and d and k equally strong directions: few rows read as likeness.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class CrossMoments:
    """Sums over rows of two samples, about pivots that the caller has taken off.

    Pivots near the means keep the difference in `scatter` from cancelling; they do not change it.

    Attributes:
        rows: Number of rows.
        sum_x: sum x.
        sum_y: sum y.
        products: sum x y^T.
    """

    rows: int
    sum_x: Float[Tensor, " d"]
    sum_y: Float[Tensor, " k"]
    products: Float[Tensor, "d k"]

    @classmethod
    def of(cls, x: Float[Tensor, "rows d"], y: Float[Tensor, "rows k"]) -> "CrossMoments":
        """The sums of paired rows; products in the dtype of the features, kept as float64."""
        return cls(len(x), x.double().sum(0), y.double().sum(0), (x.mT @ y).double())

    def merge(self, other: "CrossMoments") -> "CrossMoments":
        """The sums of both samples together, about the same pivots."""
        return CrossMoments(
            self.rows + other.rows,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            self.products + other.products,
        )

    @property
    def scatter(self) -> Float[Tensor, "d k"]:
        """X^T Y of the centred features."""
        return self.products - torch.outer(self.sum_x, self.sum_y) / self.rows


def linear_cka(
    cross: Float[Tensor, "d k"],
    of_x: Float[Tensor, "d d"],
    of_y: Float[Tensor, "k k"],
    widths_x: tuple[int, ...],
    widths_y: tuple[int, ...],
) -> Float[Tensor, "layers_x layers_y"]:
    """CKA of every layer of one model with every layer of another.

    Args:
        cross: X^T Y of the centred features, the layers of each model side by side.
        of_x: X^T X.
        of_y: Y^T Y.
        widths_x: Width of each layer in X; they sum to d.
        widths_y: Width of each layer in Y; they sum to k.

    Returns:
        Values in [0, 1]; NaN beside a layer whose features are constant.

    Raises:
        ValueError: Widths that do not sum to the size of the matrices.
    """
    if sum(widths_x) != len(of_x) or sum(widths_y) != len(of_y):
        raise ValueError(f"widths {widths_x} and {widths_y} for {tuple(cross.shape)} products")
    norm_x, norm_y = _norms(of_x, widths_x), _norms(of_y, widths_y)
    aligned = [
        [part.square().sum() for part in rows.split(widths_y, 1)] for rows in cross.split(widths_x)
    ]
    shares = torch.stack([torch.stack(row) for row in aligned])
    return shares / (norm_x[:, None] * norm_y)


def _norms(scatter: Float[Tensor, "d d"], widths: tuple[int, ...]) -> Float[Tensor, " layers"]:
    """|X^T X|_F of each layer."""
    ends = torch.tensor(widths).cumsum(0).tolist()
    parts = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    return torch.stack([torch.linalg.matrix_norm(scatter[part, part]) for part in parts])
