"""Losses beside the mesa-layer, for predictors that are known."""

import pytest
import torch

from analyses.behaviour import Behaviour
from probe.analysis import Setting
from probe.capture import capture, predictor_only
from probe.pilot import scout
from probe.plan import FIT, TEST, Plan
from probe.reference import PREDICTORS, ReferenceStage, conclude
from probe.solvers.ridge import shrinkage
from probe.stages import Context
from probe.sweep import Sweep
from probe.views import SUBJECT, TWIN


def seen(predictor):
    return lambda context, captures: (context, predictor_only(predictor(context).float()))


def solver(penalty: float):
    return lambda context: context.spectrum.predict(lambda mu: shrinkage(mu, penalty) / mu)


@pytest.fixture(scope="module")
def plan(small_task) -> Plan:
    return Plan(small_task, 1024, 0, workers=1)


@pytest.fixture(scope="module")
def setting(plan) -> Setting:
    return scout(plan, 1)


def measured(plan, setting, subject, twin=lambda context: 0 * context.problem.oracle):
    stages = Behaviour().stages(setting)
    return Sweep(plan, {}, {SUBJECT: seen(subject), TWIN: seen(twin)}, capture).run(stages)


def test_the_pilot_and_the_fit_find_the_best_penalty(plan, setting) -> None:
    results = measured(plan, setting, solver(setting.ridge))
    fitted = results[ReferenceStage(setting.ridge), SUBJECT].learned
    contexts = []
    for shard, (_, count) in enumerate(plan.shards(FIT)):
        sequences = plan.draw(FIT, shard, count)
        contexts.append(Context(sequences, plan.task.problem(sequences)))

    def loss(penalty: float) -> float:
        errors = [(solver(penalty)(c) - c.problem.targets).square().sum() for c in contexts]
        return float(sum(errors))

    assert loss(fitted.ridge) <= min(loss(setting.ridge), loss(2 * setting.ridge))
    assert loss(fitted.ridge) < loss(30 * fitted.ridge)

    def step_loss(eta: float) -> float:
        steps = [c.spectrum.predict(lambda mu: torch.full_like(mu, eta)) for c in contexts]
        pairs = zip(steps, contexts, strict=True)
        return float(sum((step - c.problem.targets).square().sum() for step, c in pairs))

    best = step_loss(fitted.eta)
    assert best < step_loss(0.95 * fitted.eta) and best < step_loss(1.05 * fitted.eta)


def test_the_comparison_equals_losses_computed_directly(plan, setting) -> None:
    subject = solver(0.5)
    results = measured(plan, setting, subject)
    stage = ReferenceStage(setting.ridge)
    found = conclude(results[stage, SUBJECT])
    sums, count = torch.zeros(5, dtype=torch.float64), 0
    for shard, (_, size) in enumerate(plan.shards(TEST)):
        sequences = plan.draw(TEST, shard, size)
        context = Context(sequences, plan.task.problem(sequences))
        problem, said = context.problem, subject(context).float().double()
        mesa = solver(found.ridge)(context)
        parts = (said - problem.targets, mesa - problem.targets, said - mesa)
        parts += (said, said - problem.oracle)
        sums += torch.stack([part.double().square().sum() for part in parts])
        count += size
    model, reference, apart, energy, from_oracle = sums.tolist()
    positions = count * plan.task.length
    assert found.model_loss == pytest.approx(0.5 * model / positions, rel=1e-5)
    assert found.loss == pytest.approx(0.5 * reference / positions, rel=1e-5)
    excess = 0.5 * (model - reference) / positions
    assert found.excess_of_model == pytest.approx(excess, rel=1e-4)
    assert found.agreement_r2 == pytest.approx(1 - apart / energy, rel=1e-5)
    assert found.error_r2 == pytest.approx(1 - apart / from_oracle, rel=1e-4)
    assert found.excess_lo < found.excess_of_model < found.excess_hi
    assert found.excess_lo > 0  # the penalty of the subject is far from the best


def test_the_reference_agrees_with_itself(plan, setting) -> None:
    results = measured(plan, setting, solver(setting.ridge))
    ridge = results[ReferenceStage(setting.ridge), SUBJECT].learned.ridge
    same = conclude(measured(plan, setting, solver(ridge))[ReferenceStage(setting.ridge), SUBJECT])
    assert abs(same.excess_of_model) < 1e-6 and same.agreement_r2 > 0.999999
    nothing = conclude(
        measured(plan, setting, lambda c: 0 * c.problem.oracle)[
            ReferenceStage(setting.ridge), SUBJECT
        ]
    )
    assert nothing.excess_of_model > 0.1


def test_learners_improve_with_context_and_others_do_not(plan, setting) -> None:
    learner = Behaviour().conclude(setting, measured(plan, setting, solver(setting.ridge)))
    assert learner.outcome == "supports"
    assert learner.metrics["late_over_early"].value < 0.5
    assert learner.controls["late_over_early"].value > 0.9
    zero = measured(plan, setting, lambda context: 0 * context.problem.oracle)
    flat = Behaviour().conclude(setting, zero)
    assert flat.outcome == "contradicts"
    assert flat.metrics["late_over_early"].value > 0.9
    assert flat.metrics["excess_loss"].lo > 0
    frame = learner.tables[0].frame
    assert len(frame) == plan.task.length * len(PREDICTORS)
    by_predictor = frame.groupby("predictor")["loss"].mean()
    assert by_predictor["oracle"] < by_predictor["mesa-layer"] < by_predictor["one gradient step"]
    assert by_predictor["one gradient step"] < by_predictor["zero"]
    assert (frame["loss_se"] >= 0).all() and (frame["position"].min(), frame["position"].max()) == (
        1,
        12,
    )
