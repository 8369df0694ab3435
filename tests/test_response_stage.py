"""Fits and scores from one Gram matrix equal those computed from the predictions themselves."""

from dataclasses import replace

import pytest
import torch
from planted_predictors import column, measure, spectral

from probe.capture import capture, predictor_only
from probe.columns import Columns
from probe.pilot import scout
from probe.plan import FIT, TEST, Plan
from probe.response import gcv_solve
from probe.response_stage import OUTPUT, ResponseStage
from probe.sampling import generator_for, normal
from probe.scores import curve_band, read
from probe.solvers import gradient_descent, ridge
from probe.solvers.base import families
from probe.stages import Batch, Context
from probe.statistics import BLOCKS
from probe.sweep import Sweep
from probe.views import SUBJECT, SWAPPED, all_views

SEQUENCES = 512


def shards(plan: Plan, split: int):
    """Every shard of a split, drawn anew."""
    for shard, (first, count) in enumerate(plan.shards(split)):
        sequences = plan.draw(split, shard, count)
        blocks = (first + torch.arange(count)) % BLOCKS
        yield Context(sequences, plan.task.problem(sequences)), blocks


@pytest.fixture(scope="module")
def mixture(small_task):
    """Least squares with a large penalty, half a copy of the last token, and a bias."""

    def predictor(context: Context) -> torch.Tensor:
        solved = spectral(lambda mu: ridge.shrinkage(mu, 0.5))(context)
        return solved + 0.5 * column("two_lag_copy", 1.0, 0.2)(context) + 0.05

    return measure(small_task, {"mixture": predictor}, SEQUENCES), predictor


def direct(measurement, predictor, prediction, window="judged"):
    """Error, energy and distance from the oracle on the test split, summed over a window."""
    a, b = getattr(measurement.setting.windows, window)
    sums = torch.zeros(3, dtype=torch.float64)
    for context, _ in shards(measurement.plan, TEST):
        said = predictor(context).float().double()[:, a:b]
        error = said - prediction(context).double()[:, a:b]
        oracle = said - context.problem.oracle.double()[:, a:b]
        sums += torch.stack([(part**2).sum() for part in (error, said, oracle)])
    return sums


@pytest.mark.parametrize("window", ["judged", "unsolved", "solved"])
@pytest.mark.parametrize(
    "family",
    ["ridge", "gradient_descent", "conjugate_gradient", "kernel_smoother", "two_lag_copy", "zero"],
)
def test_scores_equal_those_of_the_predictions_themselves(mixture, family, window) -> None:
    measurement, predictor = mixture
    reading = measurement.reading("mixture", window)
    score = reading.chosen(family)

    def prediction(context: Context) -> torch.Tensor:
        constants = score.constants
        if family == "ridge":
            return spectral(lambda mu: ridge.shrinkage(mu, constants["lambda"]))(context)
        if family == "gradient_descent":
            steps, eta = int(constants["steps"]), constants["eta"]
            return spectral(lambda mu: gradient_descent.shrinkage(mu, steps, eta))(context)
        known = families()[family]
        weights = {
            "conjugate_gradient": lambda: torch.eye(8)[int(constants["steps"]) - 1],
            "kernel_smoother": lambda: torch.tensor(
                [constants["scale"] if 2.0**p == constants["beta"] else 0.0 for p in range(-3, 5)]
            ),
            "two_lag_copy": lambda: torch.tensor([constants["last"], constants["one_before"]]),
            "zero": lambda: torch.ones(1),
        }[family]()
        return known.columns(context) @ weights.double()

    error, energy, oracle = direct(measurement, predictor, prediction, window)
    # Curves between knots are straight lines over log mu, which costs a little.
    tolerance = 2e-3 if family in ("ridge", "gradient_descent") else 1e-5
    assert reading.value(score) == pytest.approx(1 - float(error / energy), abs=tolerance)
    found = reading.error_r2(score)
    assert found.value == pytest.approx(1 - float(error / oracle), abs=3 * tolerance, rel=tolerance)
    assert float(reading.energy.sum()) == pytest.approx(float(energy), rel=1e-5)
    assert float(reading.oracle_error.sum()) == pytest.approx(float(oracle), rel=1e-4)
    interval = reading.r2(score)
    assert interval.lo <= interval.value <= interval.hi
    # Control: the same weights against another sequence's predictions.
    if family != "zero":
        wrong, _, _ = direct(measurement, predictor, lambda c: prediction(c).roll(1, 0), window)
        assert abs(reading.value(score) - (1 - float(wrong / energy))) > 0.1


