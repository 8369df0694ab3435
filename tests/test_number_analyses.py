"""Analyses of number prompts on language models whose algorithm is known."""

from dataclasses import replace

import pytest
import torch
from number_speakers import (
    PROMPTS,
    Speaker,
    descent,
    last_answer,
    mean,
    number_tokenizer,
    online,
    ridge,
)
from tiny_language_models import language_model

from analyses.implicit_weights import ImplicitWeights, linear_fit
from analyses.layer_causality import LayerCausality, Similarity
from analyses.number_prompts import NumberAnswers, simple_answers
from analyses.order_sensitivity import OrderSensitivity
from probe.analysis import Bench
from probe.checkpoints.base import Subject
from probe.language_task import posed
from probe.layer_updates import Examples, Updates, about_their_mean, cosines, streams, updates
from probe.models.bridge import BridgedModel
from probe.models.number_reader import NumberReader
from probe.pilot import scout
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.problem import InContextProblem
from probe.sampling import generator_for, normal
from probe.tasks.few_shot import pairs_problem


def bench_of(model, sequences: int = 512, prompts=PROMPTS) -> Bench:
    subject, task = posed(Subject("speaker", "planted", model, None, "0" * 64, ()), prompts)
    plan = Plan(task, sequences, 0, workers=1)
    return Bench(subject, plan, scout(plan, model.layers), {})


def random_gpt2() -> BridgedModel:
    vocabulary = len(number_tokenizer(20))
    return BridgedModel(
        language_model("gpt2", vocab_size=vocabulary, n_positions=128), number_tokenizer(20)
    )


@pytest.fixture(scope="module")
def solver() -> Bench:
    return bench_of(Speaker(PROMPTS, ridge(1e-2)))


@pytest.fixture(scope="module")
def untrained() -> Bench:
    return bench_of(random_gpt2())


def test_simple_answers_are_what_their_names_say() -> None:
    x = torch.tensor([[[0.0], [1.0], [2.0], [0.9]]])
    y = torch.tensor([[[4.0], [1.0], [-2.0], [9.0]]])
    found = simple_answers(pairs_problem(x, y))
    assert found["last answer"].tolist() == [[0.0, 4.0, 1.0, -2.0]]
    assert found["mean"].tolist() == [[0.0, 4.0, 2.5, 1.0]]
    assert found["nearest example"].tolist() == [[0.0, 4.0, 1.0, 1.0]]
    assert found["zero"].tolist() == [[0.0] * 4]


def test_a_solver_answers_with_numbers_near_least_squares(solver) -> None:
    found = NumberAnswers().run(solver)
    assert found.outcome == "supports"
    assert found.metrics["parse_rate"].value == 1 and found.metrics["written_rate"].value == 1
    assert found.metrics["gain"].lo > 0.9 and found.controls["gain"].hi < 0.1
    assert abs(found.metrics["excess_over_least_squares"].value) < 0.1 * (
        found.metrics["loss_zero"].value
    )
    frame = found.tables[0].frame
    own = frame[frame["predictor"] == "model"]["loss"].tolist()
    assert own[-1] < 0.1 * own[0]


@pytest.mark.parametrize("predictor", [mean, last_answer])
def test_simple_answers_do_not_count_as_learning(predictor) -> None:
    found = NumberAnswers().run(bench_of(Speaker(PROMPTS, predictor)))
    assert found.outcome != "supports"
    assert found.metrics["gain"].hi < 0.5


def test_an_untrained_model_gains_nothing_and_speaks_by_chance(untrained) -> None:
    found = NumberAnswers().run(untrained)
    assert found.outcome == "contradicts"
    assert found.metrics["gain"].hi < 0.1
    assert "nan" not in found.statement


