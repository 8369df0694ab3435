"""In-context regression with query tokens: the problem, its windows, and a whole analysis of it."""

import pytest
import torch

from probe.checkpoints.base import load
from probe.checkpoints.native import write_native
from probe.nudge import nudge_of
from probe.pilot import scout
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.planted.descent import plant_descent
from probe.response_stage import WINDOWS, response_stages
from probe.sampling import generator_for
from probe.stages import Context
from probe.tasks.base import Sequences, find_task
from probe.tasks.regression import Geometric, InContextRegression, Isotropic
from probe.tasks.teachers import Gaussian

TASK = InContextRegression("small", Gaussian(), width=3, pairs=12, queries=6)
CLEAN = InContextRegression("clean", Gaussian(), width=3, pairs=12, queries=6, noise=0.0)


def drawn(task: InContextRegression, count: int = 64, seed: int = 0) -> Sequences:
    return task.sample(count, generator_for(seed))


def used_pairs(task: InContextRegression, count: int = 512) -> torch.Tensor:
    keys = task.problem(drawn(task, count)).keys
    return keys.ne(0).any(-1).sum(1)


def test_every_query_sees_the_whole_context() -> None:
    sequences = drawn(TASK)
    context = Context(sequences, TASK.problem(sequences))
    keys = sequences.features[:, : TASK.pairs].double()
    values = sequences.observations[:, : TASK.pairs].double()
    for position in range(TASK.pairs, TASK.length):
        assert torch.allclose(context.moments.gram[:, position], keys.mT @ keys)
        assert torch.allclose(context.moments.cross[:, position], values.mT @ keys)
    early = context.moments.gram[:, TASK.pairs // 2]
    assert not torch.allclose(early, keys.mT @ keys)  # control: a part of the context


def test_enough_clean_pairs_teach_the_oracle() -> None:
    sequences = drawn(CLEAN)
    context = Context(sequences, CLEAN.problem(sequences))
    enough = context.spectrum.mu[:, -1, 0] > 1e-2
    asked = slice(CLEAN.pairs, None)
    solved, foreign = (
        c.spectrum.predict(lambda mu: 1 / (mu + 1e-9))[enough, asked]
        for c in (context, context.swapped)
    )
    oracle = context.problem.oracle[enough, asked].double()
    assert int(enough.sum()) > 32
    assert torch.allclose(solved, oracle, atol=1e-3)
    assert float((foreign - oracle).square().mean()) > 0.5 * float(oracle.square().mean())


def test_tokens_hold_pairs_then_queries() -> None:
    sequences = drawn(TASK)
    problem = TASK.problem(sequences)
    prediction, query, value, key = sequences.tokens.chunk(4, -1)
    assert not prediction.any()
    assert torch.equal(query, problem.queries)
    assert torch.equal(value, problem.values) and torch.equal(key, problem.keys)
    context, asked = slice(0, TASK.pairs), slice(TASK.pairs, None)
    assert not query[:, context].any() and bool(query[:, asked].ne(0).all())
    assert not key[:, asked].any() and not value[:, asked].any()
    assert not problem.targets[:, context].any()
    taught = torch.einsum("bij,btj->bti", sequences.teachers, query)[:, asked]
    assert torch.allclose(problem.targets[:, asked], taught, atol=1e-5)
    noise = (torch.einsum("bij,btj->bti", sequences.teachers, key) - value)[:, context]
    there = key[:, context].ne(0).any(-1)
    assert float(noise[there].std()) == pytest.approx(TASK.noise, rel=0.1)
    assert not noise[~there].any()
    # What is seen at a position is its value or its query.
    assert torch.equal(sequences.observations[:, :-1], query + value)


def test_the_number_of_pairs_is_uniform() -> None:
    counts = used_pairs(TASK, 4096).bincount(minlength=TASK.pairs + 1)
    least = TASK.width // 2
    assert not counts[:least].any()
    expected = 4096 / (TASK.pairs + 1 - least)
    chi2 = float(((counts[least:] - expected) ** 2 / expected).sum())
    assert chi2 < 31.3  # 99.9 % quantile at 11 degrees of freedom


@pytest.mark.parametrize("covariance", [Isotropic(), Geometric(30.0)])
def test_inputs_follow_their_covariance(covariance: Isotropic | Geometric) -> None:
    task = InContextRegression("wide", Gaussian(), covariance, width=5, pairs=10, queries=40)
    queries = task.problem(drawn(task, 1024)).queries[:, task.pairs :].flatten(0, 1).double()
    variances = covariance.scales(5) ** 2
    sample = queries.mT @ queries / len(queries)
    assert torch.allclose(sample, torch.diag(variances), atol=0.04 * float(variances.max()))
    assert float(variances.mean()) == pytest.approx(1)
    condition = float(variances.max() / variances.min())
    assert condition == pytest.approx(1 if isinstance(covariance, Isotropic) else 30)


def test_windows_are_the_query_positions() -> None:
    for name in ("regression", "regression-skewed"):
        task = find_task(name)
        windows = task.windows
        found = {windows.unsolved, windows.judged, windows.solved, windows.probed}
        assert found == {(task.length - 8, task.length)}
    setting = scout(Plan(TASK, 256, 0), 1)
    assert setting.windows == TASK.windows
    for stage in response_stages(setting):
        assert stage.spans == ((12, 18),)
        assert all(stage.within(window) == [0] for window in WINDOWS)
    assert nudge_of(setting) == ()


def test_training_asks_for_the_targets_of_queries() -> None:
    from probe.models.training import _loss_on_fresh

    solved = plant_descent(CLEAN, "gd-4", (0.08,) * 4, "gradient_descent").model
    silent = plant_descent(CLEAN, "gd-1", (0.0,), "gradient_descent").model
    losses = [float(_loss_on_fresh(m, CLEAN, 256, generator_for(3))) for m in (solved, silent)]
    targets = CLEAN.problem(CLEAN.sample(256, generator_for(3))).targets
    assert losses[1] == pytest.approx(0.5 * float(targets.square().sum(-1).mean()), rel=1e-5)
    assert losses[0] < 0.5 * losses[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    planted = plant_descent(TASK, "gd-2", (0.05, 0.05), "gradient_descent")
    folder = tmp_path_factory.mktemp("native") / "gd"
    write_native(planted.model, "regression", folder)
    return analyze(Request(load(folder), Plan(TASK, 256, 0, workers=1)))


def test_a_planted_model_is_read_from_end_to_end(report) -> None:
    verdict = report.verdict
    assert verdict.instruments_ok
    assert (verdict.algorithm_class, verdict.degree) == ("first_order", 2)
    assert verdict.scope.endswith("t = 13..18")
    findings = {finding.analysis: finding for finding in report.findings}
    assert findings["spectral_response"].outcome == "supports"
    assert findings["layer_reconstruction"].outcome == "supports"
    assert findings["teacher_nudge"].outcome == "inconclusive"  # no teacher to turn
    behaviour = findings["behaviour"]
    assert behaviour.outcome == "inconclusive"
    assert "the context is the same" in behaviour.statement
