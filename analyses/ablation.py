"""What is left of the algorithm when a layer's attention is removed?

Hypothesis: block l takes one gradient step, of size eta_l as read off the model's own read-outs;
without it the model must run the algorithm that lacks that step: 1 - mu f(mu) = prod (1 - eta_i mu)
over the other steps. Each block's attention is set to zero in turn, at all positions. Where the
read-outs follow no gradient steps, nothing is predicted and the damage alone is reported; blocks
that take no step, such as one that copies, are not judged, nor is a single step: without it
nothing is left.
Controls: the response before the removal, as a prediction of what is left.
Test statistic: share of the ablated output that the predicted response explains, and the predicted
loss beside the measured. Cost: one pass per layer over some hundred sequences.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probe.analysis import Setting
from probe.findings import Finding, Metric, Outcome, Table
from probe.response import hat_features
from probe.stages import Batch, Results, Sums
from probe.statistics import Interval, bootstrap_interval, share_explained
from probe.views import SUBJECT

FIT_SEQUENCES, TEST_SEQUENCES = 512, 512
LAWFUL = 0.98  # R^2 of a read-out explained by a gradient step on the one below
EXPLAINED = 0.95
SILENT = 1e-4  # share of the output's energy: rounding, in a read-out before the first step
SMALL = 0.01  # of a step that would solve the largest direction at once


@dataclass(frozen=True)
class AblationStage:
    """Removes the attention of each block in turn.

    Attributes:
        layers: Number of blocks.
        window: The judged positions.
        knots: Knots of the response.
        fit_share: Share of the fit split that is looked at.
        test_share: Share of the test split.
    """

    layers: int
    window: tuple[int, int]
    knots: tuple[float, ...]
    fit_share: float
    test_share: float
    views: tuple[str, ...] = (SUBJECT,)
    folds: int = 1

    def _hats(self, batch: Batch) -> Float[Tensor, "batch rows knots"]:
        """The 64 hats at the judged positions."""
        a, b = self.window
        mu = torch.tensor(self.knots, dtype=torch.float64)
        hats = batch.context.once(
            ("hats", self.knots), lambda: hat_features(batch.context.spectrum, mu)
        )
        return hats[:, a:b].flatten(1, 2).double()

    def fit(self, batch: Batch) -> Sums:
        """Products of hats and read-outs of the clean model."""
        batch = batch.head(self.fit_share)
        a, b = self.window
        x = self._hats(batch).flatten(0, 1)
        said = batch.capture.readouts[1:, :, a:b].double().permute(1, 2, 3, 0).reshape(len(x), -1)
        return {"gram": x.mT @ x, "cross": x.mT @ said, "energy": said.square().sum(0)}

    def learn(self, sums: Sums) -> "Steps":
        """Step sizes by layer, and what the algorithm without each step should answer."""
        total = {name: value.sum(0) for name, value in sums.items()}
        mu = torch.tensor(self.knots, dtype=torch.float64)
        return _steps(total["gram"], total["cross"], total["energy"], mu)

    def test(self, batch: Batch, learned: "Steps") -> Sums:
        """Squares by block and layer: the ablated output, what predictions leave, the losses."""
        batch = batch.head(self.test_share)
        a, b = self.window
        tokens = batch.context.sequences.tokens
        targets = batch.context.problem.targets[:, a:b].double().flatten(1)
        clean = batch.capture.output[:, a:b].double().flatten(1)
        hats, rows = self._hats(batch), []
        for layer in range(self.layers):
            site = f"blocks.{layer}.hook_attn_out"
            output = batch.capture.edited(tokens, layer, {site: torch.zeros_like})
            left = output[:, a:b].double().flatten(1)
            predicted = hats @ learned.without[layer]
            before = hats @ learned.whole
            parts = [left, left - predicted, left - before, targets - left, targets - predicted]
            rows.append(torch.stack([part.square().sum(-1) for part in parts], -1))
        return {
            "squares": batch.by_block(torch.stack(rows, 1)),
            "clean": batch.by_block((targets - clean).square().sum(-1)),
        }


@dataclass(frozen=True)
class Steps:
    """The gradient steps that the read-outs show.

    Attributes:
        etas: Step size of each block.
        lawful: R^2 of each read-out as the step on the one below predicts it.
        whole: The response of all steps, at the knots.
        without: The response without each step.
    """

    etas: Float[Tensor, " layers"]
    lawful: Float[Tensor, " layers"]
    whole: Float[Tensor, " knots"]
    without: Float[Tensor, "layers knots"]


def _steps(gram: Tensor, cross: Tensor, energy: Tensor, mu: Tensor) -> Steps:
    """Fits w' = w + eta mu (1 - w) from layer to layer, starting at w = 0."""
    etas, lawful = [], []
    audible = SILENT * energy[-1].clamp(min=torch.finfo(energy.dtype).tiny)
    before = torch.zeros_like(mu)
    for target, squares in zip(cross.unbind(1), energy, strict=True):
        slope = mu * (1 - before)
        eta = slope @ (target - gram @ before) / (slope @ gram @ slope)
        before = before + eta * slope
        left = squares - 2 * before @ target + before @ gram @ before
        etas.append(eta)
        lawful.append(1 - left / squares.clamp(min=audible))
    factors = 1 - torch.stack(etas)[:, None] * mu
    without = [1 - torch.cat([factors[:i], factors[i + 1 :]]).prod(0) for i in range(len(etas))]
    return Steps(torch.stack(etas), torch.stack(lawful), 1 - factors.prod(0), torch.stack(without))


