"""How good are the predictions at each position, beside the mesa-layer fitted to the same task?

Hypothesis: a learner's loss falls as its context grows, towards that of the exact solver. A flat
loss refutes learning in context; a falling one does not yet show which algorithm does it.
Test statistic: loss before the problem is solved against loss after. Costs nothing beyond the
sweep.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from probe.analysis import Setting
from probe.findings import Finding, LineChart, Metric, Outcome, Series, Table
from probe.reference import MESA, MODEL, PREDICTORS, ReferenceStage, conclude
from probe.stages import Measured, Results
from probe.statistics import Interval, bootstrap_interval, mean_per_sequence
from probe.tasks.base import label
from probe.views import SUBJECT, TWIN

LOSS = "1/2 mean over sequences of |prediction - target|^2, mean over positions"


@dataclass(frozen=True)
class Behaviour:
    """Losses by position."""

    name: str = "behaviour"
    place: int = 20
    question: str = "Do the predictions improve with context, and how near is least squares?"

    def stages(self, setting: Setting) -> tuple[ReferenceStage, ...]:
        """The reference beside the model and beside its twin."""
        return (ReferenceStage(setting.ridge),)

    def conclude(self, setting: Setting, results: Results) -> Finding:
        """Supports if the loss after the problem is solved is clearly below the loss before.

        Inconclusive where the context does not grow from position to position.
        """
        stage = self.stages(setting)[0]
        subject, twin = results[stage, SUBJECT], results[stage, TWIN]
        reference = conclude(subject)
        ratio = _late_over_early(subject, setting, MODEL)
        rows = list(_rows(subject))
        metrics = {
            "loss": _loss(subject, MODEL, "the model"),
            "mesa_layer_loss": _loss(subject, MESA, "the fitted mesa-layer"),
            "excess_loss": Metric(
                reference.excess_of_model,
                "loss of the model minus loss of the mesa-layer, paired by sequence",
                reference.excess_lo,
                reference.excess_hi,
            ),
            "late_over_early": Metric(
                ratio.value,
                _ratio_words(setting),
                ratio.lo,
                ratio.hi,
            ),
        }
        twin_ratio = _late_over_early(twin, setting, MODEL)
        controls = {
            "loss": _loss(twin, MODEL, "the twin with permuted weights"),
            "late_over_early": Metric(
                twin_ratio.value, f"the twin: {_ratio_words(setting)}", twin_ratio.lo, twin_ratio.hi
            ),
        }
        return Finding(
            self.name,
            self.question,
            _outcome(ratio) if _grows(setting) else "inconclusive",
            f"Loss {reference.model_loss:.3f}, against {reference.loss:.3f} for the mesa-layer "
            f"(lambda {reference.ridge:.2g}); {_course(setting, ratio)}.",
            metrics,
            controls,
            "A falling loss shows that context helps, not by which algorithm; and a loss near that "
            "of least squares does not show that least squares is what the model computes.",
            (Table("behaviour", pd.DataFrame(rows)),),
            (_figure(rows),),
        )


def _grows(setting: Setting) -> bool:
    """Whether later positions have more context."""
    return setting.windows.solved != setting.windows.unsolved


def _course(setting: Setting, ratio: Interval) -> str:
    solved, unsolved = label(setting.windows.solved), label(setting.windows.unsolved)
    if not _grows(setting):
        return f"the context is the same at all positions t = {solved}, so no course shows"
    return f"over t = {solved} it is {ratio.value:.2g} times that over t = {unsolved}"


def _ratio_words(setting: Setting) -> str:
    solved, unsolved = label(setting.windows.solved), label(setting.windows.unsolved)
    return f"mean loss over t = {solved} divided by that over t = {unsolved}"


def _outcome(ratio: Interval) -> Outcome:
    if ratio.hi < 0.8:
        return "supports"
    return "contradicts" if ratio.lo > 0.9 else "inconclusive"


def _loss(measured: Measured, predictor: int, whose: str) -> Metric:
    losses = measured.sums["losses"].mean(1)[:, predictor]
    loss = mean_per_sequence(losses, measured.sums["sequences"])
    return Metric(loss.value, f"{whose}: {LOSS}", loss.lo, loss.hi)


def _late_over_early(measured: Measured, setting: Setting, predictor: int) -> Interval:
    losses = measured.sums["losses"][..., predictor]
    early = losses[:, slice(*setting.windows.unsolved)].mean(1)
    late = losses[:, slice(*setting.windows.solved)].mean(1)
    return bootstrap_interval(lambda weights: (weights @ late) / (weights @ early))


def _rows(measured: Measured) -> Iterator[dict[str, object]]:
    losses, count = measured.sums["losses"], measured.sums["sequences"]
    means = losses.sum(0) / count.sum()
    errors = _standard_errors(losses, count)
    for position in range(losses.shape[1]):
        for i, predictor in enumerate(PREDICTORS):
            yield {
                "position": position + 1,
                "predictor": predictor,
                "loss": float(means[position, i]),
                "loss_se": float(errors[position, i]),
            }


def _standard_errors(losses: Tensor, count: Tensor) -> Tensor:
    """Standard error of the mean over sequences, from the spread of the means of blocks."""
    by_block = losses / count[:, None, None]
    return by_block.std(0) / len(count) ** 0.5


def _figure(rows: list[dict[str, object]]) -> LineChart:
    frame = pd.DataFrame(rows)
    series = []
    for predictor, part in frame.groupby("predictor", sort=False):
        part = part[part["position"] > 1]
        low = (part["loss"] - 1.96 * part["loss_se"]).clip(lower=part["loss"] * 0.2)
        series.append(
            Series(
                str(predictor),
                part["position"].tolist(),
                part["loss"].tolist(),
                low.tolist(),
                (part["loss"] + 1.96 * part["loss_se"]).tolist(),
                "model" if predictor == "model" else "theory",
            )
        )
    return LineChart(
        "loss_by_position",
        "Loss by position",
        "Loss on fresh sequences with 95 % bands. The mesa-layer and the gradient step are fitted "
        "to the task, not to the model; the oracle knows the teacher, so it shows the noise floor.",
        "position t (tokens seen)",
        "loss",
        tuple(series),
        log_y=True,
    )


NAMED = {"behaviour": Behaviour()}
