"""How the stream carries a quantity: what reads it, and what writes it and nothing else.

A linear probe W reads a quantity u from the stream h. Its row space is no place to write to: it
depends on the basis of the stream, and a change along it moves other quantities that the stream
holds. The pattern B of u (Haufe et al. 2014, eq. 6) is the regression of the stream on u *and* on
what must stay as it is, such as the query and the layer's own prediction. Where the stream is a sum
of such parts, adding du B changes u by du and leaves the others alone, in any basis.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-6  # ridge, as a share of the mean diagonal: float32 streams may lack rank


@dataclass(frozen=True)
class Products:
    """Second moments of the stream at one layer and position with the quantities beside it.

    Attributes:
        hh: Of the stream with itself.
        hv: Of the stream with the quantities.
        vv: Of the quantities with themselves.
    """

    hh: Float[Tensor, "d_model d_model"]
    hv: Float[Tensor, "d_model quantities"]
    vv: Float[Tensor, "quantities quantities"]

    def probe(self, wanted: slice) -> Float[Tensor, "d_model width"]:
        """The linear probe of some of the quantities."""
        return ridge_solve(self.hh, self.hv[:, wanted])

    def beyond(
        self, reads: Float[Tensor, "d_model width"], held_reads: Float[Tensor, "d_model held"]
    ) -> Float[Tensor, "d_model width"]:
        """Reads what of h @ reads does not follow from h @ held_reads.

        To swap all of a quantity while one that nearly determines it is held would leave the
        range in which the stream varies.
        """
        inside = held_reads.mT @ self.hh
        return reads - held_reads @ ridge_solve(inside @ held_reads, inside @ reads)

    def decodability(self, wanted: slice) -> float:
        """In-sample R^2 of that probe, uncentred."""
        weights, energy = self.probe(wanted), self.vv[wanted, wanted].trace()
        left = energy - 2 * (weights * self.hv[:, wanted]).sum()
        left = left + torch.einsum("du,de,eu->", weights, self.hh, weights)
        return float(1 - left / energy)


def pattern(
    products: Products,
    reads: Float[Tensor, "d_model width"],
    held_reads: Float[Tensor, "d_model held_in_stream"],
    held: slice | list[int],
) -> Float[Tensor, "width d_model"]:
    """The pattern of h @ reads, with h @ held_reads and the quantities `held` kept fixed."""
    read = torch.cat([reads, held_reads], 1)
    seen = read.mT @ products.hv[:, held]
    system = torch.cat(
        [
            torch.cat([read.mT @ products.hh @ read, seen], 1),
            torch.cat([seen.mT, products.vv[held][:, held]], 1),
        ],
        0,
    )
    target = torch.cat([read.mT @ products.hh, products.hv[:, held].mT], 0)
    return ridge_solve(system, target)[: reads.shape[1]]


def ridge_solve(
    gram: Float[Tensor, "d d"], cross: Float[Tensor, "d width"]
) -> Float[Tensor, "d width"]:
    """Least squares with every column scaled to one size first, so that the floor is fair."""
    size = gram.diagonal().sqrt().clamp(min=torch.finfo(gram.dtype).tiny)
    size = size.clamp(min=float(size.max()) * 1e-9)
    scaled = gram / size[:, None] / size
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(scaled + FLOOR * eye, cross / size[:, None]) / size[:, None]
