"""Losses of models on the same sequences: by position, against each other, against solvers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.findings import Reference
from probe.reference import MODEL, PREDICTORS, conclude
from probe.response_stage import OUTPUT, ResponseStage
from probe.scores import Reading, Score, nulls, read
from probe.stages import Measured
from probe.statistics import Interval, mean_per_sequence, resample_weights

TARGETS = "targets"
BOUND = "spline"


@dataclass(frozen=True)
class Band:
    """A mean over sequences at every position, with its 95 % interval there."""

    mean: Float[Tensor, " time"]
    lo: Float[Tensor, " time"]
    hi: Float[Tensor, " time"]


@dataclass(frozen=True)
class Losses:
    """Losses of one model, all on the same test sequences.

    Attributes:
        reference: The model beside the fitted mesa-layer.
        loss: The mean over positions.
        by_position: The loss at each position.
        difference: Loss minus that of the first model, paired; None for the first model itself.
        difference_by_position: The same at each position.
        ratio_by_position: Loss over that of the first model at each position, resampled together.
        judged: The loss over the judged positions, where solvers are fitted.
        over_solver: Loss minus that of the best solver over those positions, paired.
    """

    reference: Reference
    loss: Interval
    by_position: Band
    difference: Interval | None
    difference_by_position: Band | None
    ratio_by_position: Band
    judged: Interval
    over_solver: Interval


@dataclass(frozen=True)
class Solver:
    """A solver whose constants are fitted to the targets of the fit split.

    Attributes:
        family: Its family.
        constants: Its constants.
        loss: Its loss over the judged positions of the test split.
        fit_error: What it leaves of the targets on the fit split, as a share; the least is best.
    """

    family: str
    constants: Mapping[str, float | int]
    loss: Interval
    fit_error: float


@dataclass(frozen=True)
class Solvers:
    """The reference solvers on the task itself, best on the fit split first."""

    ranked: tuple[Solver, ...]
    best_errors: Float[Tensor, " blocks"]


def band(total: Float[Tensor, "blocks time"], per: Float[Tensor, "blocks time_or_one"]) -> Band:
    """sum(total) / sum(per) at each position; percentile intervals over resampled blocks."""
    weights = resample_weights(blocks=len(per))
    draws = (weights @ total) / (weights @ per)
    ends = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return Band(total.sum(0) / per.sum(0), ends[0], ends[1])


def rank_solvers(stage: ResponseStage, measured: Measured, count: Tensor) -> Solvers:
    """Every family of solvers at its best number of steps, all chosen on the fit split.

    Nulls are no solvers, and the free scalar response is a bound.
    """
    reading: Reading = read(stage, measured, OUTPUT, "judged")
    first, stop = stage.windows.judged
    families = [name for name in reading.names() if name not in nulls() and name != BOUND]
    chosen = [min(reading.members(name), key=lambda s: s.fit_error) for name in families]
    ranked = sorted(chosen, key=lambda score: score.fit_error)

    def solver(score: Score) -> Solver:
        loss = mean_per_sequence(0.5 * score.error / (stop - first), count)
        return Solver(score.family, score.constants, loss, score.fit_error)

    return Solvers(tuple(map(solver, ranked)), 0.5 * ranked[0].error / (stop - first))


def compare_losses(
    measured: Mapping[str, Measured], solvers: Solvers, judged: tuple[int, int]
) -> dict[str, Losses]:
    """Losses of each model, against the first, the mesa-layer and the best solver."""
    totals = {name: one.sums["losses"][..., MODEL] for name, one in measured.items()}
    first = next(iter(totals))
    found = {}
    for name, one in measured.items():
        total, count = totals[name], one.sums["sequences"]
        late = total[:, slice(*judged)].mean(1)
        gap = None if name == first else total - totals[first]
        found[name] = Losses(
            reference=conclude(one),
            loss=mean_per_sequence(total.mean(1), count),
            by_position=band(total, count[:, None]),
            difference=None if gap is None else mean_per_sequence(gap.mean(1), count),
            difference_by_position=None if gap is None else band(gap, count[:, None]),
            ratio_by_position=band(total, totals[first]),
            judged=mean_per_sequence(late, count),
            over_solver=mean_per_sequence(late - solvers.best_errors, count),
        )
    return found


def theory(measured: Measured) -> dict[str, Float[Tensor, " time"]]:
    """The losses of the predictors beside the model, by position."""
    means = measured.sums["losses"].sum(0) / measured.sums["sequences"].sum()
    return {name: means[:, at] for at, name in enumerate(PREDICTORS) if at != MODEL}
