"""Planted forgetting and planted preconditioners are named; plain learners are not."""

from collections.abc import Callable

import pytest
import torch
from planted_predictors import Predictor

from analyses.objective import ObjectiveAnalysis
from probe.analysis import Setting
from probe.capture import capture, predictor_only
from probe.findings import Finding
from probe.objectives import (
    Forgetting,
    Objective,
    PowerWeighted,
    Preconditioned,
    Under,
    objective_stage,
    whitening,
)
from probe.pilot import scout
from probe.plan import Plan
from probe.problem import prefix_moments, spectrum
from probe.profiles import Profile
from probe.sampling import generator_for, normal
from probe.solvers import gradient_descent, ridge
from probe.stages import Context
from probe.sweep import Sweep
from probe.tasks.base import Task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import Geometric, InContextRegression
from probe.tasks.teachers import Gaussian, Orthogonal
from probe.views import PLANTED, SUBJECT, all_views

DYNAMICS = LinearDynamics("dynamics", Orthogonal(), width=4, length=24)
SKEWED = InContextRegression("skewed", Gaussian(), Geometric(30.0), width=4, pairs=12, queries=4)
PLAIN = Forgetting(1.0)

Curve = Callable[[torch.Tensor], torch.Tensor]


def under(objective: Objective, curve: Curve) -> Predictor:
    def predict(context: Context) -> torch.Tensor:
        moments = objective.moments(context.problem)
        seen = spectrum(moments, objective.queries(context.problem))
        return seen.predict(lambda mu: curve(mu) / mu)

    return predict


def finding(task: Task, predictor: Callable[[Setting], Predictor]) -> Finding:
    plan = Plan(task, 256, 0, workers=1)
    setting = scout(plan, 1)
    chosen = predictor(setting)
    views = {
        SUBJECT: lambda context, captures: (context, predictor_only(chosen(context).float())),
        PLANTED: all_views(setting.ridge)[PLANTED],
    }
    analysis = ObjectiveAnalysis()
    results = Sweep(plan, {}, views, capture).run(analysis.stages(setting))
    return analysis.conclude(setting, results)


def steps(setting: Setting) -> Curve:
    return lambda mu: gradient_descent.shrinkage(mu, 3, 0.3 * setting.step_bound)


def test_forgetting_is_named_with_its_rate() -> None:
    found = finding(DYNAMICS, lambda setting: under(Forgetting(0.9), steps(setting)))
    gamma = found.metrics["gamma"]
    assert gamma.lo - 0.01 < 0.9 < gamma.hi + 0.01 and gamma.hi - gamma.lo < 0.03
    assert found.metrics["forgetting_gain"].lo > 0.01
    assert found.outcome == "inconclusive" and "forgetting by 0." in found.statement
    assert "forgetting by" in found.bearing
    assert "whitening" not in found.statement and "weighting" not in found.statement
    # Control: the planted mesa-layer, which forgets nothing.
    assert abs(found.controls["forgetting_gain (planted mesa-layer)"].value) < 1e-3


def test_a_rate_between_those_of_the_grid_is_found() -> None:
    found = finding(DYNAMICS, lambda setting: under(Forgetting(0.93), steps(setting)))
    assert found.metrics["gamma"].value == pytest.approx(0.93, abs=0.007)
    assert found.controls["gamma (planted mesa-layer)"].value == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize("power", [-0.75, 0.7])
def test_weights_by_position_are_named_with_their_power(power: float) -> None:
    found = finding(DYNAMICS, lambda setting: under(PowerWeighted(power), steps(setting)))
    assert found.metrics["weight_power"].value == pytest.approx(power, abs=0.05)
    assert found.metrics["weighting_gain"].lo > 0.01
    assert "weighting pairs by j^a" in found.statement
    assert abs(found.controls["weight_power (planted mesa-layer)"].value) < 0.1


def test_the_penalty_of_ridge_is_found_and_that_of_descent_is_no_minimum() -> None:
    solved = finding(DYNAMICS, lambda setting: under(PLAIN, lambda mu: ridge.shrinkage(mu, 0.1)))
    penalty = solved.metrics["lambda"]
    assert penalty.lo * 0.97 < 0.1 < penalty.hi * 1.03 and penalty.hi < 1.2 * penalty.lo
    assert "the minimum of sum_j |v_j - W k_j|^2 + lambda |W|^2, lambda = 0.1" in solved.statement
    # Least squares without noise has the same minimum whatever its weights.
    assert "Nothing that was tried is excluded" in solved.statement
    step = finding(
        DYNAMICS,
        lambda setting: under(
            PLAIN, lambda mu: gradient_descent.shrinkage(mu, 1, 0.5 * setting.step_bound)
        ),
    )
    assert "Excluded: forgetting by" in step.statement
    assert "It descends on" in step.statement and step.metrics["beyond_ridge"].lo > 0.01


@pytest.mark.parametrize("task", [DYNAMICS, SKEWED])
def test_plain_learners_need_neither(task: Task) -> None:
    for curve in (steps, lambda setting: lambda mu: ridge.shrinkage(mu, 0.1)):
        found = finding(task, lambda setting, curve=curve: under(PLAIN, curve(setting)))
        assert found.outcome == "supports" and "neither" in found.statement
        assert found.metrics["plain_r2"].value > 0.98
        assert found.metrics["forgetting_gain"].hi < 0.01
        assert found.metrics["preconditioner_gain"].hi < 0.01


