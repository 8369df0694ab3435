"""The reference mesa-layer: least squares solved exactly at every prefix.

At position t it returns Phi_t q_t with Phi_t = argmin over Phi of
1/2 sum_{j<=t} |v_j - Phi k_j|^2 + lambda/2 |Phi|^2, that is C_t (G_t + lambda I)^-1 q_t
(von Oswald et al. 2023, eq. 8, with their role names put right).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def mesa_layer(
    keys: Float[Tensor, "batch time heads d_k"],
    values: Float[Tensor, "batch time heads d_v"],
    queries: Float[Tensor, "batch time heads d_k"],
    ridge: Float[Tensor, " heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Direct solve at every prefix, in float64; differentiable.

    Takes O(T d_k^2) memory and O(T d_k^3) time per sequence and head.

    Args:
        keys: k_j.
        values: v_j.
        queries: q_t.
        ridge: lambda > 0 of each head, in the units of the keys squared.

    Raises:
        torch.linalg.LinAlgError: A moment matrix is not positive definite, as with ridge <= 0.
    """
    k, v, q = (t.double().transpose(1, 2) for t in (keys, values, queries))
    penalty = ridge.double()[:, None, None, None] * torch.eye(k.shape[-1], device=k.device)
    gram = (k[..., :, None] * k[..., None, :]).cumsum(2) + penalty
    factor = torch.linalg.cholesky(gram)
    solved = torch.cholesky_solve(q[..., None], factor)[..., 0]
    weights = (solved @ k.mT).tril()
    return (weights @ v).transpose(1, 2).to(values.dtype)
