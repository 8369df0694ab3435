"""Ridge regression at every prefix in the dual: its cost does not grow with the features' width."""

import torch
from jaxtyping import Float
from torch import Tensor


def one_step_ahead(
    features: Float[Tensor, "batch time d"],
    following: Float[Tensor, "batch time d_v"],
    ridges: Float[Tensor, " ridges"],
) -> Float[Tensor, "ridges batch time d_v"]:
    """Predictions of each row from all rows before it, in float64.

    Row t offers the pair (features_t, following_t) to later rows. With K = F F^T and the Cholesky
    factor L L^T = K + lambda I, whose leading blocks factor those of K, the ridge predictions at
    every prefix are (L - diag L) L^-1 Y: one factor serves all positions.

    Args:
        features: What is regressed on.
        following: What follows each row.
        ridges: Values of lambda, all positive.
    """
    rows, values = features.double(), following.double()
    kernel = rows @ rows.mT
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    factor = torch.linalg.cholesky(kernel + ridges.double()[:, None, None, None] * eye)
    white = torch.linalg.solve_triangular(
        factor, values.expand(len(factor), -1, -1, -1), upper=False
    )
    return factor.tril(-1) @ white