def test_a_model_that_says_words_is_told_so(solver) -> None:
    class Wordy(Speaker):
        def read_out(self, stream):
            logits = super().read_out(stream)
            logits[..., 3] = 5.0
            return logits

    found = NumberAnswers().run(bench_of(Wordy(PROMPTS, ridge(1e-2))))
    assert found.outcome == "inconclusive" and found.metrics["parse_rate"].value == 0
    assert found.metrics["gain"].lo > 0.9 and "likeliest token" in found.bearing


def test_linear_fits_are_exact_and_held_out() -> None:
    generator = generator_for(0)
    queries, weights = normal(generator, 6, 16, 2), normal(generator, 6, 2)
    said = torch.einsum("bqd,bd->bq", queries, weights) + 3
    found, error, energy = linear_fit(queries, said)
    assert torch.allclose(found, weights) and float(error.max()) < 1e-18
    noise = normal(generator, 6, 16)
    _, error, energy = linear_fit(queries, noise)
    assert float(error.sum() / energy.sum()) > 0.8


def test_a_solver_implies_ridge_weights_of_its_context(solver) -> None:
    found = ImplicitWeights().run(solver)
    assert found.outcome == "supports"
    last = PROMPTS.points - 1
    assert found.metrics[f"linear_{last}"].lo > 0.99
    assert found.metrics[f"ridge_{last}"].lo > 0.95
    assert found.metrics["teacher_2"].value < found.metrics[f"teacher_{last}"].value
    assert found.controls["ridge_of_another_context"].hi < 0
    assert found.controls["twin_ridge"].hi < 0.5


@pytest.mark.parametrize(
    "model",
    [lambda: Speaker(PROMPTS, mean), pytest.param(random_gpt2, marks=pytest.mark.slow)],
)
def test_models_without_weights_imply_none(model) -> None:
    found = ImplicitWeights().run(bench_of(model()))
    assert found.outcome == "contradicts"
    assert all(torch.isfinite(torch.tensor(m.value)) for m in found.metrics.values())


def test_a_solver_sees_a_set(solver) -> None:
    found = OrderSensitivity().run(solver)
    assert found.outcome == "supports"
    assert found.metrics["order_sensitivity"].hi < 1e-4
    assert found.metrics["least_squares"].value < 1e-12
    assert found.metrics["online_learner"].lo > 0.01
    assert found.controls["last_answer"].lo > 0.5


def test_online_learners_and_copies_depend_on_the_order() -> None:
    slow = OrderSensitivity().run(bench_of(Speaker(PROMPTS, online)))
    assert slow.outcome != "supports"
    assert "one by one" in slow.bearing
    beside = slow.metrics["online_learner"]
    assert beside.value / 10 < slow.metrics["order_sensitivity"].value < 4 * beside.value
    copy = OrderSensitivity().run(bench_of(Speaker(PROMPTS, last_answer)))
    assert copy.outcome == "contradicts" and "Shen" in copy.bearing


class SelfTrained(Speaker):
    """Its context adds to the answer just what a gradient step on its own weights would."""

    def __init__(self, prompts, sign: float = 1.0):
        super().__init__(prompts, self._says)
        self.own = torch.nn.Parameter(torch.zeros(prompts.width), requires_grad=False)
        self.sign = sign

    def _says(self, problem: InContextProblem) -> torch.Tensor:
        cross = (problem.values * problem.keys).cumsum(1)
        return ((self.own + 0.1 * self.sign * cross) * problem.queries).sum(-1, keepdim=True)


def test_a_model_that_trains_itself_is_found_and_its_opposite_is_not() -> None:
    prompts = replace(PROMPTS, points=10)
    found = LayerCausality().run(bench_of(SelfTrained(prompts), prompts=prompts))
    assert found.outcome == "supports" and found.metrics["selectivity"].lo > 0.5
    assert found.controls["selectivity_permuted_twin"].hi < 0.5
    assert "does not hold" in found.bearing
    other = LayerCausality().run(bench_of(SelfTrained(prompts, -1.0), prompts=prompts))
    assert other.outcome == "contradicts" and other.metrics["selectivity"].hi < 0


