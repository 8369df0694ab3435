"""Signatures: learners show them all; each rule that breaks one is read to fail that one."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyses.signatures import Signatures, trials_of
from probe.analysis import Setting
from probe.capture import capture
from probe.checkpoints.base import load
from probe.columns import Columns
from probe.findings import Finding, Table
from probe.models.attention import LinearAttention
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.pilot import scout
from probe.plan import Plan
from probe.planted.base import families_planted
from probe.problem import InContextProblem, prefix_moments, spectrum
from probe.sampling import generator_for, normal
from probe.signature_stage import Products, SignatureStage, ends_of, exponent
from probe.signatures import (
    SCALE,
    SIGNATURES,
    failed_signatures,
    narrowing_signatures,
    tolerances,
)
from probe.statistics import BLOCKS, bootstrap_interval
from probe.sweep import Sweep
from probe.symmetries import (
    is_isotropic,
    paired_tokens,
    permuted,
    segments,
    spliced,
    turned,
    with_values,
)
from probe.tasks.base import Task, find_task
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.regression import InContextRegression
from probe.tasks.teachers import Fixed, Gaussian, Orthogonal
from probe.views import SUBJECT, all_views, permuted_twin

D = 4
TASK = LinearDynamics("tiny", Orthogonal(), ConstructedTokens(), width=D, length=24)
PAIRS = paired_tokens(TASK)
NAMES = [signature.name for signature in SIGNATURES]
OF_VALUES = {"value_homogeneity", "value_additivity"}
OF_RESPONSE = {"mixed_pairs", "scaling_response"}
NON_LEARNERS = {
    "kernel_smoother": OF_RESPONSE,
    "mean": OF_RESPONSE,
    "two_lag_copy": {"value_dependence", *OF_RESPONSE},
    "context_free": {"value_dependence", "rotation_equivariance", *OF_RESPONSE},
}

Rule = Callable[[InContextProblem], torch.Tensor]


class RuleModel(SequenceTransformer):
    """Predicts by a rule on the pairs that stand in the tokens it is given."""

    def __init__(self, rule: Rule):
        block = BlockConfig(LinearAttention(1, 1))
        super().__init__(ModelConfig(4 * D, 4 * D, D, (block,), projected=False))
        self.initialise(0.0, generator_for(0))
        self.rule = rule

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        super().forward(tokens)  # for the hooks; its blocks add nothing
        _, queries, values, keys = tokens.double().unflatten(-1, (4, D)).unbind(-2)
        problem = InContextProblem(keys, values, queries, values, values, 1)
        return self.rule(problem).float()


def step(problem: InContextProblem) -> torch.Tensor:
    """One gradient step."""
    return 0.05 * (prefix_moments(problem).cross @ problem.queries[..., None])[..., 0]


def forgetting(problem: InContextProblem) -> torch.Tensor:
    """A gradient step on which a pair counts for half as much as the next."""
    at = torch.arange(problem.keys.shape[1])
    age = (at[:, None] - at).clamp(min=0).double()
    scores = (problem.queries @ problem.keys.mT).tril() * 0.5**age
    return scores @ problem.values


def of_signs(problem: InContextProblem) -> torch.Tensor:
    """A gradient step on the signs of the values."""
    return step(replace(problem, values=problem.values.sign()))


def along_axes(problem: InContextProblem) -> torch.Tensor:
    """A gradient step that knows only the first two channels of the keys."""
    half = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    return 2 * step(replace(problem, keys=problem.keys * half))


def of_unit_size(problem: InContextProblem) -> torch.Tensor:
    """The direction of a gradient step."""
    return torch.nn.functional.normalize(step(problem), dim=-1)


def silent(problem: InContextProblem) -> torch.Tensor:
    """Nothing."""
    return 0 * problem.queries


def without_context(problem: InContextProblem) -> torch.Tensor:
    """The query itself."""
    return problem.queries


@cache
def scouted(task: Task) -> Setting:
    return scout(Plan(task, 512, 0), 1)


def concluded(task: Task, models: Mapping[str, SequenceTransformer]) -> dict[str, Finding]:
    """One sweep over all models, each of them a view."""
    analysis, setting = Signatures(), scouted(task)
    response, stage = analysis.stages(setting)
    cheap = replace(response, columns=Columns(setting.knots, ("oracle",)), layered=False)
    wide = [replace(one, views=tuple(models)) for one in (cheap, stage)]
    views = {name: lambda c, captures, n=name: (c, captures[n]) for name in models}
    results = Sweep(Plan(task, 512, 0, workers=1), models, views, capture).run(tuple(wide))

    def of(name: str) -> Finding:
        found = {
            (response, SUBJECT): results[wide[0], name],
            (stage, SUBJECT): results[wide[1], name],
        }
        return analysis.conclude(setting, found)

    return {name: of(name) for name in models}


RULES = {
    rule.__name__: RuleModel(rule)
    for rule in (step, forgetting, of_signs, along_axes, of_unit_size, without_context, silent)
}
FAMILIES = ("gradient_descent", "ridge", "momentum", *NON_LEARNERS)


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    """Rules and planted models on one task."""
    known = families_planted()
    planted = {name: known[name].draw(TASK, generator_for(0)).model for name in FAMILIES}
    return concluded(TASK, RULES | planted)


def outcomes(finding: Finding) -> dict[str, str]:
    frame = finding.tables[0].frame
    assert list(frame["signature"]) == NAMES
    return dict(zip(frame["signature"], frame["outcome"], strict=True))


def failed(finding: Finding) -> set[str]:
    return {name for name, state in outcomes(finding).items() if state == "failed"}


@pytest.mark.parametrize("name", ["gradient_descent", "ridge", "momentum", "step"])
def test_learners_show_every_signature(findings, name: str) -> None:
    finding = findings[name]
    assert set(outcomes(finding).values()) == {"passed"} and finding.outcome == "supports"
    assert failed_signatures(finding) == narrowing_signatures(finding) == ()
    shares = set(NAMES) - {"value_dependence", "scaling_exponent"}
    assert all(finding.metrics[share].value > 0.97 for share in shares)
    assert abs(finding.metrics["scaling_exponent"].value) < 0.03
    blind = finding.controls
    assert set(blind) == {"mixed_pairs", "scaling_response", "rotation_equivariance"}
    assert all(control.value < 0.8 for control in blind.values())


@pytest.mark.parametrize(("name", "fails"), NON_LEARNERS.items())
def test_planted_non_learners_fail_what_they_break(findings, name: str, fails: set) -> None:
    finding, states = findings[name], outcomes(findings[name])
    assert fails <= failed(finding) and finding.outcome == "contradicts"
    assert "scaling_response" in failed_signatures(finding)
    assert "mixed_pairs" in narrowing_signatures(finding)
    assert states["permutation_invariance"] != "failed"
    if "rotation_equivariance" not in fails:
        assert states["rotation_equivariance"] == "passed"
    if "value_dependence" not in fails:
        assert all(states[of_values] == "passed" for of_values in OF_VALUES)


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("forgetting", {"permutation_invariance", *OF_RESPONSE}),
        ("of_signs", {"rotation_equivariance", "scaling_exponent", *OF_VALUES}),
        ("along_axes", {"rotation_equivariance"}),
        ("of_unit_size", {"scaling_exponent", *OF_VALUES}),
        ("without_context", {"value_dependence", *OF_RESPONSE}),
    ],
)
def test_a_rule_fails_what_it_breaks(findings, name: str, fails: set) -> None:
    found = failed(findings[name])
    assert fails <= found
    kept = {"permutation_invariance", "rotation_equivariance", *OF_VALUES} - fails
    assert not found & kept


def test_what_no_change_can_show_is_not_tested(findings) -> None:
    finding = findings["without_context"]
    for name in ("permutation_invariance", *OF_VALUES):
        assert outcomes(finding)[name] == "not testable"
    nothing = findings["silent"]
    assert set(outcomes(nothing).values()) == {"not testable"} and nothing.outcome == "inconclusive"


def test_degrees_are_those_of_the_algorithm(findings) -> None:
    one, query = findings["step"].metrics, findings["without_context"].metrics
    assert one["scaling_degree"].value == pytest.approx(3, abs=1e-5)
    assert one["expected_scaling_degree"].value == pytest.approx(3, abs=0.1)
    assert query["scaling_degree"].value == pytest.approx(1, abs=1e-5)


def test_bits_depend_on_the_seed_alone() -> None:
    model = families_planted()["ridge"].draw(TASK, generator_for(0)).model
    plan = Plan(TASK, 512, 0, batch_size=256, workers=1)
    (_, stage) = Signatures().stages(scouted(TASK))
    views = {SUBJECT: all_views(0.1)[SUBJECT]}

    def sums(plan: Plan) -> dict[str, torch.Tensor]:
        return Sweep(plan, {SUBJECT: model}, views, capture).run((stage,))[stage, SUBJECT].sums

    first, again = sums(plan), sums(replace(plan, batch_size=37, workers=2))
    assert set(first) == {"context", "splice", "rotation", f"scale {SCALE:g}"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(len(value) == BLOCKS for value in first.values())
    other = sums(replace(plan, seed=1))
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_predictor_that_cannot_be_run_again() -> None:
    plan = Plan(TASK, 256, 0, workers=1)
    setting = scouted(TASK)
    analysis = Signatures()

    def view(context, captures):
        return context, replace(captures[SUBJECT], runner=None)

    model = RuleModel(step)
    results = Sweep(plan, {SUBJECT: model}, {SUBJECT: view}, capture).run(analysis.stages(setting))
    finding = analysis.conclude(setting, results)
    assert finding.outcome == "inconclusive" and not finding.metrics
    assert set(finding.tables[0].frame["reason"]) == {"the model cannot be run again"}


@pytest.mark.parametrize(
    ("task", "reasons"),
    [
        ("linear", {"context": "share their tokens"}),
        ("partial", {"context": "share their tokens"}),
        ("nonlinear", {"context": "share", "rotation": "not linear", "scale": "not linear"}),
        ("fixed-teacher", {"context": "share", "rotation": "leave the task's law"}),
        ("regression-skewed", {"rotation": "leave the task's law"}),
        ("regression", {}),
        ("linear-constructed", {}),
    ],
)
def test_what_a_task_allows(task: str, reasons: dict[str, str]) -> None:
    setting = scouted(find_task(task))
    trials = trials_of(setting)
    (_, stage) = Signatures().stages(setting)
    assert stage == SignatureStage(stage.trials) and hash(stage) == hash(
        SignatureStage(stage.trials)
    )
    for name, trial in trials.items():
        reason = reasons.get(name.partition(" ")[0])
        assert (reason in trial) if reason else (trial in stage.trials)


def test_regression_with_query_tokens() -> None:
    task = InContextRegression("tiny", Gaussian(), width=D, pairs=16, queries=6)
    both = concluded(task, {name: RULES[name] for name in ("step", "forgetting")})
    finding = both["step"]
    assert set(outcomes(finding).values()) == {"passed"}
    assert finding.metrics["scaling_degree"].value == pytest.approx(3, abs=1e-4)
    assert "permutation_invariance" in failed_signatures(both["forgetting"])


def sample(count: int = 64):
    return TASK.sample(count, generator_for(3))


def test_permuting_keeps_the_pairs_and_the_query() -> None:
    tokens = sample().tokens
    among = PAIRS.before(15)
    changed = permuted(tokens, among, generator_for(0))
    assert among == (1, 15)
    assert torch.equal(changed[:, 0], tokens[:, 0]) and torch.equal(changed[:, 15:], tokens[:, 15:])
    order = tokens[:, 1:15].sum(-1).sort(1).values
    assert torch.allclose(changed[:, 1:15].sum(-1).sort(1).values, order)
    moved = (changed[:, 1:15] != tokens[:, 1:15]).any(-1).double().mean()
    assert moved > 0.85
    assert not torch.equal(changed, permuted(tokens, among, generator_for(1)))


def test_values_are_weighted_and_nothing_else() -> None:
    tokens = sample().tokens
    weights = normal(generator_for(0), len(tokens), 9)
    slots = tokens.unflatten(-1, (4, D))
    changed = with_values(tokens, PAIRS, weights).unflatten(-1, (4, D))
    expected = slots[:, 1:10] * weights[..., None, None].float()
    assert torch.allclose(changed[:, 1:10, 1:3], expected[:, :, 1:3])
    assert torch.equal(changed[:, :, 3], slots[:, :, 3])
    assert torch.equal(changed[:, 10:], slots[:, 10:]) and torch.equal(changed[:, :1], slots[:, :1])
    assert not torch.allclose(changed, slots)


def test_spliced_sequences_pose_the_problem_of_their_tokens() -> None:
    own = sample()
    count, length, _ = own.observations.shape
    foreign = segments(generator_for(0), count, length, 8.0)
    joined = spliced(TASK, own, foreign)
    problem = TASK.problem(joined)
    _, query, value, key = joined.tokens.unflatten(-1, (4, D)).unbind(-2)
    assert torch.equal(problem.keys, key) and torch.equal(problem.values[:, 1:], value[:, 1:])
    assert torch.equal(problem.queries, query)
    states = joined.observations
    assert torch.equal(states[foreign], own.observations.roll(1, 0)[foreign])
    assert torch.equal(states[~foreign], own.observations[~foreign])
    assert joined.oracle.isnan().all() and 0.3 < foreign.double().mean() < 0.7
    nowhere = spliced(TASK, own, torch.zeros_like(foreign))
    assert torch.equal(nowhere.tokens, own.tokens) and not torch.equal(joined.tokens, own.tokens)


def test_a_spliced_regression_keeps_its_queries() -> None:
    task = find_task("regression")
    own = task.sample(32, generator_for(0))
    everywhere = torch.ones(own.observations.shape[:2], dtype=torch.bool)
    problem = task.problem(spliced(task, own, everywhere))
    before = task.problem(own)
    assert torch.equal(problem.queries, before.queries)
    assert torch.equal(problem.keys, before.keys.roll(1, 0))
    assert torch.equal(problem.values, before.values.roll(1, 0))
    assert not torch.equal(problem.keys, before.keys)


@pytest.mark.parametrize("name", ["linear", "partial", "nonlinear", "contracting-constructed"])
def test_splicing_nothing_changes_nothing(name: str) -> None:
    task = find_task(name)
    own = task.sample(8, generator_for(0))
    nowhere = torch.zeros(own.observations.shape[:2], dtype=torch.bool)
    same = spliced(task, own, nowhere)
    assert torch.equal(same.tokens, own.tokens)
    assert torch.allclose(same.features, own.features)
    changed = spliced(task, own, ~nowhere)
    assert torch.equal(changed.tokens, own.tokens.roll(1, 0))
    assert not torch.allclose(changed.features, own.features)


def test_other_tasks_are_not_spliced() -> None:
    task = find_task("permuted-contexts-constructed")
    own = task.sample(4, generator_for(0))
    with pytest.raises(TypeError, match="PermutedContexts cannot be joined"):
        spliced(task, own, torch.zeros(own.observations.shape[:2], dtype=torch.bool))


def test_segments_have_their_mean_length() -> None:
    drawn = segments(generator_for(0), 512, 200, 8.0)
    switches = (drawn[:, 1:] != drawn[:, :-1]).double().mean()
    assert float(switches) == pytest.approx(1 / 8, rel=0.03)
    assert float(drawn.double().mean()) == pytest.approx(0.5, abs=0.03)
    assert 0.4 < drawn[:, 0].double().mean() < 0.6


def test_learners_turn_with_the_states() -> None:
    own = sample()
    turn = Orthogonal().draw(len(own.tokens), D, generator_for(0))
    slots = turned(own.tokens, turn).unflatten(-1, (4, D))
    expected = torch.einsum("bij,btj->bti", turn.float(), own.observations[:, :-1])
    assert torch.allclose(slots[:, :, 1], expected, atol=1e-6)
    assert torch.allclose(slots[:, 1:, 3], expected[:, :-1], atol=1e-6)
    assert not torch.allclose(slots[:, :, 1], own.observations[:, :-1], atol=0.1)
    assert is_isotropic(TASK) and not is_isotropic(replace(TASK, teacher=Fixed.from_seed(D, 0)))


def test_scaling_states_scales_the_spectrum() -> None:
    """The scale trial changes a spectrum in place of the states: both are the same."""
    own = sample()
    changed = replace(own, features=SCALE * own.features, observations=SCALE * own.observations)
    spectra = []
    for sequences in (own, changed):
        problem = TASK.problem(sequences)
        spectra.append(spectrum(prefix_moments(problem), problem.queries))
    one, scaled = spectra
    by_hand = replace(one, mu=SCALE**2 * one.mu, query=SCALE * one.query, maps=SCALE**2 * one.maps)

    def said(of, c=1.0):
        return of.predict(lambda mu: 1 / (mu + 0.1 * c))[:, D + 2 :]

    assert torch.allclose(said(by_hand), said(scaled), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(said(one), said(scaled), rtol=1e-2)


def test_products_give_shares_and_degrees() -> None:
    one = normal(generator_for(0), BLOCKS, 5)
    other = normal(generator_for(1), BLOCKS, 5)
    both = torch.stack([one, other, 0.125 * one], -1)
    products = Products(("one", "other", "eighth"), both.mT @ both)
    share = products.explained({"one": 1, "other": -1}, {"one": 1})
    expected = 1 - float((one - other).square().sum() / one.square().sum())
    assert share.value == pytest.approx(expected) and share.lo < share.value < share.hi
    degree = bootstrap_interval(exponent(products, 0.5, "one", "eighth"))
    assert degree.value == pytest.approx(3) and degree.hi - degree.lo < 1e-9
    assert products.explained({"one": 1, "eighth": -8}, {"one": 1}).value == pytest.approx(1)


@pytest.mark.parametrize(("window", "ends"), [((4, 49), (4, 14, 48)), ((40, 48), (40, 43, 47))])
def test_ends_span_the_window(window: tuple[int, int], ends: tuple[int, ...]) -> None:
    assert ends_of(window) == ends


def test_which_failures_cap() -> None:
    rows = [("a", "failed", True), ("b", "passed", True), ("c", "failed", False)]
    frame = pd.DataFrame(rows, columns=["signature", "outcome", "caps_verdict"])
    tables = (Table("signatures", frame),)
    finding = Finding("signatures", "?", "contradicts", "", {}, {}, "", tables)
    assert failed_signatures(finding) == ("a",) and narrowing_signatures(finding) == ("c",)


def test_every_signature_has_its_tolerance() -> None:
    assert set(tolerances()) == set(NAMES) and len(set(NAMES)) == len(NAMES)
    assert all(0 < row.tolerance < 1 for row in tolerances().values())
    assert {row.caps for row in tolerances().values()} == {True, False}


def published(folder: Path, file: str, preset: str) -> tuple[Task, SequenceTransformer]:
    subject = load(folder / "linear_seq_fully" / file, f"von-oswald-2023/{preset}")
    return find_task(subject.task), subject.model


def test_published_models_on_constructed_tokens(paper_data) -> None:
    """One layer shows everything; more layers take keys from values, which dynamics allow."""
    files = {"linear-1l": "lin_1l", "linear-2l": "lin_2l", "mesa-1l": "mesa"}
    loaded = {
        name: published(paper_data, f"model_{file}_constr.pkl", name)
        for name, file in files.items()
    }
    task = loaded["linear-1l"][0]
    found = concluded(task, {name: model for name, (_, model) in loaded.items()})
    for name, degree in {"linear-1l": 3.0, "mesa-1l": 1.07}.items():
        assert set(outcomes(found[name]).values()) == {"passed"}
        assert found[name].metrics["scaling_degree"].value == pytest.approx(degree, abs=0.02)
    assert failed_signatures(found["linear-2l"]) == ()
    assert set(narrowing_signatures(found["linear-2l"])) == OF_VALUES


@pytest.mark.slow
def test_published_models_on_raw_tokens_turn_with_their_states(paper_data) -> None:
    task, model = published(paper_data, "model_sm_7l_fullfledged.pkl", "softmax-7l")
    found = concluded(task, {"model": model, "twin": permuted_twin(model, 0)})
    assert outcomes(found["model"])["rotation_equivariance"] == "passed"
    assert failed_signatures(found["model"]) == ()
    assert "rotation_equivariance" in failed_signatures(found["twin"])
