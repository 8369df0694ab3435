"""The measurement behind every response: one Gram matrix fits and scores all solvers at all sites.

A *site* is a predictor: the model's output, and for each layer what a linear probe decodes of the
next token and what the model's own read-out says. Columns are the hats of the response, the ready
predictions of the column families, and the sites themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.response import FINE, gcv_solve, hat_features
from probe.solvers.base import (
    ColumnFamily,
    Fitted,
    MapFamily,
    Quadratic,
    Spectral,
    SpectralFamily,
    families,
)
from probe.statistics import BLOCKS
from probe.sweep import Batch, Sums
from probe.tasks.base import Windows
from probe.views import PLANTED, SUBJECT, SWAPPED, TWIN

WINDOWS = ("judged", "unsolved", "solved")
OUTPUT = "output"


@dataclass(frozen=True)
class Learned:
    """What the fit split gives.

    Attributes:
        sites: Names of the sites: "output", then "decoded:l" and "readout:l".
        decoders: Linear probes of the next token, per layer and position.
        maps: P of each map family, by (family, window): one matrix per site.
        members: All fitted members, by (site, window), with weights over all columns; layers
            are read over the judged positions only. Map families are scored apart.
        errors: The error of any weighting of the columns on the fit split, by (site, window).
    """

    sites: tuple[str, ...]
    decoders: Float[Tensor, "layers_and_one time d_model d_v"]
    maps: dict[tuple[str, str], Float[Tensor, "sites rows d_k"]]
    members: dict[tuple[str, str], tuple[Fitted, ...]]
    errors: dict[tuple[str, str], Quadratic]


@dataclass(frozen=True)
class ResponseStage:
    """Measures responses.

    Attributes:
        windows: Ranges of positions; each is fitted and scored apart.
        knots: The 64 knots.
        step_bound: The largest step of gradient descent.
        views: The views to run on.
        layered: Whether layers are sites too.
    """

    windows: Windows
    knots: tuple[float, ...]
    step_bound: float
    views: tuple[str, ...]
    layered: bool
    folds: int = 1

    def __hash__(self) -> int:
        """Cheap, since stages are keys."""
        return hash((self.knots[0], self.views, self.layered))

    @cached_property
    def atoms(self) -> tuple[tuple[int, int], ...]:
        """The ranges between all edges of windows; every window is a union of them."""
        edges = {edge for name in WINDOWS for edge in getattr(self.windows, name)}
        return tuple(pairwise(sorted(edges)))

    def within(self, window: str) -> list[int]:
        """Indices of the atoms of a window."""
        first, stop = getattr(self.windows, window)
        return [i for i, (a, b) in enumerate(self.atoms) if first <= a and b <= stop]

    @cached_property
    def mu(self) -> Float[Tensor, " knots"]:
        """The knots as a tensor."""
        return torch.tensor(self.knots, dtype=torch.float64)

    # --- fit split ---------------------------------------------------------------------------

    def fit(self, batch: Batch) -> Sums:
        """Products of columns and sites, and the products with the stream that decoding needs."""
        columns = self._columns(batch)
        known = self._known_sites(batch)
        stacked = torch.cat([columns, known], -1)
        sums = {"gram": self._grams(stacked, batch).sum(0)}
        sums |= self._map_products(batch, known)
        if self.layered:
            sums |= self._stream_products(batch, columns)
        sums["rows"] = torch.tensor(
            [float(part[..., 0].numel()) for part in self._split(columns)], dtype=torch.float64
        )
        return sums

    def learn(self, sums: Sums) -> Learned:
        """Decoders first; then every family at every site and window."""
        total = {name: value.sum(0) for name, value in sums.items()}
        decoders = self._decoders(total)
        gram = self._with_decoded(total, decoders)
        sites = self._site_names(decoders)
        members: dict[tuple[str, str], tuple[Fitted, ...]] = {}
        errors: dict[tuple[str, str], Quadratic] = {}
        for i, site in enumerate(sites):
            for window in WINDOWS if site == OUTPUT else WINDOWS[:1]:
                atoms = self.within(window)
                form = _quadratic(gram[atoms].sum(0), self._width, self._width + i)
                errors[site, window] = form
                members[site, window] = self._fit_all(form, int(total["rows"][atoms].sum()))
        return Learned(sites, decoders, self._solve_maps(total), members, errors)

    def _fit_all(self, errors: Quadratic, rows: int) -> tuple[Fitted, ...]:
        fitted: list[Fitted] = []
        spectral = Spectral(errors.part(slice(0, FINE)), self.mu, self.step_bound, rows)
        for family in families().values():
            if isinstance(family, SpectralFamily):
                fitted += _placed(family.fit_curve(spectral), slice(0, FINE), errors)
        for column_family, place in self._column_families:
            fitted += _placed(column_family.fit_columns(errors.part(place)), place, errors)
        return tuple(fitted)

    def _stream_products(self, batch: Batch, columns: Tensor) -> Sums:
        """Stream with itself, with the target, and with the columns, per layer and position."""
        start, stop = self.atoms[0][0], self.atoms[-1][1]
        stream = batch.capture.layers[:, :, start:stop].permute(0, 2, 1, 3).contiguous()
        target = batch.context.problem.targets[:, start:stop].transpose(0, 1).float()
        sample = columns[:, start:stop].flatten(2).permute(1, 2, 0)
        joined = stream.permute(1, 2, 0, 3).flatten(2)  # the layers side by side: one product
        return {
            "stream": stream.mT @ stream,
            "stream_target": stream.mT @ target,
            "columns_stream": sample @ joined,
            "target_energy": (target**2).sum((1, 2)),
            "sequences": torch.tensor(float(stream.shape[2])),
        }

    def _decoders(self, total: Sums) -> Tensor:
        """Ridge by generalised cross-validation, per layer and position."""
        if not self.layered:
            return torch.zeros(0, 0, 0, 0)
        gram, cross = total["stream"], total["stream_target"]
        energy = total["target_energy"].expand(gram.shape[:2])
        rows = int(total["sequences"])
        eye = torch.eye(gram.shape[-1], dtype=torch.float64)
        return gcv_solve(gram, cross, energy, eye, rows).coefficients

    def _with_decoded(self, total: Sums, decoders: Tensor) -> Tensor:
        """The Gram with the decoded sites, from products of columns and stream."""
        gram = total["gram"]
        if not self.layered:
            return gram
        products = total["columns_stream"].unflatten(2, (len(decoders), -1))
        products = products.unflatten(1, (-1, self._width))
        cross = torch.einsum("tvcld,ltdv->tcl", products, decoders)
        energy = torch.einsum("ltdv,ltde,ltev->tl", decoders, total["stream"], decoders)
        start = self.atoms[0][0]
        parts = [slice(a - start, b - start) for a, b in self.atoms]
        crosses = torch.stack([cross[part].sum(0) for part in parts])
        energies = torch.stack([energy[part].sum(0) for part in parts])
        return _insert_sites(gram, crosses, energies, self._width)

    # --- test split --------------------------------------------------------------------------

    def test(self, batch: Batch, learned: Learned) -> Sums:
        """The same products by block, and the errors of the map families."""
        sites = self._all_sites(batch, learned)
        stacked = torch.cat([self._columns(batch), sites], -1)
        return {
            "gram": self._grams(stacked, batch),
            "rows": batch.by_block(torch.ones(len(stacked))),
            **self._map_errors(batch, sites, learned),
        }

    def _all_sites(self, batch: Batch, learned: Learned) -> Tensor:
        known = self._known_sites(batch)
        if not self.layered:
            return known
        start, stop = self.atoms[0][0], self.atoms[-1][1]
        stream = batch.capture.layers[:, :, start:stop]
        decoded = torch.einsum("lbtd,ltdv->btvl", stream, learned.decoders.float())
        padded = torch.nn.functional.pad(decoded, (0, 0, 0, 0, start, known.shape[1] - stop))
        return torch.cat([known[..., :1], padded, known[..., 1:]], -1)

    # --- columns and sites -------------------------------------------------------------------

    @cached_property
    def _column_families(self) -> list[tuple[ColumnFamily, slice]]:
        placed, start = [], FINE
        for family in families().values():
            if isinstance(family, ColumnFamily):
                placed.append((family, slice(start, start + family.width)))
                start += family.width
        return placed

    @cached_property
    def _width(self) -> int:
        return self._column_families[-1][1].stop

    def _columns(self, batch: Batch) -> Tensor:
        context = batch.context
        hats = hat_features(context.spectrum, self.mu)
        ready = [family.columns(context).float() for family, _ in self._column_families]
        return torch.cat([hats, *ready], -1)

    def _known_sites(self, batch: Batch) -> Tensor:
        """The output, and the read-outs of the layers."""
        sites = batch.capture.output[..., None]
        if self.layered:
            sites = torch.cat([sites, batch.capture.readouts.permute(1, 2, 3, 0)], -1)
        return sites.float()

    def _site_names(self, decoders: Tensor) -> tuple[str, ...]:
        layers = range(len(decoders))
        return (
            OUTPUT,
            *(f"decoded:{layer}" for layer in layers),
            *(f"readout:{layer}" for layer in layers),
        )

    def _grams(self, columns: Tensor, batch: Batch) -> Tensor:
        """Gram matrices by block and atom: float32 products of short runs, summed in float64."""
        parts = [_gram_by_block(part, batch) for part in self._split(columns)]
        return torch.stack(parts, 1).double()

    def _split(self, columns: Tensor) -> list[Tensor]:
        return [columns[:, a:b] for a, b in self.atoms]

    # --- map families: y = L P q -------------------------------------------------------------

    @property
    def _map_families(self) -> list[MapFamily]:
        return [family for family in families().values() if isinstance(family, MapFamily)]

    def _map_products(self, batch: Batch, known: Tensor) -> Sums:
        """Normal equations of P by atom: sums of (L^T L) x (q q^T) and of L^T y q^T."""
        query = batch.context.problem.queries.double()
        sums: Sums = {}
        for family in self._map_families:
            left = family.left(batch.context)
            outer = (left.mT @ left).flatten(2)
            moved = (left.mT @ known.double()).transpose(2, 3)
            sums[f"{family.name}:gram"] = torch.stack(
                [
                    outer[:, a:b].flatten(0, 1).mT
                    @ (query[:, a:b, :, None] * query[:, a:b, None, :]).flatten(2).flatten(0, 1)
                    for a, b in self.atoms
                ]
            )
            sums[f"{family.name}:cross"] = torch.stack(
                [torch.einsum("btsr,btk->srk", moved[:, a:b], query[:, a:b]) for a, b in self.atoms]
            )
        return sums

    def _solve_maps(self, total: Sums) -> dict[tuple[str, str], Tensor]:
        """P for the known sites; decoded sites are not asked for maps of their own."""
        maps = {}
        for family in self._map_families:
            for window in WINDOWS:
                atoms = self.within(window)
                cross = total[f"{family.name}:cross"][atoms].sum(0)
                sites, rows, width = cross.shape
                gram = total[f"{family.name}:gram"][atoms].sum(0)
                normal = gram.view(rows, rows, width, width).permute(0, 2, 1, 3).flatten(2)
                normal = normal.flatten(0, 1)
                floor = torch.finfo(torch.float32).eps * normal.diagonal().mean()
                normal = normal + floor * torch.eye(len(normal), dtype=torch.float64)
                solution = torch.linalg.solve(normal, cross.flatten(1).mT).mT
                maps[family.name, window] = solution.view(sites, rows, width)
        return maps

    def _map_errors(self, batch: Batch, sites: Tensor, learned: Learned) -> Sums:
        known = torch.cat([sites[..., :1], sites[..., 1 + len(learned.decoders) :]], -1)
        query = batch.context.problem.queries.double()
        sums: Sums = {}
        for family in self._map_families:
            left = family.left(batch.context)
            for window in WINDOWS:
                a, b = getattr(self.windows, window)
                moved = torch.einsum(
                    "srk,btk->btrs", learned.maps[family.name, window], query[:, a:b]
                )
                error = ((left[:, a:b] @ moved - known[:, a:b]) ** 2).sum((1, 2))
                sums[f"{family.name}:{window}"] = batch.by_block(error)
        return sums


def response_stages(setting: Setting) -> tuple[ResponseStage, ResponseStage]:
    """The response of the subject with its layers, and of the outputs of the other views."""

    def stage(views: tuple[str, ...], layered: bool) -> ResponseStage:
        return ResponseStage(setting.windows, setting.knots, setting.step_bound, views, layered)

    return stage((SUBJECT,), True), stage((TWIN, SWAPPED, PLANTED), False)


def _placed(members: Iterable[Fitted], place: slice, errors: Quadratic) -> list[Fitted]:
    """The members with weights over all columns instead of their own."""
    placed = []
    for member in members:
        weights = torch.zeros(len(errors.cross), dtype=torch.float64)
        weights[place] = member.weights
        error = float(errors.error(weights)) / errors.energy if errors.energy else float("nan")
        placed.append(replace(member, weights=weights, error=error))
    return placed


def _quadratic(products: Tensor, width: int, site: int) -> Quadratic:
    return Quadratic(products[:width, :width], products[:width, site], float(products[site, site]))


def _gram_by_block(columns: Tensor, batch: Batch) -> Tensor:
    """Gram matrices of the sequences of each block; padded sequences of zeros add nothing."""
    front = int(batch.blocks[0])
    back = -(front + len(columns)) % BLOCKS
    padded = torch.nn.functional.pad(columns.flatten(1, 2), (0, 0, 0, 0, front, back))
    grouped = padded.unflatten(0, (-1, BLOCKS)).transpose(0, 1).flatten(1, 2)
    return grouped.mT @ grouped


def _insert_sites(gram: Tensor, cross: Tensor, energy: Tensor, width: int) -> Tensor:
    """Puts decoded sites between the output and the read-outs; products of sites stay unknown."""
    before, after = width + 1, gram.shape[-1] - width - 1
    count = cross.shape[-1]
    size = gram.shape[-1] + count
    full = torch.zeros(len(gram), size, size, dtype=gram.dtype)
    old = torch.cat([torch.arange(before), torch.arange(after) + before + count])
    full[:, old[:, None], old] = gram
    new = torch.arange(count) + before
    full[:, :width, before : before + count] = cross
    full[:, before : before + count, :width] = cross.mT
    full[:, new, new] = energy
    return full
