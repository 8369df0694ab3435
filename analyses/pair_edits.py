"""Does the output follow the queries, and the pairs, that are edited inside the last attention?

Hypothesis: the last block makes the whole prediction C_t f(G_t) q_t from the pairs and the query
that its heads read. Swapping what passes hook_q at one position between two sequences must then
move the output by C_t f(G_t) dq; replacing what passes hook_k and hook_v at half of the earlier
positions by another sequence's must move it by C' f(G') q - C f(G) q with the moments of the edited
pairs. f is one curve, frozen from clean data. Applies where the layers below say nothing yet: to
models of one block, or of one block behind a copying layer.
Controls: the same edits of the pairs, explained by the moments of other pairs; the twin.
Test statistic: share of the output's change that is explained. Refuted by: an output that moves
otherwise. Cost: a few hundred sequences, four passes of the last block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.analysis import Setting
from probe.capture import Edit
from probe.causal.transfer import Place
from probe.checkpoints.base import Subject
from probe.findings import Finding, Metric, Outcome
from probe.response import gcv_solve, second_differences
from probe.rule import Thresholds
from probe.sampling import generator_for
from probe.stages import Batch, Results, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.tasks.base import Task, lacks_questions
from probe.views import SUBJECT, TWIN

FIT_SEQUENCES, TEST_SEQUENCES = 1024, 1024
SILENT = 0.05  # share of the output's energy that layers below may say
EDITS = ("queries", "pairs")


@dataclass(frozen=True)
class PairEditStage:
    """Edits the heads of the last block at a few positions.

    Attributes:
        layers: Number of blocks.
        positions: Where.
        knots: Knots of the response.
        fit_share: Share of the fit split that is looked at.
        test_share: Share of the test split.
    """

    layers: int
    positions: tuple[int, ...]
    knots: tuple[float, ...]
    fit_share: float
    test_share: float
    views: tuple[str, ...] = (SUBJECT, TWIN)
    folds: int = 1

    @property
    def _mu(self) -> Float[Tensor, " knots"]:
        return torch.tensor(self.knots, dtype=torch.float64)

    def fit(self, batch: Batch) -> Sums:
        """Products of the hats with the clean output."""
        batch = batch.head(self.fit_share)
        knots, problem = self._mu, batch.context.problem
        hats = [
            Place.at(batch.context, t, knots).through(problem.queries[:, t].double())
            for t in self.positions
        ]
        x = torch.cat(hats).flatten(0, 1)
        y = torch.cat([batch.capture.output[:, t] for t in self.positions]).double().flatten()
        return {
            "gram": x.mT @ x,
            "cross": x.mT @ y,
            "energy": y @ y,
            "rows": torch.tensor(float(len(y))),
        }

    def learn(self, sums: Sums) -> Float[Tensor, " hats"]:
        """F of the clean data: a smooth curve over 31 hats."""
        total = {name: value.sum(0) for name, value in sums.items()}
        rough = second_differences(len(total["cross"]))
        fit = gcv_solve(
            total["gram"], total["cross"][:, None], total["energy"], rough, int(total["rows"])
        )
        return fit.coefficients[:, 0]

    def test(self, batch: Batch, learned: Float[Tensor, " hats"]) -> Sums:
        """What the edits did and what f leaves of it, by block; and what the layer below says."""
        batch = batch.head(self.test_share)
        below = batch.capture.readouts[self.layers - 1]
        rows = [self._edited(batch, learned, t) for t in self.positions]
        squares = torch.stack(rows).sum(0)
        said = below[:, list(self.positions)].double().square().sum((1, 2))
        return {"squares": batch.by_block(squares), "below": batch.by_block(said)}

    def _edited(self, batch: Batch, f: Float[Tensor, " hats"], t: int) -> Float[Tensor, "batch _"]:
        """Squares of: the output, and per edit its change, what is left, what a control leaves."""
        problem = batch.context.problem
        query, keys = problem.queries[:, t].double(), problem.keys[:, : t + 1]
        values = problem.values[:, : t + 1]
        before = batch.capture.output[:, t].double()
        place = Place.at(batch.context, t, self._mu)
        dq, replaced = query.roll(1, 0) - query, _half(t)

        def with_pairs(chosen: Bool[Tensor, " time"]) -> Tensor:
            mixed = Place.of_pairs(_mixed(keys, chosen), _mixed(values, chosen), self._mu)
            return (mixed.through(query) - place.through(query)) @ f

        by_query = self._run(batch, t, {"hook_q": _swapped_at(t)}) - before
        mix = partial(_mixed, chosen=replaced)
        by_pairs = self._run(batch, t, {"hook_k": mix, "hook_v": mix}) - before
        others = ~replaced & (torch.arange(t + 1) > 0) & (torch.arange(t + 1) < t)
        parts = [
            before,
            by_query,
            by_query - place.through(dq) @ f,
            by_query - place.through(dq.roll(1, 0)) @ f,
            by_pairs,
            by_pairs - with_pairs(replaced),
            by_pairs - with_pairs(others),
        ]
        return torch.stack([part.square().sum(-1) for part in parts], -1)

    def _run(self, batch: Batch, t: int, edits: Mapping[str, Edit]) -> Float[Tensor, "batch d_v"]:
        last = self.layers - 1
        named = {f"blocks.{last}.attn.{site}": edit for site, edit in edits.items()}
        seen, tokens = batch.capture.until(t + 1), batch.context.sequences.tokens[:, : t + 1]
        return seen.edited(tokens, last, named)[:, t].double()


def _half(t: int) -> Bool[Tensor, " time"]:
    """Half of the pairs before position t, drawn once."""
    chosen = torch.randperm(t - 1, generator=generator_for(0, t))[: (t - 1) // 2] + 1
    mask = torch.zeros(t + 1, dtype=torch.bool)
    mask[chosen] = True
    return mask


def _mixed(rows: Tensor, chosen: Bool[Tensor, " time"]) -> Tensor:
    """Rows of shape (batch, time, ...) with the chosen positions of the sequence before."""
    return torch.where(chosen.view(-1, *[1] * (rows.ndim - 2)), rows.roll(1, 0), rows)


def _swapped_at(t: int) -> Edit:
    """Puts the sequence before in the place of each, at one position."""

    def swap(rows: Tensor) -> Tensor:
        swapped = rows.clone()
        swapped[:, t] = rows[:, t].roll(1, 0)
        return swapped

    return swap


class PairEdits:
    """Edits queries and pairs in the heads of the last block."""

    name = "pair_edits"
    place = 70
    rests_on = frozenset({"heads", "edits"})
    question = "Does the output follow queries and pairs that are edited inside the last attention?"

    def lacks(self, subject: Subject, task: Task) -> str | None:
        """Positions of edits are counted in tokens."""
        return lacks_questions(task)

    def stages(self, setting: Setting) -> tuple[PairEditStage, ...]:
        """One stage at two positions."""
        first, stop = setting.windows.judged
        third = max(1, (stop - first) // 3)
        half = setting.sequences / 2
        shares = min(1.0, FIT_SEQUENCES / half), min(1.0, TEST_SEQUENCES / half)
        places = (first + third, first + 2 * third)
        return (PairEditStage(setting.layers, places, setting.knots, *shares),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if both edits move the output as the frozen response says."""
        (stage,) = self.stages(setting)
        subject, twin = (_Edits(results, stage, view) for view in (SUBJECT, TWIN))
        outcome = subject.outcome(Thresholds.load().transfer)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=outcome,
            statement=subject.statement(),
            metrics={**subject.said(), **({} if subject.spoken else subject.metrics())},
            controls={}
            if subject.spoken
            else {**subject.controls(), **twin.metrics("permuted_twin_")},
            does_not_show=(
                "Anything about blocks below the last; where they speak too, the edits of the last "
                "block alone need not follow the whole response."
            ),
        )


