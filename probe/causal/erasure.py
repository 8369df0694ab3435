"""Erasing a quantity from the stream with other quantities kept (LEACE, Belrose et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from probe.causal.patterns import Products, ridge_solve


def erasing(
    products: Products,
    held_reads: Float[Tensor, "d_model held_in_stream"],
    held: list[int],
    erased: slice,
) -> Float[Tensor, "d_model_and_held d_model"]:
    """The change that erases a quantity as far as it does not follow from what is held.

    Both the stream and the quantity are first freed of their regression on what is held; what is
    left of the stream is projected so that nothing of the quantity can be decoded linearly.

    Args:
        products: Second moments at the layer and position.
        held_reads: Reads the quantities in the stream that are held.
        held: Columns of the quantities beside the stream that are held.
        erased: Columns of the quantity to be erased.

    Returns:
        E with dh = [h, held quantities] @ E.
    """
    hh, hv, vv = products.hh, products.hv, products.vv
    seen = held_reads.mT @ hv[:, held]
    inside = torch.cat([held_reads.mT @ hh @ held_reads, seen], 1)
    system = torch.cat([inside, torch.cat([seen.mT, vv[held][:, held]], 1)], 0)
    of_stream = torch.cat([held_reads.mT @ hh, hv[:, held].mT], 0)
    of_erased = torch.cat([held_reads.mT @ hv[:, erased], vv[held][:, erased]], 0)
    fit = ridge_solve(system, of_stream)
    covariance = hh - of_stream.mT @ fit
    cross = hv[:, erased] - fit.mT @ of_erased
    removed = projection(covariance, cross)
    # What is left of the stream: h - [h @ held_reads, held quantities] @ fit.
    inside_fit, beside_fit = fit[: held_reads.shape[1]], fit[held_reads.shape[1] :]
    left = torch.eye(len(hh), dtype=hh.dtype) - held_reads @ inside_fit
    return torch.cat([-left @ removed.mT, beside_fit @ removed.mT], 0)


def projection(
    covariance: Float[Tensor, "d d"], cross: Float[Tensor, "d width"]
) -> Float[Tensor, "d d"]:
    """P with x - P x as near to x as can be and without linear information about the concept.

    P = S_xz (S_zx S_xx^-1 S_xz)^-1 S_zx S_xx^-1; Belrose et al. 2023, theorem 4.3, for a cross
    covariance of full column rank. Directions in which the stream holds rounding noise only do
    not count: they would be blown up.

    Args:
        covariance: S_xx of the stream.
        cross: S_xz of the stream with the concept.
    """
    mu, basis = torch.linalg.eigh(covariance)
    kept = mu > len(mu) * torch.finfo(torch.float32).eps * mu[-1]
    inverse = (basis * torch.where(kept, 1 / mu, 0.0)) @ basis.mT
    reads = inverse @ cross
    return cross @ torch.linalg.pinv(cross.mT @ reads, hermitian=True) @ reads.mT
