"""The columns that spectral and column families weight, and their Gram matrices by block."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.response import FINE, hat_features
from probe.solvers.base import ColumnFamily, Fitted, Quadratic, Spectral, SpectralFamily, families
from probe.stages import Batch
from probe.statistics import BLOCKS

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Columns:
    """Hats of the response, then the ready predictions of column families.

    Attributes:
        knots: The 64 knots of the hats.
        ready: Names of the column families.
    """

    knots: tuple[float, ...]
    ready: tuple[str, ...]

    @cached_property
    def mu(self) -> Float[Tensor, " knots"]:
        """The knots as a tensor."""
        return torch.tensor(self.knots, dtype=torch.float64)

    @cached_property
    def families(self) -> tuple[tuple[ColumnFamily, slice], ...]:
        """The column families, each with its place."""
        placed, start = [], FINE
        for name, family in families().items():
            if isinstance(family, ColumnFamily) and name in self.ready:
                placed.append((family, slice(start, start + family.width)))
                start += family.width
        return tuple(placed)

    @cached_property
    def width(self) -> int:
        """Number of columns."""
        return self.families[-1][1].stop if self.families else FINE

    def of(self, batch: Batch) -> Float[Tensor, "batch time d_v columns"]:
        """The columns of a batch in float32; computed once for all views of a context."""

        def compute() -> Tensor:
            hats = hat_features(batch.context.spectrum, self.mu)
            ready = [family.columns(batch.context).float() for family, _ in self.families]
            return torch.cat([hats, *ready], -1)

        return batch.context.once(self, compute)

    def grams(
        self, batch: Batch, sites: Float[Tensor, "batch time d_v sites"], spans: Spans
    ) -> Float[Tensor, "blocks spans columns_and_sites columns_and_sites"]:
        """Products of columns and sites, by block and span of positions.

        Float32 products of short runs, summed in float64; those of the columns with themselves
        are computed once for all views of a context.
        """

        def compute() -> list[tuple[Tensor, Tensor]]:
            grouped = [rows_by_block(self.of(batch)[:, a:b], batch.blocks) for a, b in spans]
            return [(part, part.mT @ part) for part in grouped]

        whole = []
        columns = batch.context.once((self, spans), compute)
        for (grouped, gram), (a, b) in zip(columns, spans, strict=True):
            whole.append(joined(grouped, gram, rows_by_block(sites[:, a:b], batch.blocks)))
        return torch.stack(whole, 1).double()

    def fit(
        self, errors: Quadratic, rows: int, step_bound: float, curves: Iterable[str] = ()
    ) -> tuple[Fitted, ...]:
        """All members of all families, with weights over all columns.

        Args:
            errors: The error of any weighting of the columns.
            rows: How many predicted numbers it sums over.
            step_bound: The largest step of gradient descent.
            curves: The spectral families to fit; none named: all.
        """
        wanted = set(curves) or set(families())
        fitted: list[Fitted] = []
        spectral = Spectral(errors.part(slice(0, FINE)), self.mu, step_bound, rows)
        for name, family in families().items():
            if isinstance(family, SpectralFamily) and name in wanted:
                fitted += _placed(family.fit_curve(spectral), slice(0, FINE), errors)
        for ready, place in self.families:
            fitted += _placed(ready.fit_columns(errors.part(place)), place, errors)
        return tuple(fitted)


def joined(
    columns: Float[Tensor, "blocks rows columns"],
    gram: Float[Tensor, "blocks columns columns"],
    sites: Float[Tensor, "blocks rows sites"],
) -> Float[Tensor, "blocks columns_and_sites columns_and_sites"]:
    """The products of columns and sites side by side, where those of the columns are known."""
    cross = columns.mT @ sites
    above = torch.cat([gram, cross], -1)
    return torch.cat([above, torch.cat([cross.mT, sites.mT @ sites], -1)], -2)


def rows_by_block(
    columns: Float[Tensor, "batch time d_v columns"], blocks: Int[Tensor, " batch"]
) -> Float[Tensor, "blocks rows columns"]:
    """Rows of the sequences of each block; sequences of zeros that pad a block add nothing."""
    front = int(blocks[0])
    back = -(front + len(columns)) % BLOCKS
    padded = torch.nn.functional.pad(columns.flatten(1, 2), (0, 0, 0, 0, front, back))
    return padded.unflatten(0, (-1, BLOCKS)).transpose(0, 1).flatten(1, 2)


def _placed(members: Iterable[Fitted], place: slice, errors: Quadratic) -> list[Fitted]:
    """The members with weights over all columns instead of their own."""
    placed = []
    for member in members:
        weights = torch.zeros(len(errors.cross), dtype=torch.float64)
        weights[place] = member.weights
        error = float(errors.error(weights)) / errors.energy if errors.energy else float("nan")
        placed.append(replace(member, weights=weights, error=error))
    return placed
