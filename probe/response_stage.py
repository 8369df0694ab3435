"""The measurement behind every response: one Gram matrix fits and scores all solvers at all sites.

A *site* is a predictor: the model's output, and for each layer what a linear probe decodes of the
next token and what the model's own read-out says.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.columns import Columns, Spans
from probe.maps import map_errors, map_families, map_products, solve_maps
from probe.plan import SHARD
from probe.response import gcv_ridge
from probe.solvers.base import ColumnFamily, Fitted, Quadratic, families
from probe.stages import Batch, Sums
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
        maps: P of each map family, by (family, window): one matrix per site but the decoded.
        map_shares: Their errors on the fit split, as shares.
        members: All fitted members, by (site, window), with weights over all columns; layers are
            read over the judged positions only. Map families are scored apart.
        errors: The error of any weighting of the columns on the fit split, by (site, window).
    """

    sites: tuple[str, ...]
    decoders: Float[Tensor, "layers_and_one time d_model d_v"]
    maps: dict[tuple[str, str], Float[Tensor, "sites rows d_k"]]
    map_shares: dict[tuple[str, str], Float[Tensor, " sites"]]
    members: dict[tuple[str, str], tuple[Fitted, ...]]
    errors: dict[tuple[str, str], Quadratic]


@dataclass(frozen=True)
class ResponseStage:
    """Measures responses.

    Attributes:
        windows: Ranges of positions; each is fitted and scored apart.
        columns: What is weighted.
        step_bound: The largest step of gradient descent.
        views: The views to run on.
        layered: Whether layers are sites too.
        share: The share of the sequences that it looks at.
        reads: The windows over which the output is read.
        curves: The spectral families to fit; none named: all.
    """

    windows: Windows
    columns: Columns
    step_bound: float
    views: tuple[str, ...]
    layered: bool
    share: float = 1.0
    folds: int = 1
    reads: tuple[str, ...] = WINDOWS
    curves: tuple[str, ...] = ()

    @property
    def mu(self) -> Float[Tensor, " knots"]:
        """The knots."""
        return self.columns.mu

    @cached_property
    def spans(self) -> Spans:
        """The ranges between all edges of windows; every window is a union of them."""
        edges = {edge for name in WINDOWS for edge in getattr(self.windows, name)}
        return tuple(pairwise(sorted(edges)))

    def within(self, window: str) -> list[int]:
        """Indices of the spans of a window."""
        first, stop = getattr(self.windows, window)
        return [i for i, (a, b) in enumerate(self.spans) if first <= a and b <= stop]

    @property
    def _range(self) -> tuple[int, int]:
        return self.spans[0][0], self.spans[-1][1]

    def fit(self, batch: Batch) -> Sums:
        """Products of columns and sites, and the products with the stream that decoding needs."""
        batch = batch if self.share == 1 else batch.head(self.share)
        known = self._known_sites(batch)
        rows = [float(known[:, a:b, :, 0].numel()) for a, b in self.spans]
        sums = {
            "gram": self.columns.grams(batch, known, self.spans).sum(0),
            "rows": torch.tensor(rows, dtype=torch.float64),
            **map_products(batch, known, self.spans),
        }
        return sums | self._stream_products(batch) if self.layered else sums

    def _stream_products(self, batch: Batch) -> Sums:
        """Stream with itself, with the target, and with the columns, per layer and position."""
        start, stop = self._range
        stream = batch.capture.layers[:, :, start:stop].permute(0, 2, 1, 3).contiguous()
        target = batch.context.problem.targets[:, start:stop].transpose(0, 1).float()
        sample = self.columns.of(batch)[:, start:stop].flatten(2).permute(1, 2, 0)
        joined = stream.permute(1, 2, 0, 3).flatten(2)  # the layers side by side: one product
        return {
            "stream": stream.mT @ stream,
            "stream_target": stream.mT @ target,
            "columns_stream": sample @ joined,
            "target_energy": (target**2).sum((1, 2)),
            "sequences": torch.tensor(float(stream.shape[2])),
        }

    def learn(self, sums: Sums) -> Learned:
        """Decoders first; then every family at every site and window."""
        total = {name: value.sum(0) for name, value in sums.items()}
        decoders = self._decoders(total)
        gram = self._with_decoded(total, decoders)
        sites = _site_names(len(decoders))
        members: dict[tuple[str, str], tuple[Fitted, ...]] = {}
        errors: dict[tuple[str, str], Quadratic] = {}
        for i, site in enumerate(sites):
            for window in self.reads if site == OUTPUT else WINDOWS[:1]:
                spans = self.within(window)
                form = _quadratic(gram[spans].sum(0), self.columns.width, i)
                errors[site, window] = form
                rows = int(total["rows"][spans].sum())
                fitted = self.columns.fit(form, rows, self.step_bound, self.curves)
                members[site, window] = fitted
        maps = self._solve_maps(total)
        return Learned(sites, decoders, maps, self._map_shares(total, maps), members, errors)

    def _decoders(self, total: Sums) -> Tensor:
        """Ridge by generalised cross-validation, per layer and position."""
        if not self.layered:
            return torch.zeros(0, 0, 0, 0)
        gram, cross = total["stream"], total["stream_target"]
        energy = total["target_energy"].expand(gram.shape[:2])
        # Sums of float32 products: penalties below their rounding noise would fit the noise.
        floor = SHARD * torch.finfo(torch.float32).eps
        sequences = int(total["sequences"])
        return gcv_ridge(gram, cross, energy, sequences, floor=floor).coefficients

    def _with_decoded(self, total: Sums, decoders: Tensor) -> Tensor:
        """The Gram with the decoded sites, from products of columns and stream."""
        gram, width = total["gram"], self.columns.width
        if not self.layered:
            return gram
        products = total["columns_stream"].unflatten(2, (len(decoders), -1))
        products = products.unflatten(1, (-1, width))
        cross = torch.einsum("tvcld,ltdv->tcl", products, decoders)
        energy = torch.einsum("ltdv,ltde,ltev->tl", decoders, total["stream"], decoders)
        start = self.spans[0][0]
        parts = [slice(a - start, b - start) for a, b in self.spans]
        crosses = torch.stack([cross[part].sum(0) for part in parts])
        energies = torch.stack([energy[part].sum(0) for part in parts])
        return _insert_sites(gram, crosses, energies, width)

    def _solve_maps(self, total: Sums) -> dict[tuple[str, str], Tensor]:
        return {
            (family.name, window): solve_maps(
                total[f"{family.name}:gram"][self.within(window)].sum(0),
                total[f"{family.name}:cross"][self.within(window)].sum(0),
            )
            for family in map_families()
            for window in WINDOWS
        }

    def _map_shares(
        self, total: Sums, maps: dict[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], Tensor]:
        """P solves the normal equations, so what it leaves is |y|^2 - <P, cross>."""
        shares = {}
        for (family, window), solved in maps.items():
            spans = self.within(window)
            explained = (solved * total[f"{family}:cross"][spans].sum(0)).sum((1, 2))
            energy = total["gram"][spans].sum(0).diagonal()[self.columns.width :]
            shares[family, window] = 1 - explained / energy
        return shares

    def test(self, batch: Batch, learned: Learned) -> Sums:
        """The same products by block, and the errors of the map families."""
        batch = batch if self.share == 1 else batch.head(self.share)
        known = self._known_sites(batch)
        sites = self._with_decoded_sites(batch, known, learned)
        windows = {name: getattr(self.windows, name) for name in WINDOWS}
        return {
            "gram": self.columns.grams(batch, sites, self.spans),
            **map_errors(batch, known, learned.maps, windows),
        }

    def _known_sites(self, batch: Batch) -> Tensor:
        """The output, and the read-outs of the layers."""
        sites = batch.capture.output[..., None]
        if self.layered:
            sites = torch.cat([sites, batch.capture.readouts.permute(1, 2, 3, 0)], -1)
        return sites.float()

    def _with_decoded_sites(self, batch: Batch, known: Tensor, learned: Learned) -> Tensor:
        if not self.layered:
            return known
        start, stop = self._range
        stream = batch.capture.layers[:, :, start:stop].permute(0, 2, 1, 3)
        decoded = (stream @ learned.decoders.float()).permute(2, 1, 3, 0)
        padding = (0, 0, 0, 0, start, known.shape[1] - stop)
        padded = torch.nn.functional.pad(decoded, padding)
        return torch.cat([known[..., :1], padded, known[..., 1:]], -1)