@pytest.mark.slow
def test_an_untrained_model_does_not_train_itself() -> None:
    prompts = replace(PROMPTS, points=6)
    found = LayerCausality().run(bench_of(random_gpt2(), prompts=prompts))
    assert found.outcome != "supports"
    # What was first measured does not tell an untrained model from any other.
    raw = found.controls["raw_redrawn_weights"].value
    assert abs(raw - found.metrics["raw"].value) < 0.5


def examples(count: int = 3) -> Examples:
    generator = generator_for(0)
    ids = torch.randint(4, 25, (count + 4, 9), generator=generator)
    return Examples(ids[:2], ids[:2, -3:], ids[2 : 2 + count, -3:], normal(generator, count))


def reader() -> NumberReader:
    subject, _ = posed(Subject("gpt2", "x", random_gpt2(), None, "0" * 64, ()), PROMPTS)
    return subject.model


def test_updates_are_causal_and_leave_the_weights() -> None:
    one, other = reader(), reader()
    before = {name: p.clone() for name, p in one.named_parameters()}
    found = updates(one, [examples()])
    assert all(torch.equal(p, before[name]) for name, p in one.named_parameters())
    assert not any(p.requires_grad for p in one.parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if ".blocks.2." in name and ".mlp." in name:
                parameter.add_(0.05)
    changed = updates(other, [examples()])
    assert torch.allclose(cosines(found.causal, changed.causal)[:, :2], torch.ones(1, 2).double())
    # Plain training of lower layers depends on the layers above.
    assert float(cosines(found.plain, changed.plain)[:, :2].max()) < 0.9999
    # At the last layer both are the same.
    assert torch.equal(found.causal[:, -1], found.plain[:, -1])


def test_training_updates_lower_the_loss_that_they_train() -> None:
    model, one = reader(), examples()
    asked = replace(one, told=one.told[:1].expand(3, -1), bare=one.single)
    found = updates(model, [asked]).causal[0, -1].float()
    stream = streams(model, one.single)[-1]
    losses = [
        (model.read_out(stream + factor * found)[:, 0] - one.answers).square().mean()
        for factor in (0, 1)
    ]
    assert losses[1] < losses[0]


def test_what_all_contexts_share_is_no_similarity() -> None:
    generator = generator_for(0)
    shared = 10 * normal(generator, 1, 3, 2, 16)
    noise = [normal(generator, 64, 3, 2, 16) for _ in range(2)]
    found = Similarity.of(Updates(shared + noise[0], shared + noise[1], shared + noise[1]))
    assert float(found.raw.mean()) > 0.9 and abs(float(found.own.mean())) < 0.1
    own = about_their_mean(noise[0])
    assert torch.allclose(cosines(own, 2 * own), torch.ones(64, 3).double())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predictors", "found"),
    [((descent(1, 0.15), descent(2, 0.15)), "first_order"), ((mean, last_answer), "copy")],
)
def test_the_whole_instrument_judges_speakers(predictors, found) -> None:
    bench = bench_of(Speaker(PROMPTS, *predictors))
    report = analyze(Request(bench.subject, replace(bench.plan, sequences=1024)))
    assert report.verdict.algorithm_class == found and report.verdict.instruments_ok
    assert "numbers-2d" in report.verdict.scope
    assert report.task["params"]["numbers"] == "0 to 100"


@pytest.mark.slow
def test_the_whole_instrument_finds_nothing_in_an_untrained_model(untrained) -> None:
    report = analyze(Request(untrained.subject, untrained.plan, ("behaviour", "number_prompts")))
    assert report.verdict.algorithm_class in ("unexplained", "inconclusive")
    assert report.verdict.evidence_level == 0
    behaviour, numbers = report.findings
    assert behaviour.outcome != "supports" and numbers.outcome == "contradicts"
