"""CKA between the layers of models that are run on the same sequences, with its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture import Capture
from probe.cka import CrossMoments, linear_cka
from probe.models.hooked import HookedModel
from probe.stages import Batch, Context, Measured, Sums, View

JOINED = "joined"


@dataclass(frozen=True)
class Similarity:
    """CKA of every layer of one model with every layer of another.

    Attributes:
        first: Label of the model whose layers are rows.
        second: Label of the model whose layers are columns.
        tokens: Number of rows that it was computed from.
        values: CKA.
        another: The control: the second model reads another sequence at the same positions.
        twin: How high it is without training: the second model's trained matrices are permuted.
    """

    first: str
    second: str
    tokens: int
    values: Float[Tensor, "layers_first layers_second"]
    another: Float[Tensor, "layers_first layers_second"]
    twin: Float[Tensor, "layers_first layers_second"]


def highest(values: Float[Tensor, "layers_first layers_second"]) -> float:
    """The largest value after the first blocks; before them both streams are but the tokens.

    NaN if there is none, as beside layers of constant features.
    """
    known = values[1:, 1:][values[1:, 1:].isfinite()]
    return float(known.max()) if len(known) else float("nan")


def joined(names: Sequence[str]) -> View:
    """A view of several models as one whose single layer is all their layers side by side."""

    def view(context: Context, captures: Mapping[str, Capture]) -> tuple[Context, Capture]:
        parts = [captures[name].layers.permute(1, 2, 0, 3).flatten(2) for name in names]
        stream = torch.cat(parts, -1)[None]
        output = captures[names[0]].output
        return context, Capture(output, stream, stream[:0], output[None])

    return view


@dataclass(frozen=True)
class SimilarityStage:
    """Moments of all layers of all models at once; the fit split gives the pivot.

    Attributes:
        window: The positions whose tokens are rows.
    """

    window: tuple[int, int]
    views: tuple[str, ...] = (JOINED,)
    folds: int = 1

    def _features(self, batch: Batch) -> Float[Tensor, "batch time features"]:
        return batch.capture.layers[0][:, slice(*self.window)]

    def fit(self, batch: Batch) -> Sums:
        """Sums that give the means."""
        features = self._features(batch).flatten(0, 1).double()
        return {"sum": features.sum(0), "rows": torch.tensor(float(len(features)))}

    def learn(self, sums: Sums) -> Float[Tensor, " features"]:
        """The mean of every feature."""
        return sums["sum"].sum(0) / sums["rows"].sum()

    def test(self, batch: Batch, learned: Float[Tensor, " features"]) -> Sums:
        """Products of all features with each other, and with those of the sequence before."""
        features = self._features(batch) - learned.float()
        rows, before = features.flatten(0, 1), features.roll(1, 0).flatten(0, 1)
        own, crossed = CrossMoments.of(rows, rows), CrossMoments.of(rows, before)
        return {
            "rows": torch.tensor(float(own.rows)),
            "sum": own.sum_x,
            "own": own.products,
            "crossed": crossed.products,
        }


def conclude(
    measured: Measured, models: Mapping[str, HookedModel], twins: Mapping[str, str]
) -> tuple[Similarity, ...]:
    """CKA of each pair of models that have a twin.

    Args:
        measured: Of the stage.
        models: All models in the order of the view.
        twins: The name of each model's twin.
    """
    sums = measured.sums
    rows, total = int(sums["rows"]), sums["sum"]
    own = CrossMoments(rows, total, total, sums["own"]).scatter
    crossed = CrossMoments(rows, total, total, sums["crossed"]).scatter
    widths = {name: _widths(model) for name, model in models.items()}
    ends = torch.tensor([sum(part) for part in widths.values()]).cumsum(0).tolist()
    place = {
        name: slice(end - sum(part), end)
        for (name, part), end in zip(widths.items(), ends, strict=True)
    }

    def cka(products: Tensor, one: str, other: str) -> Tensor:
        x, y = place[one], place[other]
        return linear_cka(products[x, y], own[x, x], own[y, y], widths[one], widths[other])

    labels = list(twins)
    return tuple(
        Similarity(
            one,
            other,
            rows,
            cka(own, one, other),
            cka(crossed, one, other),
            cka(own, one, twins[other]),
        )
        for at, one in enumerate(labels)
        for other in labels[at + 1 :]
    )


def _widths(model: HookedModel) -> tuple[int, ...]:
    return (model.d_model,) * len(model.layer_sites())