class _Edits:
    """The sums of one view."""

    def __init__(self, results: Results, stage: PairEditStage, view: str):
        sums = results[stage, view].sums
        self.energy, *parts = sums["squares"].unbind(-1)
        self.below = sums["below"]
        self.parts = {EDITS[0]: parts[:3], EDITS[1]: parts[3:]}

    def r2(self, edit: str) -> Interval:
        """Share of the change that the frozen response explains."""
        moved, left, _ = self.parts[edit]
        return share_explained(left, moved)

    def control(self, edit: str) -> Interval:
        """The same for a change that was not made."""
        moved, _, left = self.parts[edit]
        return share_explained(left, moved)

    @cached_property
    def said_below(self) -> Interval:
        """Energy of what the layers below the last read out, over that of the output."""
        return bootstrap_interval(lambda weights: (weights @ self.below) / (weights @ self.energy))

    @property
    def spoken(self) -> bool:
        """Whether the layers below make a part of the prediction, so that nothing is judged."""
        return self.said_below.hi > SILENT

    def outcome(self, needed: float) -> Outcome:
        """Both edits must move the output as predicted, more than what was not edited."""
        if self.spoken:
            return "inconclusive"
        if all(self.r2(edit).lo > max(needed, self.control(edit).hi) for edit in EDITS):
            return "supports"
        missed = all(self.r2(edit).hi < needed / 2 for edit in EDITS)
        return "contradicts" if missed else "inconclusive"

    def said(self) -> dict[str, Metric]:
        """What the layers below say."""
        text = "energy of the read-out below the last block over that of the output"
        return {"said_below": Metric.of(self.said_below, text)}

    def metrics(self, prefix: str = "") -> dict[str, Metric]:
        """The numbers of a view."""
        what = "share of the output's change that the response to clean data explains, when"
        words = {
            "queries": f"{what} the queries of the last block are swapped",
            "pairs": f"{what} half of the pairs of the last block are replaced",
        }
        return {f"{prefix}{edit}_r2": Metric.of(self.r2(edit), words[edit]) for edit in EDITS}

    def controls(self) -> dict[str, Metric]:
        """Changes that were not made."""
        words = {
            "queries": "the same explained by a change to another query",
            "pairs": "the same explained by replacing the other half of the pairs",
        }
        return {
            f"{edit}_not_edited_r2": Metric.of(self.control(edit), words[edit]) for edit in EDITS
        }

    def statement(self) -> str:
        """The answer in words."""
        if self.spoken:
            return (
                "Not judged: layers below the last block already say "
                f"{self.said_below.value:.0%} of the output's energy, so the last block does not "
                "make the prediction alone."
            )
        query, pairs = self.r2("queries"), self.r2("pairs")
        return (
            f"The response to clean data explains {query.value:.3f} [{query.lo:.3f}, "
            f"{query.hi:.3f}] of what swapped queries do to the output, and {pairs.value:.3f} "
            f"[{pairs.lo:.3f}, {pairs.hi:.3f}] of what replaced pairs do."
        )


NAMED = {"pair_edits": PairEdits()}
