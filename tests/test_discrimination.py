"""Families that the own law leaves open part under other inputs, and the planted one survives."""

from collections.abc import Callable

import pytest
import torch
from planted_predictors import Predictor, spectral

from probe.capture import predictor_only
from probe.checkpoints.base import load
from probe.checkpoints.native import write_native
from probe.discrimination import Answer, Asked, Trial, ask, conclude, left_open, part
from probe.input_laws import OWN, TWO_CLUSTER
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.rule import Thresholds
from probe.sampling import generator_for, normal
from probe.solvers import chebyshev, conjugate_gradient, ridge
from probe.stages import Context
from probe.standing import standing
from probe.survey import Survey, survey
from probe.tasks.base import find_task

RULE = Thresholds.load()
PLAN = Plan(find_task("linear"), 512, 0, workers=1)
STEPS = 4


def planted(predictor: Predictor) -> Asked:
    return Asked(
        {}, lambda context, captures: (context, predictor_only(predictor(context).float()))
    )


def conjugate_gradients(context: Context) -> torch.Tensor:
    step = conjugate_gradient.iterates(context.spectrum, STEPS)[..., -1]
    return torch.einsum("btvi,bti->btv", context.spectrum.maps, step)


# Its interval reaches beyond the largest eigenvalues, past which it would diverge.
chebyshev_steps = spectral(lambda mu: chebyshev.shrinkage(mu, STEPS, 3.0, 250.0))


@pytest.fixture(scope="module")
def laws() -> Survey:
    return survey(PLAN, RULE.clipped)


@pytest.fixture(scope="module")
def answered(laws: Survey) -> Callable[[Predictor, str], Answer]:
    by_name = {law.inputs.name: law for law in laws.laws}
    return lambda predictor, name: ask(planted(predictor), PLAN, by_name[name], laws.columns)


def test_two_clusters_part_conjugate_gradient_and_chebyshev(answered) -> None:
    families = ("conjugate_gradient", "chebyshev")
    there = f"{TWO_CLUSTER}, half the length"
    for predictor, truth in zip((conjugate_gradients, chebyshev_steps), families, strict=True):
        own = answered(predictor, OWN)
        members = tuple(own.chosen(name) for name in families)
        carried = answered(predictor, there).carried(members)
        groups = standing(carried, RULE)
        (other,) = set(families) - {truth}
        assert groups.equivalent == (truth,) and groups.rejected == (other,)
        assert carried.value(carried.chosen(truth)) > 0.98
        # The weights are those of the own law: there they say what they said there.
        again = own.carried(members)
        for name in families:
            expected = own.reading.value(own.reading.chosen(name))
            assert again.value(again.chosen(name)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_the_planted_family_survives() -> None:
    exact = spectral(lambda mu: ridge.shrinkage(mu, 0.05))
    parting = part(planted(exact), PLAN, ("conjugate_gradient", "ridge"), RULE)
    assert parting.trials and parting.survivors(RULE.explained) == ("ridge",)
    finding = conclude(parting, RULE)
    assert finding.outcome == "supports" and "leave ridge" in finding.statement
    assert finding.metrics["families_left"].value == 1
    assert finding.metrics["ridge_r2"].value > 0.99
    rows, left_out = (table.frame for table in finding.tables)
    assert set(rows["family"]) == {"conjugate_gradient", "ridge"}
    assert len(left_out) == len(parting.skipped) + len(parting.inseparable)
    gone = rows[rows["family"] == "conjugate_gradient"]
    assert (gone["carried_r2"] < 0.95).any()


def test_nothing_survives_where_nothing_explains_the_model(answered) -> None:
    families = ("conjugate_gradient", "ridge")
    members = tuple(answered(conjugate_gradients, OWN).chosen(name) for name in families)

    def survivors(predictor: Predictor) -> set[str]:
        answer = answered(predictor, f"{TWO_CLUSTER}, half the length")
        carried = answer.carried(members)
        return Trial(answer, carried, standing(carried, RULE)).survivors(RULE.explained)

    def noise(context: Context) -> torch.Tensor:
        return normal(generator_for(9), *context.problem.values.shape)

    assert survivors(noise) == set()
    assert "conjugate_gradient" in survivors(conjugate_gradients)  # Control.


def test_what_is_left_open(answered) -> None:
    solver = answered(chebyshev_steps, OWN).reading
    assert "chebyshev" in left_open(solver, RULE) and "ridge" not in left_open(solver, RULE)
    silence = answered(lambda context: torch.zeros_like(context.problem.values), OWN).reading
    assert left_open(silence, RULE) == ()


def test_a_run_that_leaves_nothing_open_says_so(tiny_model, small_task, tmp_path) -> None:
    write_native(tiny_model("linear"), "linear", tmp_path / "tiny")
    plan = Plan(small_task, 256, 0, workers=1)
    request = Request(load(tmp_path / "tiny"), plan, ("behaviour",), discriminate=True)
    finding = analyze(request).findings[-1]
    assert (finding.analysis, finding.outcome) == ("discrimination", "inconclusive")
    assert "nothing to tell apart" in finding.statement
