"""Inputs and labels as tokens of their own: the problem, Bayes' answer, planted models, reports."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.capture import capture
from probe.checkpoints.base import Subject, load
from probe.checkpoints.native import write_native
from probe.findings import Report
from probe.input_laws import candidates, shifts
from probe.models.training import _loss_on_fresh
from probe.models.transformer import SequenceTransformer
from probe.nudge import nudge_of
from probe.pilot import scout
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.planted.base import error_against_solver, families_planted
from probe.planted.descent import plant_descent
from probe.planted.frame import Frame
from probe.planted.slots import Layer, linear
from probe.sampling import generator_for
from probe.stages import Context
from probe.symmetries import paired_tokens, permuted, with_values
from probe.tasks.base import Spaced, Task, asked_tokens
from probe.tasks.functions import DecisionTree, Linear, Quadratic, Sign, TwoLayer
from probe.tasks.inputs import Clustered
from probe.tasks.interleaved_regression import InterleavedRegression
from probe.tasks.label_noise import StudentNoise
from probe.tasks.layouts import PaddedLabels, SplitChannels
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import InContextRegression
from probe.tasks.shifts import OrthogonalQueries, RepeatedQueries
from probe.tasks.teachers import Gaussian, Orthogonal
from probe.tasks.weights import GaussianWeights, PooledWeights, SparseWeights

CLEAN = InterleavedRegression("clean", Linear(), width=5, points=16)
NOISY = replace(CLEAN, noise=0.7)
LAYOUTS = {"padded": PaddedLabels(), "split": SplitChannels()}


def posed(task: Task, count: int = 64, seed: int = 0) -> Context:
    sequences = task.sample(count, generator_for(seed))
    return Context(sequences, task.problem(sequences))


def ridge(context: Context, penalty: float) -> torch.Tensor:
    return context.spectrum.predict(lambda mu: 1 / (mu + penalty))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outputs", [1, 2, 7])
def test_tokens_take_turns(layout: str, outputs: int) -> None:
    task = replace(NOISY, functions=Linear(outputs=outputs), layout=LAYOUTS[layout])
    context = posed(task, 8)
    tokens, problem = context.sequences.tokens, context.problem
    asked, told = tokens[:, task.asked], tokens[:, 1::2]
    assert isinstance(task, Spaced) and tokens.shape == (8, 32, task.width_in)
    assert asked_tokens(LinearDynamics("d", Orthogonal())) == slice(None)  # control
    front = asked[..., :5] if layout == "padded" else asked[..., outputs:]
    assert torch.equal(front, problem.queries)
    assert torch.equal(told[..., :outputs], problem.targets)
    assert not told[..., outputs:].any()
    rest = asked[..., 5:] if layout == "padded" else asked[..., :outputs]
    assert not rest.any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(3, 9), st.integers(1, 3), st.integers(0, 99))
def test_pairs_come_before_their_question(width: int, points: int, outputs: int, seed: int) -> None:
    task = InterleavedRegression("t", Linear(outputs=outputs), width=width, points=points)
    problem = posed(task, 3, seed).problem
    assert torch.equal(problem.keys[:, 1:], problem.queries[:, :-1])
    assert torch.equal(problem.values[:, 1:], problem.targets[:, :-1])
    assert not problem.keys[:, : problem.first].any()


def test_ridge_is_the_posterior_mean() -> None:
    """Against a solve of its own at every question: (X^T X + sigma^2 / tau^2)^-1 X^T y . x."""
    task = replace(NOISY, functions=Linear(GaussianWeights(2.0)))
    context = posed(task, 16)
    x, y = context.problem.queries.double(), context.problem.targets.double()
    penalty = (0.7 / 2.0) ** 2
    predicted = ridge(context, penalty)
    for i in (1, 3, 5, 9, 15):
        known, labels = x[:, :i], y[:, :i]
        gram = known.mT @ known + penalty * torch.eye(5).double()
        w = torch.linalg.solve(gram, known.mT @ labels)
        assert torch.allclose(predicted[:, i], (x[:, i, None] @ w)[:, 0], atol=1e-5)
        assert not torch.allclose(ridge(context, 4 * penalty)[:, i], predicted[:, i], atol=1e-3)


def test_ridge_reaches_the_bayes_loss() -> None:
    """E (y - y_hat)^2 = sigma^2 (1 + x^T (X^T X + lambda)^-1 x); other penalties stay above."""
    context = posed(NOISY, 4096)
    penalty = 0.7**2
    errors = (ridge(context, penalty) - context.problem.targets).square()[..., 0]
    solved = context.spectrum.filtered_query(lambda mu: 1 / (mu + penalty))
    leverage = (solved * context.problem.queries).sum(-1)
    surplus = (errors - 0.49 * (1 + leverage))[:, 1:].mean(1)
    assert abs(float(surplus.mean())) < 3 * float(surplus.std()) / 4096**0.5
    for other in (penalty / 4, 4 * penalty):
        worse = (ridge(context, other) - context.problem.targets).square()[..., 0] - errors
        worse = worse[:, 1:].mean(1)
        assert float(worse.mean()) > 5 * float(worse.std()) / 4096**0.5


@pytest.mark.parametrize("task", [CLEAN, replace(CLEAN, functions=Quadratic())])
def test_enough_clean_pairs_give_the_answer(task: InterleavedRegression) -> None:
    context = posed(task, 256)
    left = (ridge(context, 1e-9) - context.problem.oracle).square()[..., 0].mean(0)
    energy = context.problem.oracle.square().mean()
    assert float(left[9:].max()) < 1e-4 * float(energy)  # n >= d + 4
    assert float(left[:5].min()) > 0.05 * float(energy)  # control: n < d
    foreign = (ridge(context.swapped, 1e-9) - context.problem.oracle).square()[:, 9:].mean()
    assert float(foreign) > float(energy)


@pytest.mark.parametrize("functions", [Sign(), TwoLayer(4), DecisionTree()])
def test_least_squares_never_solves_the_other_classes(functions: Sign | TwoLayer) -> None:
    context = posed(replace(CLEAN, functions=functions, points=40), 256)
    left = (ridge(context, 1.0) - context.problem.oracle).square()[:, 30:].mean()
    assert float(left) > 0.1 * float(context.problem.oracle.square().mean())
    assert torch.equal(context.problem.oracle, context.problem.targets)
    assert context.sequences.teachers.isnan().all()


def test_a_known_support_beats_ridge() -> None:
    """Three weights of eight: least squares on their channels is exact from three pairs on."""
    task = InterleavedRegression("sparse", Linear(SparseWeights(3)), width=8, points=10)
    context = posed(task, 128)
    x, y = context.problem.queries.double(), context.problem.oracle.double()
    support = context.sequences.teachers[:, 0].ne(0).double().topk(3).indices
    held = x.gather(2, support[:, None].expand(-1, 10, -1))
    for i in (4, 6):
        w = torch.linalg.lstsq(held[:, :i], y[:, :i]).solution
        known = ((held[:, i, None] @ w)[:, 0] - y[:, i]).square().mean()
        best = min(
            float((ridge(context, 10.0**power)[:, i] - y[:, i]).square().mean())
            for power in range(-4, 3)
        )
        assert float(known) < 1e-6 < 0.5 < best


def test_shifted_queries_come_last() -> None:
    task = replace(CLEAN, points=4, shift=OrthogonalQueries())
    context = posed(task)
    assert task.windows.judged == (3, 4)
    assert CLEAN.windows.judged != (15, 16)
    predicted = ridge(context, 1e-9)[:, 3]
    assert float(predicted.abs().max()) < 1e-4
    assert float(context.problem.oracle[:, 3].abs().mean()) > 0.5
    repeated = posed(replace(CLEAN, shift=RepeatedQueries(), points=4))
    assert torch.allclose(
        ridge(repeated, 1e-9)[:, 3], repeated.problem.oracle[:, 3].double(), atol=1e-3
    )


def test_input_laws_of_regression() -> None:
    for task in (CLEAN, InContextRegression("r", Gaussian(), pairs=8, width=5)):
        names = [law.name for law in shifts(task)]
        assert names == [
            "queries in another orthant",
            "repeated queries",
            *(f"{what} x {f}" for f in ("0.333", "0.5", "2", "3") for what in ("inputs", "labels")),
        ]
        own = task.problem(task.sample(8, generator_for(0)))
        by_name = {law.name: law.task for law in shifts(task)}
        labels, inputs = (
            by_name[f"{what} x 3"].problem(by_name[f"{what} x 3"].sample(8, generator_for(0)))
            for what in ("labels", "inputs")
        )
        assert torch.allclose(labels.oracle, 3 * own.oracle, rtol=1e-5)
        assert torch.equal(labels.queries, own.queries)
        assert torch.allclose(inputs.queries, 3 * own.queries, rtol=1e-5)
    short = replace(CLEAN, points=4)
    assert "orthogonal queries" in [law.name for law in shifts(short)]
    assert len(candidates(CLEAN)) == 5 and len(candidates(NOISY)) == 9


LEARNERS = ("chebyshev", "gradient_descent", "momentum", "richardson", "ridge")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", LEARNERS)
def test_planted_models_run_their_solver(family: str, layout: str) -> None:
    task = replace(NOISY, functions=Linear(outputs=2), layout=LAYOUTS[layout])
    planted, other = (families_planted()[family].draw(task, generator_for(seed)) for seed in (1, 2))
    assert error_against_solver(planted, 64, generator_for(3)) < 2e-4
    assert error_against_solver(replace(planted, solver=other.solver), 64, generator_for(3)) > 1e-3


def test_nothing_is_planted_where_pairs_cannot_be_read() -> None:
    for functions in (Quadratic(), TwoLayer(), Sign()):
        assert not families_planted()["ridge"].fits(replace(CLEAN, functions=functions))
        with pytest.raises(TypeError, match="nothing can be planted on clean"):
            Frame.of(replace(CLEAN, functions=functions))


def test_what_stands_at_labels_is_not_looked_at() -> None:
    """A capture, its runner and the loss of training see the questions only."""
    model = families_planted()["ridge"].draw(CLEAN, generator_for(1)).model
    tokens = CLEAN.sample(5, generator_for(0)).tokens
    whole = capture(model, tokens, 16)
    seen = whole.at(CLEAN.asked)
    assert whole.output.shape[1] == 32 and seen.output.shape[1] == 16
    for name in ("layers", "updates", "readouts"):
        assert torch.equal(getattr(seen, name), getattr(whole, name)[:, :, ::2])
    assert seen.runner is not None
    assert torch.equal(seen.runner.run(tokens), seen.output)
    assert torch.equal(seen.runner.resume(whole.layers[1], 1), seen.output)
    assert not torch.equal(whole.output[:, 1::2], torch.zeros(5, 16, 1))  # it says something there
    silent = plant_descent(CLEAN, "gd-1", (0.0,), "gradient_descent").model
    losses = [float(_loss_on_fresh(m, CLEAN, 256, generator_for(3))) for m in (model, silent)]
    targets = CLEAN.problem(CLEAN.sample(256, generator_for(3))).targets
    assert losses[1] == pytest.approx(0.5 * float(targets.square().sum(-1).mean()), rel=1e-5)
    assert losses[0] < 0.7 * losses[1]


def test_pairs_of_two_tokens_move_together() -> None:
    pairs = paired_tokens(CLEAN)
    assert pairs is not None and pairs.before(6) == (0, 6)
    tokens = CLEAN.sample(7, generator_for(0)).tokens
    cut = pairs.until(tokens, 6)
    changed = permuted(cut, pairs.before(6), generator_for(1), pairs.span)
    assert torch.equal(changed[:, -1], tokens[:, 12])
    before, after = (t[:, :12].unflatten(1, (6, 2)).flatten(2) for t in (cut, changed))
    met = (after[:, :, None] == before[:, None]).all(-1)
    assert (met.sum(1) == 1).all() and (met.sum(2) == 1).all()
    assert not torch.equal(before, after)
    zeroed = with_values(cut, pairs, torch.zeros(7, 6))
    assert not zeroed[:, 1:12:2].any() and torch.equal(zeroed[:, ::2], cut[:, ::2])


def subject(model: SequenceTransformer, folder: Path) -> Subject:
    write_native(model, "garg-linear", folder)
    return load(folder)


def analysed(
    model: SequenceTransformer,
    task: Task,
    folder: Path,
    count: int = 256,
    only: tuple[str, ...] = ("spectral_response",),
) -> Report:
    plan = Plan(task, count, 0, workers=1)
    return analyze(Request(subject(model, folder), plan, only))


def test_a_planted_model_is_read_from_end_to_end(tmp_path: Path) -> None:
    planted = plant_descent(CLEAN, "gd-2", (0.04, 0.04), "gradient_descent")
    report = analysed(planted.model, CLEAN, tmp_path, only=())
    assert report.verdict.instruments_ok
    assert (report.verdict.algorithm_class, report.verdict.degree) == ("first_order", 2)
    findings = {finding.analysis: finding for finding in report.findings}
    for name in ("spectral_response", "behaviour", "layer_reconstruction"):
        assert findings[name].outcome == "supports", name
    assert set(report.left_out) >= {"interchange", "pair_edits"}


def test_a_single_question_is_no_ground_for_a_verdict(tmp_path: Path) -> None:
    """Orthogonal queries: every solver says zero, so the planted mesa-layer cannot be read."""
    task = replace(CLEAN, points=4, shift=OrthogonalQueries())
    planted = plant_descent(task, "gd-2", (0.04, 0.04), "gradient_descent")
    report = analysed(planted.model, task, tmp_path)
    assert report.verdict.algorithm_class not in ("first_order", "least_squares")
    assert report.verdict.evidence_level == 0


def test_a_planted_model_treats_pairs_as_a_set(tmp_path: Path) -> None:
    planted = plant_descent(CLEAN, "gd-2", (0.04, 0.04), "gradient_descent")
    untrained = families_planted()["untrained"].draw(CLEAN, generator_for(3)).model
    for model, outcome in ((planted.model, "supports"), (untrained, "contradicts")):
        report = analysed(model, CLEAN, tmp_path / outcome, 1024, ("signatures",))
        assert report.findings[0].outcome == outcome
    frame = report.findings[0].tables[0].frame.set_index("signature")
    assert frame.outcome["rotation_equivariance"] == "not testable"
    assert frame.outcome["value_dependence"] == "failed"


def fixed_map(task: Task, matrix: torch.Tensor) -> SequenceTransformer:
    """A model that applies one matrix to the query, whatever the context says."""
    shared = Frame.of(task)
    layer = Layer(hidden=(linear(shared.slots.read("r", matrix.mT), shared.slots.write("y")),))
    return shared.build((layer, Layer()))


POOL = PooledWeights(1, seed=0)
CONTEXT_FREE = {
    "one teacher": (replace(CLEAN, functions=Linear(POOL)), POOL.members(1, 5)[0]),
    "a pool": (
        replace(CLEAN, functions=Linear(PooledWeights(4, seed=0))),
        PooledWeights(4, seed=0).members(1, 5).mean(0),
    ),
    "pairs first": (
        InContextRegression("pool", PooledWeights(1, seed=0), width=3, pairs=12, queries=6),
        POOL.members(3, 3)[0],
    ),
}


@pytest.mark.parametrize("name", CONTEXT_FREE)
def test_a_memorised_map_is_no_learner(name: str, tmp_path: Path) -> None:
    task, matrix = CONTEXT_FREE[name]
    report = analysed(fixed_map(task, matrix), task, tmp_path)
    assert report.verdict.algorithm_class not in ("first_order", "least_squares")
    found = {finding.analysis: finding.outcome for finding in report.findings}
    assert found["spectral_response"] != "supports"


def test_a_nudge_tells_who_learns_in_regression_with_a_known_teacher(tmp_path: Path) -> None:
    task = InContextRegression("p", PooledWeights(1), width=3, pairs=12, queries=6)
    learner = families_planted()["ridge"].draw(task, generator_for(1)).model
    memory = fixed_map(task, PooledWeights(1).members(3, 3)[0])
    reports = [
        analysed(model, task, tmp_path / name, 256, ("teacher_nudge",))
        for name, model in (("learner", learner), ("memory", memory))
    ]
    assert [report.findings[0].outcome for report in reports] == ["supports", "contradicts"]
    assert reports[1].verdict.algorithm_class not in ("first_order", "least_squares")
    large = InContextRegression("l", PooledWeights(65), width=3, pairs=12, queries=6)
    fresh = replace(large, teacher=Gaussian())
    assert all(nudge_of(scout(Plan(t, 256, 0), 1)) == () for t in (large, fresh))


OTHER_LAWS = {
    "two clusters": InContextRegression(
        "clusters", Gaussian(), Clustered(2, 20.0), width=4, pairs=14, queries=6
    ),
    "heavy tails": InContextRegression(
        "tails", Gaussian(), width=4, pairs=14, queries=6, noise=0.2, noise_law=StudentNoise()
    ),
}


@pytest.mark.parametrize("name", OTHER_LAWS)
def test_planted_steps_keep_their_class_under_other_laws(name: str, tmp_path: Path) -> None:
    task = OTHER_LAWS[name]
    planted = plant_descent(task, "gd-2", (0.03, 0.03), "gradient_descent")
    verdict = analysed(planted.model, task, tmp_path, 512).verdict
    assert (verdict.algorithm_class, verdict.degree) == ("first_order", 2)