def test_a_preconditioner_is_named() -> None:
    def predictor(setting: Setting) -> Predictor:
        whitened = objective_stage(setting).posings[-1]
        assert isinstance(whitened, Under) and isinstance(whitened.objective, Preconditioned)
        return under(whitened.objective, steps(setting))

    found = finding(SKEWED, predictor)
    assert found.metrics["preconditioner_gain"].lo > 0.05
    assert "whitening keys and queries" in found.statement and "forgetting" not in found.statement
    rows = found.tables[0].frame.set_index(["objective", "family"])["r2"]
    assert rows["preconditioned", "gradient_descent"] > 0.99 > rows["plain", "gradient_descent"]


def test_silence_supports_no_objective() -> None:
    silence = finding(DYNAMICS, lambda setting: lambda context: context.problem.values * 0)
    assert silence.outcome == "inconclusive" and "no objective" in silence.statement
    noise = finding(
        DYNAMICS,
        lambda setting: lambda context: normal(generator_for(1), *context.problem.values.shape),
    )
    assert noise.outcome == "inconclusive" and noise.metrics["plain_r2"].value < 0.1
    assert "no objective" in noise.statement


def test_moments_that_fade_are_weighted_sums() -> None:
    problem = DYNAMICS.problem(DYNAMICS.sample(3, generator_for(0)))
    keys, values = problem.keys.double(), problem.values.double()
    moments = Forgetting(0.8).moments(problem)
    for t in (1, 7, 23):
        weight = 0.8 ** (t - torch.arange(t + 1, dtype=torch.float64))
        gram = torch.einsum("j,bji,bjk->bik", weight, keys[:, : t + 1], keys[:, : t + 1])
        cross = torch.einsum("j,bji,bjk->bik", weight, values[:, : t + 1], keys[:, : t + 1])
        assert torch.allclose(moments.gram[:, t], gram)
        assert torch.allclose(moments.cross[:, t], cross)
    plain = prefix_moments(problem)
    assert torch.allclose(PLAIN.moments(problem).gram, plain.gram)
    assert torch.allclose(PLAIN.moments(problem).cross, plain.cross)
    assert not torch.allclose(moments.gram, plain.gram)  # Control.


def test_moments_of_weighted_pairs_are_weighted_sums() -> None:
    problem = DYNAMICS.problem(DYNAMICS.sample(3, generator_for(0)))
    keys, values = problem.keys.double(), problem.values.double()
    moments = PowerWeighted(0.5).moments(problem)
    weight = torch.arange(24, dtype=torch.float64) ** 0.5
    weight = weight / weight[1:].mean()
    for t in (1, 7, 23):
        some = slice(1, t + 1)
        gram = torch.einsum("j,bji,bjk->bik", weight[some], keys[:, some], keys[:, some])
        cross = torch.einsum("j,bji,bjk->bik", weight[some], values[:, some], keys[:, some])
        assert torch.allclose(moments.gram[:, t], gram)
        assert torch.allclose(moments.cross[:, t], cross)
    assert torch.allclose(PowerWeighted(0.0).moments(problem).gram, prefix_moments(problem).gram)
    assert not torch.allclose(moments.gram, prefix_moments(problem).gram)  # Control.


def test_profiles_find_the_least_error_between_the_points_of_their_grid() -> None:
    grid = (0.0, 1.0, 2.5, 4.0)
    places = torch.tensor(grid, dtype=torch.float64)
    centres = 1.7 + 0.1 * normal(generator_for(0), 64, 1)
    energy = torch.full((64,), 100.0, dtype=torch.float64)
    profile = Profile(grid, 1 + (places - centres) ** 2, energy)
    least = profile.least()
    assert least.value == pytest.approx(float(centres.mean()), abs=0.01)
    assert least.lo < 1.7 < least.hi and least.hi - least.lo < 0.1
    assert profile.excluded(0.01) == [0.0, 4.0]
    assert profile.excluded(0.1) == []  # Control.


def test_whitening_makes_all_directions_alike() -> None:
    scales = torch.tensor([3.0, 1.0, 0.2, 0.05], dtype=torch.float64)
    keys = normal(generator_for(4), 2000, 4) * scales
    root = whitening(keys)
    assert torch.allclose(root, root.mT)
    white = keys @ root
    second = white.mT @ white / len(white)
    mean_square = (keys**2).mean()
    assert torch.allclose(second, mean_square * torch.eye(4, dtype=torch.float64), atol=1e-8)
    assert float((keys.mT @ keys / len(keys)).diagonal().std()) > 1  # Control.


def test_a_precondition_that_solves_exactly_changes_nothing() -> None:
    """Least squares itself does not depend on P: (P^1/2 G P^1/2)^-1 undoes it."""
    problem = SKEWED.problem(SKEWED.sample(8, generator_for(0)))
    root = whitening(problem.keys.flatten(0, 1))
    changed = Preconditioned(tuple(tuple(row) for row in root.tolist()))

    def said(objective: Objective, curve: Curve) -> torch.Tensor:
        seen = spectrum(objective.moments(problem), objective.queries(problem))
        return seen.predict(lambda mu: curve(mu) / mu)[:, -1]

    assert torch.allclose(
        said(PLAIN, torch.ones_like), said(changed, torch.ones_like), rtol=1e-4, atol=1e-4
    )
    # Control: one gradient step does depend on it.
    assert not torch.allclose(
        said(PLAIN, lambda mu: 0.01 * mu), said(changed, lambda mu: 0.01 * mu), rtol=0.1
    )