class Ablation:
    """Removes layers and compares with the algorithm that lacks their step."""

    name = "ablation"
    place = 80
    rests_on = frozenset({"updates", "edits"})
    question = "What is left of the algorithm when a layer's attention is removed?"

    def stages(self, setting: Setting) -> tuple[AblationStage, ...]:
        """One stage."""
        half = setting.sequences / 2
        shares = min(1.0, FIT_SEQUENCES / half), min(1.0, TEST_SEQUENCES / half)
        return (AblationStage(setting.layers, setting.windows.judged, setting.knots, *shares),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if every step can be read, and the algorithm without it is what is left."""
        (stage,) = self.stages(setting)
        measured = results[stage, SUBJECT]
        rows = [_Removed(measured.sums, layer) for layer in range(stage.layers)]
        steps, top = measured.learned, setting.mu_top
        stepping = [row for row in rows if abs(float(steps.etas[row.layer - 1])) * top > SMALL]
        lawful = bool((steps.lawful >= LAWFUL).all()) and len(stepping) > 1
        worst = min(stepping or rows, key=lambda row: row.predicted.value)
        return Finding(
            analysis=self.name,
            question=self.question,
            outcome=_outcome(lawful, worst),
            statement=_statement(lawful, rows, worst, steps),
            metrics=_metrics(lawful, rows, worst),
            controls={"whole_r2": Metric.of(worst.unchanged, "R^2 of the response before removal")},
            does_not_show="What a removed layer did where no step could be read from it.",
            tables=(Table("ablation", _table(rows, steps)),),
        )


class _Removed:
    """What is left without one block."""

    def __init__(self, sums: Sums, layer: int):
        squares = sums["squares"][:, layer]
        energy, left, unchanged, loss, predicted_loss = squares.unbind(-1)
        self.layer = layer + 1
        self.predicted, self.unchanged = _share(left, energy), _share(unchanged, energy)
        self.loss = _ratio(loss, sums["clean"])
        self.predicted_loss = _ratio(predicted_loss, sums["clean"])


def _share(left: Tensor, energy: Tensor) -> Interval:
    """R^2; an output of zeros, as when the only step is removed, is explained by zero alone."""
    if float(energy.sum()) == 0:
        exact = float(left.sum()) == 0
        return Interval(float(exact), float(exact), float(exact))
    return share_explained(left, energy)


def _ratio(total: Tensor, clean: Tensor) -> Interval:
    return bootstrap_interval(lambda weights: (weights @ total) / (weights @ clean))


def _outcome(lawful: bool, worst: _Removed) -> Outcome:
    """Where no steps can be read there is no prediction, and so no answer."""
    if not lawful:
        return "inconclusive"
    return "supports" if worst.predicted.lo > EXPLAINED else "contradicts"


def _metrics(lawful: bool, rows: list[_Removed], worst: _Removed) -> dict[str, Metric]:
    most = max(rows, key=lambda row: row.loss.value)
    found = {
        "largest_loss_ratio": Metric.of(
            most.loss, "loss without the most needed layer over before"
        ),
        "most_needed_layer": Metric(most.layer, "the layer whose removal costs most"),
    }
    if lawful:
        found["predicted_r2"] = Metric.of(
            worst.predicted, "R^2 of the algorithm without the step, at the worst layer"
        )
        found["predicted_loss_ratio"] = Metric.of(
            worst.predicted_loss, "loss that it predicts there, over the loss before"
        )
    return found


def _statement(lawful: bool, rows: list[_Removed], worst: _Removed, steps: Steps) -> str:
    losses = ", ".join(f"{row.loss.value:.2f}" for row in rows)
    damage = f"Without its attention each layer in turn multiplies the loss by {losses}."
    if not lawful:
        return f"{damage} The read-outs do not grow by several gradient steps: nothing to predict."
    sizes = ", ".join(f"{eta:.3g}" for eta in steps.etas.tolist())
    return (
        f"{damage} The read-outs grow by gradient steps of size {sizes}; the algorithm without the "
        f"step explains {worst.predicted.value:.3f} [{worst.predicted.lo:.3f}, "
        f"{worst.predicted.hi:.3f}] of what is left at the worst layer."
    )


def _table(rows: list[_Removed], steps: Steps) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": row.layer,
            "eta": float(steps.etas[row.layer - 1]),
            "step_r2": float(steps.lawful[row.layer - 1]),
            "predicted_r2": row.predicted.value,
            "unchanged_r2": row.unchanged.value,
            "loss_ratio": row.loss.value,
            "predicted_loss_ratio": row.predicted_loss.value,
        }
        for row in rows
    )


NAMED = {"ablation": Ablation()}
