"""Interchange: on planted iterations the state transfers as their remaining steps say."""

from dataclasses import replace

import pytest
import torch
from planted_states import expected_change, layers_with_state, slope_and_share

from analyses.interchange import Interchange, _Rows
from probe.capture import capture
from probe.causal.erasure import projection
from probe.causal.interchange_stage import EDITS, SWAPS, InterchangeStage
from probe.causal.patterns import Products, pattern
from probe.causal.states import ActedOn
from probe.causal.transfer import HATS, Place, columns
from probe.pilot import scout
from probe.plan import Plan
from probe.planted.base import Planted, families_planted
from probe.planted.descent import Steps, plant_descent
from probe.planted.disguises.base import disguises
from probe.sampling import generator_for, normal
from probe.stages import Context, Results
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.views import SUBJECT, TWIN, all_views, permuted_twin

TASK = "linear-narrow-constructed"


def planted(family: str, *hidden_by: str, seed: int = 1, task: str = TASK) -> Planted:
    """An iteration of at least three steps."""
    generator = generator_for(seed, 5)
    while True:
        model = families_planted()[family].draw(find_task(task), generator)
        if (model.truth.degree or 0) >= 3:
            break
    for name in hidden_by:
        model = disguises()[name].apply(model, generator)
    return model


def measured(model: Planted, sequences: int = 1024) -> tuple[InterchangeStage, Results]:
    plan = Plan(model.task, sequences, 0, workers=1)
    setting = scout(plan, len(model.model.blocks))
    (stage,) = Interchange().stages(setting)
    models = {SUBJECT: model.model, TWIN: permuted_twin(model.model, 0)}
    views = {name: view for name, view in all_views(1.0).items() if name in models}
    return stage, Sweep(plan, models, views, capture).run((stage,))


