"""The response of the output on problems that are posed otherwise: other objectives or features.

Every posing has moments, queries and so a spectrum of its own; the response f is fitted anew under
each, at some of the judged positions and on some of the sequences.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.columns import Columns, joined, rows_by_block
from probe.problem import Spectrum
from probe.response import FINE, hat_features
from probe.solvers.base import Fitted, Quadratic
from probe.stages import Batch, Measured, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.views import SUBJECT

LEAST_SHARE = 0.125  # of the sequences: 32 of a shard of 256, in half of the blocks
ENOUGH = 512  # sequences of each split
Places = tuple[int, ...]


def enough(sequences: int) -> float:
    """The share of the sequences of a run that these responses look at."""
    return min(1.0, max(LEAST_SHARE, 2 * ENOUGH / sequences))


def places_of(window: tuple[int, int], every: int) -> Places:
    """Every so many positions of a window: neighbouring ones hold nearly the same pairs."""
    return tuple(range(*window, every))


@runtime_checkable
class Posing(Protocol):
    """One way to pose the in-context problem of a batch."""

    @property
    def name(self) -> str:
        """The way in words."""

    @property
    def knots(self) -> tuple[float, ...]:
        """The knots of its response."""

    def spectrum(self, batch: Batch, places: Places) -> Spectrum:
        """Its moments in their eigenbases, with its queries, at the positions asked for."""


@dataclass(frozen=True)
class ExtensionStage:
    """The response of the output under every posing.

    Attributes:
        posings: The posings.
        places: The positions.
        step_bound: The largest step of gradient descent.
        share: The share of the sequences that it looks at.
        views: The views; those that share a context share the columns of the first.
    """

    posings: tuple[Posing, ...]
    places: Places
    step_bound: float
    share: float
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Products of hats and output, summed over the sequences."""
        seen = batch.head(self.share)
        rows = torch.tensor(float(len(seen.blocks)))
        return {"gram": self._products(seen).sum(0), "rows": rows}

    def learn(self, sums: Sums) -> tuple[tuple[Fitted, ...], ...]:
        """The spectral families under each posing."""
        rows = int(sums["rows"].sum()) * len(self.places)
        forms = [
            Quadratic(gram[:FINE, :FINE], gram[:FINE, FINE], float(gram[FINE, FINE]))
            for gram in sums["gram"].sum(0)
        ]
        return tuple(
            Columns(posing.knots, ()).fit(form, rows, self.step_bound)
            for posing, form in zip(self.posings, forms, strict=True)
        )

    def test(self, batch: Batch, learned: tuple[tuple[Fitted, ...], ...]) -> Sums:
        """The same products by block, and the distance of the output from the oracle."""
        seen = batch.head(self.share)
        places = list(self.places)
        distance = (seen.capture.output - seen.context.problem.oracle)[:, places].double()
        return {
            "gram": self._products(seen),
            "from_oracle": seen.by_block(distance.square().sum((1, 2))),
        }

    def _products(self, batch: Batch) -> Float[Tensor, "blocks posings columns columns"]:
        """By block: X^T X of the hats under each posing with the output beside them."""
        hats = batch.context.once(self, lambda: [self._hats(batch, one) for one in self.posings])
        said = rows_by_block(batch.capture.output[:, list(self.places), :, None], batch.blocks)
        return torch.stack([joined(part, gram, said.float()) for part, gram in hats], 1).double()

    def _hats(self, batch: Batch, posing: Posing) -> tuple[Tensor, Tensor]:
        """The hats under a posing by block, and their products, which all views share."""
        knots = torch.tensor(posing.knots, dtype=torch.float64)
        hats = hat_features(posing.spectrum(batch, self.places), knots)
        rows = rows_by_block(hats, batch.blocks)
        return rows, rows.mT @ rows


@dataclass(frozen=True)
class Responses:
    """What the stage measured through one view, as scores of its posings.

    Attributes:
        stage: The stage.
        measured: Its learned families and test sums.
    """

    stage: ExtensionStage
    measured: Measured

    def member(self, place: int, family: str = "spline") -> Fitted:
        """The member of a family of least error on the fit split."""
        members: tuple[Fitted, ...] = self.measured.learned[place]
        return min((m for m in members if m.family == family), key=lambda m: m.error)

    def families(self, place: int) -> list[str]:
        """The families that were fitted under a posing."""
        return list(dict.fromkeys(member.family for member in self.measured.learned[place]))

    def errors(
        self, place: int, curves: Float[Tensor, "curves knots"]
    ) -> Float[Tensor, "blocks curves"]:
        """Summed squared error on the test split of any curves of shrinkage."""
        gram = self.measured.sums["gram"][:, place]
        weights = torch.nn.functional.pad(curves, (0, 1), value=-1.0)
        return torch.einsum("rc,bcd,rd->br", weights, gram, weights)

    def error(self, place: int, family: str = "spline") -> Float[Tensor, " blocks"]:
        """Of the fitted member."""
        return self.errors(place, self.member(place, family).weights[None])[:, 0]

    @property
    def energy(self) -> Float[Tensor, " blocks"]:
        """Summed squares of the output."""
        return self.measured.sums["gram"][:, 0, FINE, FINE]

    def r2(self, place: int, family: str = "spline") -> Interval:
        """1 - sum |y - yhat|^2 / sum |y|^2."""
        return share_explained(self.error(place, family), self.energy)

    def error_r2(self, place: int, family: str = "spline") -> Interval:
        """1 - sum |y - yhat|^2 / sum |y - oracle|^2."""
        return share_explained(self.error(place, family), self.measured.sums["from_oracle"])

    def gain(self, place: int, over: int) -> Interval:
        """R^2 of the free response of one posing minus that of another, paired by block."""
        difference = self.error(over) - self.error(place)
        return bootstrap_interval(lambda weights: (weights @ difference) / (weights @ self.energy))
