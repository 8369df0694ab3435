"""Map families y = L_t P q_t: the normal equations of P, and the errors of fitted maps."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from probe.columns import Spans
from probe.solvers.base import MapFamily, families
from probe.stages import Batch, Sums


def map_families() -> list[MapFamily]:
    """The installed map families."""
    return [family for family in families().values() if isinstance(family, MapFamily)]


def _left(family: MapFamily, batch: Batch) -> Tensor:
    return batch.context.once(family.name, lambda: family.left(batch.context))


def map_products(batch: Batch, sites: Float[Tensor, "batch time d_v sites"], spans: Spans) -> Sums:
    """Sums of (L^T L) x (q q^T) and of L^T y q^T, per span of positions."""
    query = batch.context.problem.queries.double()
    sums: Sums = {}
    for family in map_families():
        left = _left(family, batch)
        moved = (left.mT @ sites.double()).transpose(2, 3)
        crosses = [torch.einsum("btsr,btk->srk", moved[:, a:b], query[:, a:b]) for a, b in spans]
        sums[f"{family.name}:cross"] = torch.stack(crosses)
        compute = partial(_normal_matrices, left, query, spans)
        sums[f"{family.name}:gram"] = batch.context.once((family.name, spans), compute)
    return sums


def _normal_matrices(left: Tensor, query: Tensor, spans: Spans) -> Tensor:
    outer = (left.mT @ left).flatten(2)
    squares = (query[..., :, None] * query[..., None, :]).flatten(2)
    return torch.stack([_products(_during(outer, a, b), squares[:, a:b]) for a, b in spans])


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Sums of outer products over batch and time."""
    if left.shape[:2] == (1, 1):
        return left.flatten(0, 1).mT @ right.sum((0, 1))[None]
    return left.flatten(0, 1).mT @ right.flatten(0, 1)


def _during(quantity: Tensor, start: int, stop: int) -> Tensor:
    """The positions [start, stop) of a quantity that may be one for all positions."""
    return quantity if quantity.shape[1] == 1 else quantity[:, start:stop]


def solve_maps(
    gram: Float[Tensor, "rows_squared d_k_squared"], cross: Float[Tensor, "sites rows d_k"]
) -> Float[Tensor, "sites rows d_k"]:
    """P of every site by least squares, with a ridge at the rounding noise of float32."""
    _, rows, width = cross.shape
    normal = gram.view(rows, rows, width, width).permute(0, 2, 1, 3).reshape(rows * width, -1)
    floor = torch.finfo(torch.float32).eps * normal.diagonal().mean()
    normal = normal + floor * torch.eye(len(normal), dtype=normal.dtype)
    return torch.linalg.solve(normal, cross.flatten(1).mT).mT.reshape(cross.shape)


def map_errors(
    batch: Batch,
    sites: Float[Tensor, "batch time d_v sites"],
    maps: Mapping[tuple[str, str], Float[Tensor, "sites rows d_k"]],
    windows: Mapping[str, tuple[int, int]],
) -> Sums:
    """Summed squared errors by block and site, for each (family, window)."""
    query = batch.context.problem.queries.double()
    sums: Sums = {}
    for family in map_families():
        left = _left(family, batch)
        for window, (a, b) in windows.items():
            moved = torch.einsum("srk,btk->btrs", maps[family.name, window], query[:, a:b])
            error = ((_during(left, a, b) @ moved - sites[:, a:b]) ** 2).sum((1, 2))
            sums[f"{family.name}:{window}"] = batch.by_block(error)
    return sums