def test_errors_of_map_families_equal_their_predictions(mixture) -> None:
    measurement, predictor = mixture
    reading = measurement.reading("mixture")
    learned = measurement.results[measurement.stage, "mixture"].learned
    for name in ("memorised_map", "preconditioned_gd"):
        matrix = learned.maps[name, "judged"][0]

        def prediction(context: Context, matrix=matrix, name=name) -> torch.Tensor:
            moved = context.problem.queries.double() @ matrix.mT
            return (families()[name].left(context) @ moved[..., None])[..., 0]

        error, energy, _ = direct(measurement, predictor, prediction)
        score = reading.chosen(name)
        assert reading.value(score) == pytest.approx(1 - float(error / energy), abs=1e-5)
        assert score.free == 9
        better = direct(measurement, predictor, lambda c, m=matrix: 0 * c.problem.oracle)
        assert better[0] > error


def test_grams_by_block_equal_direct_products(small_task) -> None:
    sequences = small_task.sample(100, generator_for(0))
    context = Context(sequences, small_task.problem(sequences))
    blocks = (30 + torch.arange(100)) % BLOCKS
    columns = Columns(scout(Plan(small_task, 256, 0), 1).knots, ("mean", "oracle", "zero"))
    said = normal(generator_for(1), 100, 12, 3, 2).float()
    batch = Batch(context, predictor_only(said[..., 0]), blocks)
    spans = ((1, 4), (4, 11))
    grams = columns.grams(batch, said, spans)
    joined = torch.cat([columns.of(batch), said], -1).double()
    for i, (a, b) in enumerate(spans):
        for block in (0, 29, 30, 63):
            rows = joined[blocks == block, a:b].flatten(0, 2)
            scale = float(grams[block, i].abs().max())
            assert torch.allclose(grams[block, i], rows.mT @ rows, atol=1e-5 * scale)
    assert not torch.allclose(grams[0, 0], grams[1, 0], rtol=0.1)
    whole = joined[:, 1:11].flatten(0, 2)
    assert torch.allclose(grams.sum((0, 1)), whole.mT @ whole, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def layered(small_task, tiny_model):
    """A random model of two blocks with all its layers."""
    plan = Plan(small_task, SEQUENCES, 3, workers=1)
    setting = scout(plan, 2)
    columns = Columns(setting.knots, ("mean", "oracle", "two_lag_copy", "zero"))
    stage = ResponseStage(setting.windows, columns, setting.step_bound, (SUBJECT,), layered=True)
    swapped = replace(stage, views=(SWAPPED,), layered=False)
    model = tiny_model("softmax")
    views = {name: all_views(setting.ridge)[name] for name in (SUBJECT, SWAPPED)}
    sweep = Sweep(plan, {SUBJECT: model}, views, capture)
    return plan, stage, swapped, model, sweep.run((stage, swapped))


def captured(plan: Plan, model, split: int):
    for context, blocks in shards(plan, split):
        tokens = context.sequences.tokens
        yield Batch(context, capture(model, tokens, len(tokens)), blocks)


def test_decoders_are_ridge_on_the_fit_split(layered) -> None:
    plan, stage, _, model, results = layered
    learned = results[stage, SUBJECT].learned
    batches = list(captured(plan, model, FIT))
    position = 6
    for layer in (1, 2):
        stream = torch.cat([b.capture.layers[layer, :, position] for b in batches]).double()
        target = torch.cat([b.context.problem.targets[:, position] for b in batches]).double()
        fit = gcv_solve(
            stream.mT @ stream,
            stream.mT @ target,
            (target**2).sum(),
            torch.eye(stream.shape[1], dtype=torch.float64),
            len(stream),
        )
        # What is decoded, not the coefficients: the stream of a narrow token has no full rank.
        found = stream @ learned.decoders[layer, position - stage.spans[0][0]]
        expected = stream @ fit.coefficients
        gap = ((found - expected) ** 2).sum() / (target**2).sum()
        assert gap < 1e-3
        residual = ((target - found) ** 2).sum()
        assert residual <= (target**2).sum()
        other = stream @ learned.decoders[layer, position - stage.spans[0][0] - 4]
        assert ((other - expected) ** 2).sum() > 3 * ((found - expected) ** 2).sum()


def test_products_of_decoded_sites_equal_their_predictions(layered) -> None:
    plan, stage, _, model, results = layered
    learned = results[stage, SUBJECT].learned
    start, _ = stage.spans[0]
    a, b = stage.windows.judged
    assert learned.sites[0] == OUTPUT and len(learned.sites) == 7
    for layer in (0, 1, 2):
        columns, said = [], []
        for batch in captured(plan, model, FIT):
            columns.append(stage.columns.of(batch)[:, a:b].double())
            stream = batch.capture.layers[layer, :, a:b].double()
            decoders = learned.decoders[layer, a - start : b - start]
            said.append(torch.einsum("btd,tdv->btv", stream, decoders))
        x, y = torch.cat(columns).flatten(0, 2), torch.cat(said).flatten()
        form = learned.errors[f"decoded:{layer}", "judged"]
        assert form.energy == pytest.approx(float(y @ y), rel=1e-3)
        scale = float((x.mT @ y).abs().max())
        assert torch.allclose(form.cross, x.mT @ y, atol=1e-3 * scale)
        assert torch.allclose(form.gram, x.mT @ x, rtol=1e-3, atol=1e-4 * float((x**2).sum()))
        other = learned.errors[f"decoded:{(layer + 1) % 3}", "judged"]
        assert not torch.allclose(other.cross, x.mT @ y, atol=1e-3 * scale)


def test_readouts_and_output_are_the_model_itself(layered) -> None:
    plan, stage, _, model, results = layered
    measured = results[stage, SUBJECT]
    output, last = (read(stage, measured, site, "judged") for site in (OUTPUT, "readout:2"))
    a, b = stage.windows.judged
    energy = sum(
        float((batch.capture.output[:, a:b].double() ** 2).sum())
        for batch in captured(plan, model, TEST)
    )
    assert float(output.energy.sum()) == pytest.approx(energy, rel=1e-5)
    # The last read-out is the output.
    assert torch.allclose(output.energy, last.energy, rtol=1e-4)
    first = read(stage, measured, "readout:0", "judged")
    assert not torch.allclose(output.energy, first.energy, rtol=1e-2)


def test_swapped_contexts_are_problems_of_their_own(layered) -> None:
    plan, _, swapped, model, results = layered
    reading = read(swapped, results[swapped, SWAPPED], OUTPUT, "judged")
    copy = reading.chosen("two_lag_copy")
    a, b = swapped.windows.judged
    error = 0.0
    for batch in captured(plan, model, TEST):
        context = batch.context.swapped
        pairs = torch.stack([context.problem.values, context.problem.values.roll(1, 1)], -1)
        weights = torch.tensor([copy.constants["last"], copy.constants["one_before"]])
        rest = batch.capture.output - pairs @ weights
        error += float((rest[:, a:b].double() ** 2).sum())
    assert float(copy.error.sum()) == pytest.approx(error, rel=1e-3)


def test_bands_hold_the_curve_of_a_planted_solver(small_task) -> None:
    truth = ridge.shrinkage

    def noisy(context: Context) -> torch.Tensor:
        said = spectral(lambda mu: truth(mu, 0.3))(context)
        seed = int(float(said.abs().sum()) * 1e3) % 9973
        return said + 0.1 * normal(generator_for(seed), *said.shape)

    measurement = measure(small_task, {"ridge": noisy}, 1024)
    band = curve_band(measurement.stage, measurement.results[measurement.stage, "ridge"], OUTPUT)
    mu = measurement.stage.mu
    seen = (mu > mu[10]) & (mu < measurement.setting.mu_top)
    inside = (band.lo <= truth(mu, 0.3) + 0.01) & (truth(mu, 0.3) - 0.01 <= band.hi)
    assert inside[seen].double().mean() > 0.8
    assert (band.hi > band.lo)[seen].all()
    outside = (band.lo <= truth(mu, 3.0)) & (truth(mu, 3.0) <= band.hi)
    assert outside[seen].double().mean() < 0.3
