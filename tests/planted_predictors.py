"""Predictors whose algorithm is known, measured as if they were models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from probe.analysis import Setting
from probe.capture import capture, predictor_only
from probe.columns import Columns
from probe.pilot import scout
from probe.plan import Plan
from probe.response_stage import OUTPUT, ResponseStage
from probe.scores import Reading, read
from probe.solvers.base import ColumnFamily, families
from probe.stages import Context, Results
from probe.sweep import Sweep
from probe.tasks.base import Task

Predictor = Callable[[Context], torch.Tensor]
READY = tuple(name for name, family in families().items() if isinstance(family, ColumnFamily))


@dataclass(frozen=True)
class Measurement:
    """One sweep over all predictors, each of them a view."""

    plan: Plan
    setting: Setting
    stage: ResponseStage
    results: Results

    def reading(self, name: str, window: str = "judged") -> Reading:
        return read(self.stage, self.results[self.stage, name], OUTPUT, window)


def measure(
    task: Task, predictors: Mapping[str, Predictor], sequences: int = 256, seed: int = 0
) -> Measurement:
    plan = Plan(task, sequences, seed, workers=1)
    setting = scout(plan, 1)
    columns = Columns(setting.knots, READY)
    names = tuple(predictors)
    stage = ResponseStage(setting.windows, columns, setting.step_bound, names, layered=False)

    def seen(predictor: Predictor):
        return lambda context, captures: (context, predictor_only(predictor(context).float()))

    views = {name: seen(predictor) for name, predictor in predictors.items()}
    return Measurement(plan, setting, stage, Sweep(plan, {}, views, capture).run((stage,)))


def spectral(curve: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
    """Predicts C f(G) q, from mu f(mu)."""
    return lambda context: context.spectrum.predict(lambda mu: curve(mu) / mu)


def column(family: str, *weights: float) -> Predictor:
    """Predicts a weighting of the ready predictions of a family."""
    known = families()[family]
    return lambda context: known.columns(context) @ torch.tensor(weights, dtype=torch.float64)
