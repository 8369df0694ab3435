"""The update of linear attention as a sum of terms in its slots, and the moments that score them.

With block scalars a block adds to slot e the sum over slots a, b, c of
c[a, b, c, e] sum_j (z_t[a] . z_j[b]) z_j[c], with c[a, b, c, e] = sum over heads A[a, b] B[c, e].
Only these sums over heads act, so heads need not be told apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.stages import Batch, Measured, Sums
from probe.statistics import Interval, share_explained
from probe.views import SUBJECT
from probe.weights.blocks import Scalars
from probe.weights.slots import SlotBasis

Places = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def coefficients(layer: Scalars) -> Float[Tensor, "slots slots slots slots"]:
    """c[a, b, c, e], of query, key, value and the slot that is written."""
    return torch.einsum("hab,hce->abce", layer.scores, layer.values)


@dataclass(frozen=True, eq=False)
class TermStage:
    """Moments of all terms of every block, and of some with the pairs of another sequence.

    Attributes:
        basis: The slots.
        causal: Whether a token sees no later ones.
        every: Terms are computed at every so many positions.
        foreign: Slots of query, key and value of the terms that are computed for foreign pairs too.
        views: Where it runs.
        folds: The fit sums are kept whole.
    """

    basis: SlotBasis
    causal: bool
    every: int
    foreign: Places
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Sums over sequences, per block of the model."""
        return {name: value.sum(0) for name, value in self._moments(batch).items()}

    def learn(self, sums: Sums) -> Sums:
        """The sums as they are."""
        return {name: value[0] for name, value in sums.items()}

    def test(self, batch: Batch, learned: Sums) -> Sums:
        """Sums by block of sequences."""
        return {name: batch.by_block(value) for name, value in self._moments(batch).items()}

    def _moments(self, batch: Batch) -> Sums:
        """Per sequence, with an axis of the model's blocks after it."""
        seen = batch.capture
        found = [self._of_block(*parts) for parts in zip(seen.layers, seen.updates, strict=False)]
        moments = {name: torch.stack([one[name] for one in found], 1) for name in found[0]}
        return {**moments, "sequences": torch.ones(len(seen.output), dtype=torch.float64)}

    def _of_block(
        self,
        stream: Float[Tensor, "batch time d_model"],
        update: Float[Tensor, "batch time d_model"],
    ) -> Sums:
        slots = (stream.double() @ self.basis.read).unflatten(-1, (self.basis.count, -1))
        added = (update.double() @ self.basis.read).unflatten(-1, (self.basis.count, -1))
        added = added[:, :: self.every]
        a, b, c = map(list, self.foreign)
        foreign = slots.roll(1, 0)
        return {
            **_second("", self._terms(slots, slots, slots), added),
            **_second(
                "foreign ", self._terms(slots[:, :, a], foreign[:, :, b], foreign[:, :, c]), added
            ),
            "energy": added.square().sum((1, 3)),
        }

    def _terms(
        self,
        queries: Float[Tensor, "batch time a d"],
        keys: Float[Tensor, "batch time b d"],
        values: Float[Tensor, "batch time c d"],
    ) -> Float[Tensor, "batch terms times d"]:
        """Terms in the order of a, b, c."""
        length = keys.shape[1]
        scores = torch.einsum("btad,bjcd->bactj", queries[:, :: self.every], keys)
        if self.causal:
            scores = scores * torch.ones(length, length).tril()[:: self.every]
        mixed = scores @ values.flatten(2)[:, None, None]
        return mixed.unflatten(-1, values.shape[2:]).movedim(-2, 3).flatten(1, 3)


def _second(
    name: str,
    terms: Float[Tensor, "batch terms times d"],
    added: Float[Tensor, "batch times slots d"],
) -> Sums:
    """Products of terms with each other and with what was added to each slot."""
    flat = terms.flatten(2)
    return {
        f"{name}gram": flat @ flat.mT,
        f"{name}cross": flat @ added.transpose(1, 2).flatten(2).mT,
    }


@dataclass(frozen=True)
class Scores:
    """What sums of terms explain of a block's update, on the test split.

    Attributes:
        sums: Moments of one block of the model, by block of sequences.
        foreign: Slots of the terms that were computed for foreign pairs.
    """

    sums: Sums = field(repr=False)
    foreign: Places

    @classmethod
    def of(cls, stage: TermStage, measured: Measured) -> tuple["Scores", ...]:
        """One per block of the model."""
        kept = {name: value for name, value in measured.sums.items() if name != "sequences"}
        layers = kept["gram"].shape[1]
        return tuple(
            cls({name: value[:, layer] for name, value in kept.items()}, stage.foreign)
            for layer in range(layers)
        )

    def share(self, weights: Float[Tensor, "slots slots slots"], into: int) -> Interval:
        """R^2 of the update of a slot by these coefficients."""
        return self._share("", weights.flatten(), into)

    def foreign_share(self, weights: Float[Tensor, "slots slots slots"], into: int) -> Interval:
        """The same with the pairs of another sequence; of the foreign terms alone."""
        a, b, c = map(list, self.foreign)
        return self._share("foreign ", weights[a][:, b][:, :, c].flatten(), into)

    def energy(self, weights: Float[Tensor, "slots slots slots"], into: int) -> float:
        """Energy of these terms as a share of that of the update; more than 1 if others cancel."""
        flat = weights.flatten()
        return float(flat @ self.sums["gram"].sum(0) @ flat / self.sums["energy"][:, into].sum())

    def _share(self, name: str, weights: Tensor, into: int) -> Interval:
        gram, cross = self.sums[f"{name}gram"], self.sums[f"{name}cross"][..., into]
        energy = self.sums["energy"][:, into]
        fitted = torch.einsum("c,bcd,d->b", weights, gram, weights)
        return share_explained(fitted - 2 * cross @ weights + energy, energy)

    @property
    def energies(self) -> Float[Tensor, " slots"]:
        """Energy of the update of each slot."""
        return self.sums["energy"].sum(0)


def members(groups: Sequence[Sequence[int]], slots: int) -> Float[Tensor, "*slots"]:
    """Marks the places whose indices stand in these groups, one per axis."""
    marks = torch.ones((), dtype=torch.float64)
    for group in groups:
        mark = torch.zeros(slots, dtype=torch.float64)
        mark[list(group)] = 1
        marks = marks[..., None] * mark
    return marks