def response_stages(setting: Setting) -> tuple[ResponseStage, ResponseStage, ResponseStage]:
    """The response of the subject with its layers; of twin and planted layer; of swapped contexts.

    The swapped contexts need columns of their own, so they are spared the costly nulls, and a
    quarter of the sequences must do: they are there to check the instrument.
    """
    every = tuple(name for name, f in families().items() if isinstance(f, ColumnFamily))
    columns = Columns(setting.knots, every)
    cheap = Columns(setting.knots, ("mean", "oracle", "two_lag_copy", "zero"))
    fixed = setting.windows, setting.step_bound
    return (
        ResponseStage(fixed[0], columns, fixed[1], (SUBJECT,), layered=True),
        ResponseStage(fixed[0], columns, fixed[1], (TWIN, PLANTED), layered=False),
        ResponseStage(fixed[0], cheap, fixed[1], (SWAPPED,), layered=False, share=0.25),
    )


def _site_names(layers: int) -> tuple[str, ...]:
    kinds = [f"{kind}:{layer}" for kind in ("decoded", "readout") for layer in range(layers)]
    return (OUTPUT, *kinds)


def _quadratic(products: Tensor, width: int, site: int) -> Quadratic:
    place = width + site
    energy = float(products[place, place])
    return Quadratic(products[:width, :width], products[:width, place], energy)


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
