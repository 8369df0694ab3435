"""Does the model change its algorithm at some position? Two responses against one.

One response for all judged positions is compared with two, one before and one from a position t0
on, that is chosen where the fit split is best explained. A single algorithm gains nothing from t0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.columns import Columns
from probe.response import COARSE, FINE, coarse_to_fine
from probe.response_stage import response_stages
from probe.scores import Reading, Score, scored
from probe.solvers.base import Fitted, Quadratic
from probe.stages import Batch, Measured, Sums
from probe.statistics import Interval, bootstrap_interval
from probe.views import SUBJECT

SEQUENCES = 512  # of each split
CURVES = ("spline", "polynomial", "ridge")  # between them as good as any solver
LEAST = 4  # positions on either side of t0
PARTS = ("whole", "before", "after")


@dataclass(frozen=True)
class Split:
    """The chosen t0, and the families fitted to each part."""

    at: int
    members: dict[str, tuple[Fitted, ...]]


@dataclass(frozen=True)
class ChangePointStage:
    """Fits the judged positions whole, before t0 and from t0 on.

    Attributes:
        columns: What is weighted.
        window: The judged positions.
        step_bound: The largest step of gradient descent.
        share: The share of the sequences that it looks at.
    """

    columns: Columns
    window: tuple[int, int]
    step_bound: float
    share: float
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def fit(self, batch: Batch) -> Sums:
        """Products of columns and output at every judged position."""
        batch = batch.head(self.share)
        a, b = self.window
        said = batch.capture.output[:, a:b].float()
        rows = torch.cat([self.columns.of(batch)[:, a:b], said[..., None]], -1)
        flat = rows.transpose(0, 1).flatten(1, 2)
        return {"gram": flat.mT @ flat, "rows": torch.tensor(float(said.shape[0] * said.shape[2]))}

    def learn(self, sums: Sums) -> Split:
        """The t0 of least error, and all families before it, after it and over all.

        One position alone has nothing after it.
        """
        gram, rows = sums["gram"].sum(0), int(sums["rows"].sum())
        count = len(gram)
        ahead = gram.cumsum(0)
        least = min(LEAST, count // 2)
        edges = range(max(least, 1), count - least + 1)
        errors = [
            _free_error(ahead[edge - 1], self.columns)
            + _free_error(ahead[-1] - ahead[edge - 1], self.columns)
            for edge in edges
        ]
        edge = edges[int(torch.stack(errors).argmin())]
        parts = {"whole": (ahead[-1], count), "before": (ahead[edge - 1], edge)}
        parts["after"] = ahead[-1] - ahead[edge - 1], count - edge
        members = {
            name: self.columns.fit(_form(total), rows * positions, self.step_bound, CURVES)
            for name, (total, positions) in parts.items()
        }
        return Split(self.window[0] + edge, members)

    def test(self, batch: Batch, learned: Split) -> Sums:
        """Products by block, before t0 and from t0 on."""
        batch = batch.head(self.share)
        a, b = self.window
        spans = (a, learned.at), (learned.at, b)
        return {"gram": self.columns.grams(batch, batch.capture.output[..., None].float(), spans)}


def _form(gram: Float[Tensor, "columns_and_one columns_and_one"]) -> Quadratic:
    return Quadratic(gram[:-1, :-1], gram[:-1, -1], float(gram[-1, -1]))


def _free_error(gram: Float[Tensor, "all all"], columns: Columns) -> Float[Tensor, ""]:
    """What is left by 16 hats and all ready predictions but the oracle's together."""
    spread = torch.zeros(len(gram) - 1, COARSE, dtype=gram.dtype)
    spread[:FINE] = coarse_to_fine()
    ready = [
        torch.eye(len(gram) - 1, dtype=gram.dtype)[:, place]
        for family, place in columns.families
        if family.name != "oracle"
    ]
    basis = torch.cat([spread, *ready], 1)
    system, cross = basis.mT @ gram[:-1, :-1] @ basis, basis.mT @ gram[:-1, -1]
    floor = 1e-6 * system.diagonal().mean() + torch.finfo(gram.dtype).tiny  # zeros of no position
    system = system + floor * torch.eye(len(system), dtype=gram.dtype)
    return gram[-1, -1] - cross @ torch.linalg.solve(system, cross)


@dataclass(frozen=True)
class Parts:
    """How well one response and two explain the output.

    Attributes:
        at: t0, counted in tokens seen.
        whole: Scores of single algorithms over all judged positions.
        before: Scores before t0.
        after: Scores from t0 on.
    """

    at: int
    whole: Reading
    before: Reading
    after: Reading

    @property
    def gain(self) -> Interval:
        """R^2 of two algorithms minus R^2 of one, paired by block."""
        gained, energy = _best(self.whole).error - self._left, self.whole.energy
        return bootstrap_interval(lambda weights: (weights @ gained) / (weights @ energy))

    @property
    def explained(self) -> float:
        """R^2 of the two algorithms together; a part that says little need not be explained."""
        return 1 - float(self._left.sum() / self.whole.energy.sum())

    @property
    def _left(self) -> Float[Tensor, " blocks"]:
        return _best(self.before).error + _best(self.after).error


def _best(reading: Reading) -> Score:
    """The best family but the oracle, which is no algorithm."""
    return max((s for s in reading.scores if s.family != "oracle"), key=reading.value)


def change_point_stage(setting: Setting) -> ChangePointStage:
    """The stage, with the columns that the response of the subject uses."""
    columns = response_stages(setting)[0].columns
    share = min(1.0, SEQUENCES / (setting.sequences / 2))
    return ChangePointStage(columns, setting.windows.judged, setting.step_bound, share)


def read_parts(measured: Measured) -> Parts:
    """The readings of the three parts."""
    split: Split = measured.learned
    gram = measured.sums["gram"]
    sums = {"whole": gram.sum(1), "before": gram[:, 0], "after": gram[:, 1]}
    found = {
        name: scored(sums[name], split.members[name], sums[name].shape[-1] - 1) for name in PARTS
    }
    return Parts(split.at + 1, **found)
