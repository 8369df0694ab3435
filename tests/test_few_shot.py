"""Tokens tuned on a frozen model, and what the analysis says of readers that are known."""

from dataclasses import replace

import pytest
import torch
from few_shot_reader import RIDGE, marking_eos, plain_reader, raw_dynamics, reader

from analyses.few_shot import FewShotLearning
from probe.analysis import Bench, Setting
from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.few_shot.losses import frozen, squared_errors
from probe.few_shot.procedure import tasks
from probe.few_shot.references import AllTransitions, LeastSquares
from probe.few_shot.tuning import Budget, check_loss, random_eos, tune, tuned_eos, tuned_prefix
from probe.plan import Plan
from probe.planted.base import families_planted
from probe.sampling import generator_for
from probe.tasks.base import find_task
from probe.tasks.few_shot import Bare, WithEos, WithPrefix

SMALL = Budget(steps=60, batch=8, rate=0.1, starts=16, checked=64, prefix=4)
SINGLE, SWITCHED = tasks(3)


def silent(done: int, total: int) -> None:
    pass


def subject(model) -> Subject:
    return Subject("by hand", "none", model, None, "", ())


def found(model, budget: Budget = SMALL, batch_size: int = 256, usual: int = 96):
    task = replace(raw_dynamics(), length=usual)
    plan = Plan(task, 256, 0, batch_size=batch_size, workers=1)
    setting = Setting(plan.task, 1, plan.task.windows, (0.1, 1.0), 1.0, 1.0, 0.1)
    told: list[tuple[int, int]] = []
    bench = Bench(subject(model), plan, setting, {}, lambda *at: told.append(at))
    finding = FewShotLearning(budget=budget).run(bench)
    done, total = zip(*told, strict=True)
    assert list(done) == sorted(done) and done[-1] == total[-1]
    return finding


def worst(model, layout, learner) -> float:
    task = replace(SINGLE, layout=layout)
    sequences = task.sample(64, generator_for(0))
    said = frozen(model, 64)(task, sequences)
    return float((said - learner(task, sequences)).abs().max())


def test_the_eos_token_makes_least_squares_of_a_model_of_sequences() -> None:
    """Read right: the reader equals least squares on the pairs, with its own token only."""
    least_squares = LeastSquares(RIDGE)
    assert worst(reader(), WithEos(marking_eos()), least_squares) < 5e-3
    ahead = WithPrefix(WithEos(marking_eos()), marking_eos().repeat(4, 1))
    assert worst(reader(), ahead, least_squares) < 5e-3
    for layout in (Bare(), WithEos(torch.zeros(3))):  # controls
        assert worst(reader(), layout, least_squares) > 1
    assert worst(plain_reader(), WithEos(marking_eos()), least_squares) > 1


def test_a_mesa_layer_takes_all_transitions_of_bare_pairs() -> None:
    assert worst(plain_reader(), Bare(), AllTransitions(RIDGE)) < 5e-3
    assert worst(plain_reader(), Bare(), AllTransitions(1.0)) > 0.1  # control


