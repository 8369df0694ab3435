"""Which families can be told apart: known containments, identities, and an outside measure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_predictors import measure as measure_planted

from probe.cli import main
from probe.design import (
    SAME,
    Ground,
    comparable,
    design,
    left_open,
    measure,
    pairs,
    representatives,
)
from probe.errors import InputError
from probe.input_laws import OWN, TWO_CLUSTER, Inputs, candidates
from probe.plan import Plan
from probe.solvers import conjugate_gradient
from probe.solvers.base import Fitted
from probe.stages import Context
from probe.survey import survey
from probe.tasks.base import find_task

DELTA, CLIPPED = 0.01, 0.01
CLUSTERS = f"{TWO_CLUSTER}, half the length"


@pytest.fixture(scope="module")
def laws() -> dict[str, Ground]:
    """The own law of linear dynamics, and teachers of two clusters."""
    plan = Plan(find_task("linear"), 512, 0, workers=1)
    found = survey(plan, CLIPPED)
    wanted = [law for law in found.laws if law.inputs.name in (OWN, CLUSTERS)]
    return {law.inputs.name: measure(plan, law, found.columns) for law in wanted}


def member(ground: Ground, family: str, steps: int) -> Fitted:
    """A member tuned to the task."""
    fitted = ground.fitted(ground.targets)
    return next(m for m in fitted if m.family == family and m.constants["steps"] == steps)


def test_a_family_imitates_itself_and_what_contains_it(laws) -> None:
    own = laws[OWN]
    for truth in representatives(own, comparable()):
        (self_,) = own.separations(truth, [truth.family])
        assert abs(self_.value) < 1e-4, truth
    descent = member(own, "gradient_descent", 4)
    by = {s.rival: s for s in own.separations(descent, ("polynomial", "stepwise_descent", "ridge"))}
    assert abs(by["polynomial"].value) < SAME and abs(by["stepwise_descent"].value) < 1e-4
    # Control: what does not contain it stays behind, by more than can hide.
    assert by["ridge"].surplus(DELTA) > 0
    newton = member(own, "newton", 3)  # eight gradient steps
    polynomial, ridge = own.separations(newton, ("polynomial", "ridge"))
    assert abs(polynomial.value) < SAME and ridge.value > 1e-3


def test_two_clusters_tell_conjugate_gradient_from_chebyshev(laws) -> None:
    for steps in (3, 4):
        for here, there in (
            ("conjugate_gradient", "chebyshev"),
            ("chebyshev", "conjugate_gradient"),
        ):
            truth = member(laws[OWN], here, steps)
            (found,) = laws[CLUSTERS].separations(truth, [there])
            assert found.inputs == CLUSTERS and found.surplus(DELTA) > 0, found


def test_separations_are_those_of_a_planted_predictor(laws) -> None:
    def three_steps(context: Context) -> torch.Tensor:
        step = conjugate_gradient.iterates(context.spectrum, 3)[..., 2]
        return torch.einsum("btvi,bti->btv", context.spectrum.maps, step)

    reading = measure_planted(find_task("linear"), {"cg-3": three_steps}, 512, seed=3).reading(
        "cg-3"
    )
    truth = member(laws[OWN], "conjugate_gradient", 3)
    found = laws[OWN].separations(truth, ("ridge", "polynomial"))
    for separation, tolerance in zip(found, (0.01, 0.03), strict=True):
        best = min(reading.members(separation.rival), key=lambda score: score.fit_error)
        lost = 1 - reading.value(best)
        # Other sequences: rare large eigenvalues move the polynomial's share.
        assert separation.value == pytest.approx(lost, abs=tolerance)
        assert lost > 2 * tolerance


def test_the_error_falls_with_the_planned_number_of_sequences(laws) -> None:
    ground = laws[OWN]
    truth = member(ground, "conjugate_gradient", 3)
    (here,) = ground.separations(truth, ["ridge"])
    (longer,) = replace(ground, scale=ground.scale / 2).separations(truth, ["ridge"])
    assert longer.error == pytest.approx(here.error / 2)
    assert longer.detectable == pytest.approx(here.detectable / 2)
    plan = Plan(find_task("linear"), 2048, 0, workers=1)
    assert measure(plan, ground.law, ground.columns).scale == pytest.approx(0.5)


def test_no_input_separates_what_is_the_same(laws, small_task) -> None:
    """With three channels, conjugate gradient is exact after three steps; so is a ridge of zero."""
    plan = Plan(small_task, 256, 0, workers=1)
    found = survey(plan, CLIPPED)
    grounds = [measure(plan, law, found.columns) for law in found.laws[:3]]
    exact = member(grounds[0], "conjugate_gradient", 3)
    short = member(grounds[0], "conjugate_gradient", 1)
    for ground in grounds:
        assert abs(ground.separations(exact, ["ridge"])[0].value) < 1e-3
        assert ground.separations(short, ["ridge"])[0].value > DELTA  # Control.
    truths = representatives(laws[OWN], ("gradient_descent", "polynomial", "ridge"))
    met = pairs(list(laws.values()), truths, ("gradient_descent", "polynomial", "ridge"), DELTA)
    contained = {pair.names: pair.contained for pair in met}
    assert contained["gradient_descent", "polynomial"] == ("gradient_descent",)
    assert contained["gradient_descent", "ridge"] == ()
    for pair in met:
        assert pair.best is not None and pair.best.inputs in laws
    nested = next(pair for pair in met if pair.names == ("gradient_descent", "polynomial"))
    assert nested.separable(nested.own, DELTA) == "if polynomial"


def test_laws_beyond_the_reach_of_the_model_are_left_out() -> None:
    task = find_task("linear")
    plan = Plan(task, 256, 0, workers=1)
    found = survey(plan, 0.0)
    names = {law.inputs.name for law in found.laws} | set(found.skipped)
    assert names == {inputs.name for inputs in candidates(task)}
    assert found.laws[0].inputs == Inputs(OWN, task)
    assert all(law.clipped <= found.laws[0].clipped for law in found.laws)
    assert all(law.beyond <= found.laws[0].highest for law in found.laws)
    assert any("clips" in why for why in found.skipped.values())
    # Control: of a model that may see clipped tokens nothing is kept back for that reason.
    assert not any("clips" in why for why in survey(plan, 1.0).skipped.values())


@pytest.mark.slow
def test_the_best_inputs_separate_no_worse_than_the_own_law(small_task) -> None:
    plan = Plan(small_task, 256, 0, workers=1)
    made = design(plan, ("chebyshev", "conjugate_gradient", "ridge"), DELTA, CLIPPED)
    assert [pair.names for pair in made.pairs] == [
        ("chebyshev", "conjugate_gradient"),
        ("chebyshev", "ridge"),
        ("conjugate_gradient", "ridge"),
    ]
    for pair in made.pairs:
        assert pair.best is not None
        worst = [
            min(s.surplus(DELTA) for s in (meeting.first, meeting.second))
            for meeting in (pair.best, pair.own)
        ]
        assert worst[0] >= worst[1]
    assert len(made.rows()) == 3 and len({len(row) for row in made.rows()}) == 1
    assert json.loads(json.dumps(made.to_dict()))["pairs"][1]["families"] == ["chebyshev", "ridge"]


def test_impossible_comparisons(small_task, tmp_path: Path) -> None:
    plan = Plan(small_task, 256, 0, workers=1)
    with pytest.raises(InputError, match="cannot compare nonsense"):
        design(plan, ("ridge", "nonsense"), DELTA, CLIPPED)
    with pytest.raises(InputError, match="two families"):
        design(plan, ("ridge", "ridge"), DELTA, CLIPPED)
    file = tmp_path / "results.json"
    for content, expected in (
        ("no json", "no results of a run"),
        ("{}", "no results of a run"),
        (_results("ridge"), "no two families"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=expected):
            left_open(file)
    file.write_text(_results("ridge", "newton", "preconditioned_gd"))
    assert left_open(file).families == ("newton", "ridge")
    assert left_open(file).task == "linear"


def _results(*names: str) -> str:
    return json.dumps(
        {"task": {"name": "linear"}, "verdict": {"equivalent": names[:1], "undecided": names[1:]}}
    )


def test_bad_input_is_one_line(capsys, tmp_path: Path) -> None:
    for arguments, expected in (
        (["--against", "ridge,nonsense"], "cannot compare nonsense"),
        (["--task", "nonsense"], "unknown task"),
        (["--discriminate-from", str(tmp_path / "nothing.json")], "No such file"),
        (["--sequences", "3"], "too few"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["design", *arguments])
        assert stop.value.code == 2
        line = capsys.readouterr().err.strip()
        assert expected in line and "\n" not in line