def swapped(
    model: Planted, stage: InterchangeStage, results: Results, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a swap at the first position does to the output, and what the planted T_l says."""
    state = next(s for s in model.states if s.layer == layer)
    sequences = model.task.sample(256, generator_for(9))
    context = Context(sequences, model.task.problem(sequences))
    seen = capture(model.model, sequences.tokens, 256)
    t = stage.positions[0]
    edit = results[stage, SUBJECT].learned.plans[layer, t].swaps["state"]
    values = seen.layers[layer][:, t].double() @ edit.reads
    dh = (values.roll(1, 0) - values) @ edit.pattern
    stream = seen.layers[layer][:, : t + 1].clone()
    stream[:, t] += dh.float()
    moved = (seen.runner.resume(stream, layer)[:, t] - seen.output[:, t]).double()
    return moved, expected_change(context, t, state, dh @ state.read.double())


FAMILIES = ["gradient_descent", "chebyshev"]
HIDDEN_BY = [
    (),
    ("rotation",),
    ("change_of_basis",),
    ("idle_layers",),
    ("distractors", "change_of_basis"),
]


CASES = [(family, disguise, TASK) for family in FAMILIES for disguise in HIDDEN_BY]
CASES += [("gradient_descent", HIDDEN_BY[-1], "linear-narrow"), ("chebyshev", (), "linear-narrow")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "hidden_by", "task"), CASES)
def test_the_state_of_a_planted_iteration_transfers(
    family: str, hidden_by: tuple[str, ...], task: str
) -> None:
    """At every layer: by the planted T_l, with a slope of one, above every control."""
    model = planted(family, *hidden_by, task=task)
    layers = layers_with_state(model)
    assert layers
    stage, results = measured(model, 2048)
    rows = _Rows(stage, results, SUBJECT)
    for layer in layers:
        assert rows.transfers[layer, "state"].r2.lo >= 0.98, layer
        assert rows.margin(layer).lo > 0.5, layer
        slope, share = slope_and_share(*swapped(model, stage, results, layer))
        assert slope == pytest.approx(1, abs=0.05), layer
        assert share >= 0.98, layer


def test_the_state_is_what_the_next_block_acts_on() -> None:
    """The growth of the read-out tells the residual of the steps so far."""
    etas = (0.02, 0.012, 0.03)
    model = plant_descent(find_task(TASK), "gd", etas, "polynomial")
    stage, results = measured(model)
    states = results[stage, SUBJECT].learned.states
    mu = torch.tensor([0.5, 2.0, 8.0, 25.0], dtype=torch.float64)
    for done, state in enumerate(states, 1):
        assert isinstance(state, ActedOn) and state.r2 > 0.999
        found = state.residual(mu) / state.residual(mu)[0]
        expected = 1 - mu * Steps(etas[:done])(mu)
        assert torch.allclose(found, expected / expected[0], atol=0.02)
        other = 1 - mu * Steps(etas[: done - 1] or (0.05,))(mu)  # control
        assert not torch.allclose(found, other / other[0], atol=0.1)


def test_a_null_does_not_transfer() -> None:
    """Control: a model without a solver in it, of several blocks."""
    model = families_planted()["untrained"]
    while True:
        drawn = model.draw(find_task(TASK), generator_for(3, 7))
        if len(drawn.model.blocks) > 1:
            break
    stage, results = measured(drawn, sequences=512)
    rows = _Rows(stage, results, SUBJECT)
    best = rows.best()
    assert best is None or rows.transfers[best, "state"].through_context.hi < 0.4


@pytest.mark.parametrize("family", ["gradient_descent", "chebyshev"])
def test_the_loss_after_erasing_is_that_predicted(family: str) -> None:
    model = planted(family)
    stage, results = measured(model)
    rows = _Rows(stage, results, SUBJECT)
    losses = [rows.losses(layer) for layer in layers_with_state(model)]
    for after, predicted in losses:
        assert predicted.value == pytest.approx(after.value, rel=0.01)
    if family == "chebyshev":
        assert losses[-1][0].value > 1.5, "without the state of its last step it is worse"


def test_the_projection_of_leace_erases_and_is_least() -> None:
    generator = generator_for(4)
    x, noise = normal(generator, 4000, 6), normal(generator, 4000, 2)
    z = x[:, :2] + 0.3 * x[:, 2:4] + 0.5 * noise
    p = projection(x.mT @ x, x.mT @ z)
    left = x - x @ p.mT
    assert (left.mT @ z).abs().max() / (x.mT @ z).abs().max() < 1e-9
    assert torch.allclose(p @ p, p, atol=1e-9)
    assert torch.linalg.matrix_rank(p) == 2
    orthogonal = torch.linalg.qr(x.mT @ z)[0]  # control: another eraser does more damage
    other = x - x @ (orthogonal @ orthogonal.mT)
    assert (x - left).square().sum() <= (x - other).square().sum() + 1e-9


def test_a_pattern_writes_one_part_and_no_other() -> None:
    """A stream that is a sum of parts, in a skewed basis; the probe's row space would fail."""
    generator = generator_for(6)
    state, kept = normal(generator, 2000, 2), normal(generator, 2000, 3)
    state = state + kept[:, :2]  # correlated
    basis = normal(generator, 5, 5) + 2 * torch.eye(5, dtype=torch.float64)
    stream = torch.cat([state, kept], 1) @ basis
    beside = torch.cat([torch.ones(2000, 1, dtype=torch.float64), kept, state], 1)
    products = Products(stream.mT @ stream, stream.mT @ beside, beside.mT @ beside)
    reads = products.probe(slice(4, 6))
    found = pattern(products, reads, reads[:, :0], [0, 1, 2, 3])
    assert torch.allclose(found, basis[:2], atol=1e-3)
    row_space = torch.linalg.pinv(reads)  # control
    assert not torch.allclose(row_space, basis[:2], atol=0.1)


def test_what_goes_beyond_is_not_readable_from_what_is_held() -> None:
    generator = generator_for(7)
    stream = normal(generator, 2000, 4) @ normal(generator, 4, 4)
    none = torch.zeros(4, 0, dtype=torch.float64)
    products = Products(stream.mT @ stream, stream.mT @ stream[:, :0], none.mT @ none)
    eye = torch.eye(4, dtype=torch.float64)
    reads, held = eye[:, :2], eye[:, 2:3]
    beyond = stream @ products.beyond(reads, held)
    size = float(beyond.norm() * (stream @ held).norm())
    assert float((beyond.mT @ (stream @ held)).abs().max()) < 1e-4 * size
    plain = (stream @ reads).mT @ (stream @ held)  # control
    assert float(plain.abs().max()) > 1e-2 * size


def test_a_place_of_pairs_is_that_of_the_context() -> None:
    task = find_task(TASK)
    sequences = task.sample(8, generator_for(2))
    context = Context(sequences, task.problem(sequences))
    knots = torch.logspace(-2, 2, 64, dtype=torch.float64)
    t, query = 12, context.problem.queries[:, 12].double()
    one = Place.at(context, t, knots).through(query)
    problem = context.problem
    two = Place.of_pairs(problem.keys[:, : t + 1], problem.values[:, : t + 1], knots).through(query)
    assert torch.allclose(one, two, atol=1e-6)
    fewer = Place.of_pairs(problem.keys[:, :t], problem.values[:, :t], knots).through(query)
    assert not torch.allclose(one, fewer, atol=1e-3)


def test_one_block_has_no_state_to_swap() -> None:
    setting = replace(scout(Plan(find_task(TASK), 512, 0), 1), layers=1)
    assert Interchange().stages(setting) == ()
    assert Interchange().conclude(setting, {}).outcome == "inconclusive"
    assert set(SWAPS) < set(EDITS)


def test_a_prediction_narrower_than_a_query_goes_by_the_direct_term_alone() -> None:
    """Partial observation: queries hold five lags, predictions one observation."""
    task = find_task("partial")
    sequences = task.sample(6, generator_for(2))
    context = Context(sequences, task.problem(sequences))
    place = Place.at(context, 20, torch.logspace(-2, 2, 64, dtype=torch.float64))
    narrow, wide = (torch.ones(6, n, dtype=torch.float64) for n in (5, 25))
    found = columns(place, narrow, narrow, narrow)
    assert found[..., :HATS].abs().max() == 0 and torch.equal(found[..., HATS], narrow)
    assert columns(place, wide, narrow, narrow)[..., :HATS].abs().max() > 0.1