def test_a_mesa_layer_is_best_served_by_an_eos_token_of_zero() -> None:
    """Its key adds nothing then: a known answer that Adam must find from a random token."""
    budget = replace(SMALL, starts=0)
    model = plain_reader(0.3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start = random_eos(3, 0).token
    tuned = tune(model, SINGLE, WithEos, start, budget, 0, silent)
    zero = check_loss(model, SINGLE, WithEos(torch.zeros(3)), budget, 0)
    assert tuned.check == pytest.approx(zero, rel=0.03) and tuned.start > 1.5 * zero
    assert tuned.layout.token.norm() < 0.1 < start.norm()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    again = tune(model, SINGLE, WithEos, start, budget, 0, silent)
    assert torch.equal(again.layout.token, tuned.layout.token) and again.curve == tuned.curve


def test_what_is_kept_is_never_worse_than_the_start() -> None:
    harmful = replace(SMALL, steps=3, rate=100.0)
    eos = tuned_eos(plain_reader(), SINGLE, harmful, 0, silent)
    prefix = tuned_prefix(plain_reader(), SINGLE, eos.layout, harmful, 0, silent)
    for tuned in (eos, prefix):
        assert tuned.check <= tuned.start
        assert check_loss(plain_reader(), SINGLE, tuned.layout, harmful, 0) == tuned.check


def test_the_reader_is_found_to_learn_once_its_token_is_tuned() -> None:
    finding = found(reader())
    metrics = finding.metrics
    assert finding.outcome == "supports", finding.statement
    assert metrics["gain_eos"].lo > 0.98 and metrics["gain_bare"].hi < 0.8
    assert metrics["excess_removed_eos"].lo > 0.95
    assert finding.controls["gain_random_eos"].hi < 0.6
    assert max(finding.controls[f"gain_{arm}"].hi for arm in ("bare", "eos", "prefix")) < 0.1
    # It remembers all pairs, so a switch costs it what it costs least squares without a reset.
    remembers = metrics["pairs_to_recover_least_squares_without_reset"]
    assert metrics["pairs_to_recover_eos"].value == pytest.approx(remembers.value, abs=1)
    assert metrics["pairs_to_recover_forgetting"].value < remembers.value
    assert "with a tuned EOS" in finding.bearing or "with tuned EOS and prefix" in finding.bearing
    losses = finding.tables[0].frame
    assert len(losses) == SINGLE.pairs * (7 + 8 + 4)
    assert {figure.name for figure in finding.figures} == {"few_shot", "few_shot_tuning"}


@pytest.mark.parametrize("family", ["context_free", "untrained"])
def test_what_does_not_learn_is_rejected_with_tuned_tokens_too(family: str) -> None:
    planted = families_planted()[family].draw(raw_dynamics(), generator_for(0))
    finding = found(planted.model)
    assert finding.outcome == "contradicts", finding.statement
    assert all(finding.metrics[f"gain_{arm}"].hi < 0.1 for arm in ("bare", "eos", "prefix"))
    assert "learns nothing" in finding.bearing


def test_failure_beyond_the_usual_length_decides_nothing() -> None:
    planted = families_planted()["context_free"].draw(raw_dynamics(), generator_for(0))
    finding = found(planted.model, replace(SMALL, steps=2, starts=1), usual=50)
    assert finding.outcome == "inconclusive" and not finding.bearing
    assert "Sequences of its task have 50 tokens, these up to 58." in finding.statement


def test_the_bits_do_not_depend_on_the_batch_size() -> None:
    budget = replace(SMALL, steps=4, starts=2)
    one, other = (found(plain_reader(), budget, size) for size in (256, 16))
    assert one.tables[0].frame.equals(other.tables[0].frame)
    assert one.metrics == other.metrics


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("linear-constructed", "linear dynamics on raw tokens"),
        ("partial", "linear dynamics on raw tokens"),
        ("linear", "few-shot sequences have up to 200 tokens; it has 96 positions"),
    ],
)
def test_who_cannot_be_asked_is_told_why(task: str, reason: str) -> None:
    assert reason in str(FewShotLearning().lacks(subject(reader()), find_task(task)))


def test_others_can_be_asked(tiny_model) -> None:
    assert FewShotLearning().lacks(subject(tiny_model("softmax")), find_task("linear")) is None
    seeing = tiny_model("linear-bidirectional")
    assert "later tokens" in str(FewShotLearning().lacks(subject(seeing), find_task("linear")))
    assert FewShotLearning(budget=SMALL).lacks(subject(reader()), raw_dynamics()) is None


def test_the_learner_is_scored_on_the_pairs_of_the_layout() -> None:
    """The same learner has the same errors in every layout: the pairs are the same."""
    errors = []
    for layout in (Bare(), WithEos(marking_eos())):
        task = replace(SWITCHED, layout=layout)
        errors.append(squared_errors(LeastSquares(0.1), task, task.sample(8, generator_for(1))))
    assert torch.equal(*errors)
    with pytest.raises(InputError, match="a switch after"):
        replace(SWITCHED, pairs=3)
