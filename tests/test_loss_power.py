"""Minimisers of squares and of absolute residuals are read as what they are."""

import pytest
import torch
from planted_predictors import Predictor
from scipy.optimize import minimize

from analyses.loss_power import NOISY, OWN, LossPower, Readings, conclude, stage_of
from probe.capture import capture, predictor_only
from probe.findings import Finding
from probe.loss_power import Noisy, PowerReading, PowerStage, louder, minimiser
from probe.plan import Plan
from probe.rule import Thresholds
from probe.sampling import generator_for, normal
from probe.stages import Context
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.teachers import Orthogonal
from probe.views import PLANTED, SUBJECT, all_views

DYNAMICS = LinearDynamics("dynamics", Orthogonal(), width=3, length=16)


def finding(predictor: Predictor, law: str = NOISY) -> Finding:
    task = louder(DYNAMICS) if law == NOISY else DYNAMICS
    plan = Plan(task, 256, 0, workers=1)
    stage = PowerStage((5, 8, 11), (0.02, 0.06, 0.18, 0.54))
    views = {
        SUBJECT: lambda context, captures: (context, predictor_only(predictor(context).float())),
        PLANTED: all_views(0.1)[PLANTED],
    }
    results = Sweep(plan, {}, views, capture).run((stage,))
    readings = {(law, view): PowerReading.of(stage, results[stage, view]) for view in views}
    return conclude(LossPower(), Readings(readings, Thresholds.load()))


def of_power(power: float, ridge: float = 0.05) -> Predictor:
    """The minimum of one power at every position."""

    def predict(context: Context) -> torch.Tensor:
        places = tuple(range(DYNAMICS.length))
        return PowerStage(places, (ridge,)).minimum(context.problem, power, ridge)

    return predict


def test_squares_are_read_as_squares() -> None:
    found = finding(of_power(2.0))
    assert found.metrics["r2 p = 2"].value > 0.999 > found.metrics["r2 p = 1"].value + 0.01
    assert found.metrics["power"].value == pytest.approx(2.0, abs=0.15)
    assert found.outcome != "contradicts" and "no sum of squares" not in found.bearing


def test_absolute_residuals_are_named() -> None:
    found = finding(of_power(1.0))
    assert found.outcome == "contradicts"
    assert "no sum of squares" in found.bearing and "with p = 1 " in found.statement
    # Control: the mesa-layer minimises squares.
    assert found.controls["power (planted mesa-layer)"].value == pytest.approx(2.0, abs=0.2)


def test_one_step_on_squares_is_named_under_the_own_law() -> None:
    found = finding(lambda context: 0.05 * context.spectrum.predict(torch.ones_like), OWN)
    assert "The gradient step" in found.statement and "with p = 2 " in found.statement
    assert found.outcome == "supports" and "sum of squares" in found.bearing


def test_noise_has_no_power() -> None:
    found = finding(lambda context: normal(generator_for(1), *context.problem.values.shape))
    assert found.outcome == "inconclusive" and found.bearing == ""
    assert found.statement.startswith("Cannot tell: neither")


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_reweighting_finds_the_minimum_of_the_power(power: float) -> None:
    generator = generator_for(3)
    keys, values = normal(generator, 2, 12, 3), normal(generator, 2, 12, 2)
    found = minimiser(keys, values, power, 0.4)

    def objective(weights: object) -> float:
        residual = values[0, :, 0].numpy() - keys[0].numpy() @ weights
        return float((abs(residual) ** power).sum() + 0.4 * (weights**2).sum())

    best = minimize(objective, [0.0, 0.0, 0.0], tol=1e-10).x
    assert torch.allclose(found[0, 0], torch.from_numpy(best), atol=2e-3)
    other = minimiser(keys, values, 1.0 if power > 1.5 else 3.0, 0.4)
    assert not torch.allclose(other[0, 0], torch.from_numpy(best), atol=2e-3)  # Control.


def test_pairs_of_zeros_count_for_nothing() -> None:
    generator = generator_for(4)
    keys, values = normal(generator, 1, 6, 2), normal(generator, 1, 6, 2)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 3)) for part in (keys, values)]
    assert torch.allclose(
        minimiser(keys, values, 1.0, 0.1), minimiser(*padded, 1.0, 0.1), atol=2e-3
    )


def test_a_louder_task_keeps_its_size() -> None:
    task = find_task("linear")
    plain, loud = (one.sample(200, generator_for(0)) for one in (task, louder(task)))
    ratio = loud.observations[:, 20].square().mean() / plain.observations[:, 20].square().mean()
    assert 0.5 < float(ratio) < 2
    assert louder(find_task("regression")).noise == 0.3


def test_tasks_without_noise_are_not_asked() -> None:
    class Silent:
        pass

    assert isinstance(DYNAMICS, Noisy) and isinstance(find_task("regression"), Noisy)
    assert not isinstance(Silent(), Noisy)
    stage = stage_of(find_task("linear"), 0.01, 1.0)
    assert stage.places == (14, 17, 20, 23) and len(stage.ridges) == 7
