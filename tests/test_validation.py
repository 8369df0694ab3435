"""Validation: labels that hold, blind grades, error rates that are counted right."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from probe.cli import app
from probe.findings import Verdict
from probe.plan import Plan
from probe.planted.base import Truth, families_planted
from probe.planted.descent import Filtered, Steps, plant_descent
from probe.planted.disguises.base import blurred
from probe.planted.trained import FOLDER, LEARNERS, OTHERS
from probe.rule import Thresholds
from probe.sampling import generator_for
from probe.scores import Reading
from probe.tasks.base import find_task
from probe.validation.bench import Bench
from probe.validation.calibration import choose, fit_confidence
from probe.validation.grading import look
from probe.validation.run import Observed, grade, observe
from probe.validation.specimens import Design, Label, draw
from probe.validation.summary import Graded, Rate, calibration_error, summarise, worst

TASK = "linear-narrow-constructed"
SILENT = Reading((), torch.ones(64), torch.ones(64))


def graded(
    planted: str, read: str, confidence: float = 0.9, disguises=(), distance: float = 0.1
) -> Graded:
    truth = Truth(planted, "ridge" if planted == "least_squares" else "none", None)
    label = Label("model-0", "family", "words", TASK, truth, disguises, 0)
    verdict = Verdict(
        read, "none", None, {}, ("ridge",), (), 0, distance, "", True, (), "", confidence
    )
    return Graded(label, verdict, SILENT)


def test_rates_count_what_they_say() -> None:
    found = [
        graded("kernel", "first_order"),  # a false find
        graded("kernel", "kernel"),
        graded("mixture", "least_squares"),  # wrong, but there is a solver in it
        graded("least_squares", "least_squares", disguises=("rotation", "noise_5")),
        graded("first_order", "inconclusive", disguises=("noise_5",)),
    ]
    summary = summarise(found)
    assert (summary.false_positive_rate.value, summary.false_positive_rate.count) == (0.5, 2)
    assert summary.class_accuracy.value == pytest.approx(2 / 5)
    assert summary.accuracy_at_noise_5.value == 0.5
    assert summary.accuracy_without_noise.count == 3
    assert summary.family_coverage.value == 0.5  # ridge is covered, "none" is not
    assert summary.by_disguise["plain"].count == 3
    assert summary.confusion.loc["kernel", "first_order"] == 1
    assert [g.false_positive for g in worst(found)] == [True, False, False]


def test_a_blurred_step_may_be_preconditioned() -> None:
    def covered(truth: Truth) -> bool:
        case = graded("first_order", "first_order")
        verdict = replace(case.verdict, equivalent=("preconditioned_gd",))
        return replace(case, label=replace(case.label, truth=truth), verdict=verdict).covered

    step = Truth("first_order", "gradient_descent", 1)
    assert covered(blurred(step)) and not covered(step)
    assert not covered(blurred(replace(step, degree=2)))


def test_the_interval_of_a_rate_is_exact() -> None:
    """No hit among n: the upper end is 1 - 0.025^(1/n)."""
    rate = Rate.of([False] * 500)
    assert (rate.value, rate.lo) == (0, 0)
    assert rate.hi == pytest.approx(1 - 0.025 ** (1 / 500))
    assert np.isnan(Rate.of([]).value)


def test_calibration_error_is_that_of_the_bins() -> None:
    confidence = np.repeat([0.5, 0.9], 50)
    right = np.concatenate([np.arange(50) % 2, np.ones(50)]).astype(float)
    assert calibration_error(confidence, right) == pytest.approx(0.05, abs=0.02)
    assert calibration_error(1 - confidence, right) > 0.4  # control


def test_confidence_rises_with_distance_where_verdicts_do() -> None:
    near = [graded("kernel", "kernel" if i % 2 else "copy", distance=1e-3) for i in range(40)]
    far = [graded("kernel", "kernel", distance=0.5) for _ in range(40)]
    assert fit_confidence(near + far)["slope"] > 0.3
    level = fit_confidence(far + [graded("kernel", "copy", distance=0.5)] * 4)
    assert level["slope"] < 0.3  # control: nothing to be learned from the distance


def test_halves_share_no_family_and_cover_all() -> None:
    design = Design.load()
    halves = [set(design.families(half)) for half in ("calibration", "report")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(families_planted())
    for half in halves:
        assert {families_planted()[name].learns for name in half} == {True, False}


def test_specimens_follow_from_seed_and_index_alone() -> None:
    one, two = (next(iter(draw([3], 11, "report"))) for _ in range(2))
    assert one.label == two.label
    weights = zip(one.planted.model.parameters(), two.planted.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert next(iter(draw([3], 12, "report"))).label != one.label


def test_a_converged_descent_has_no_label_of_its_own() -> None:
    task = find_task(TASK)
    bench = Bench.of(task, 0)
    top = 2 / bench.step_bound
    short = plant_descent(task, "gd", (1 / top,), "gradient_descent")
    long = replace(short, solver=Filtered(Steps((0.8 / top,) * 2048)))
    assert bench.nearest_other(short) > 0.02 > bench.nearest_other(long)


def test_the_grader_tells_planted_models_apart() -> None:
    """Kernel smoother and one gradient step on the same data; a mesa-layer; a copy."""
    task, generator = find_task(TASK), generator_for(1, 2)
    names = ("ridge", "kernel_smoother", "two_lag_copy", "mean", "mixture")
    drawn = {name: families_planted()[name].draw(task, generator) for name in names}
    drawn["gd-1"] = plant_descent(task, "gd-1", (0.03,), "gradient_descent")
    seen = look({name: p.model for name, p in drawn.items()}, Plan(task, 1024, 5, workers=1))
    verdicts = {name: seen[name].judge(Thresholds.load()) for name in drawn}
    for name, planted in drawn.items():
        assert verdicts[name].algorithm_class == planted.truth.algorithm_class, name
        assert 0.5 < verdicts[name].confidence < 1
    assert "ridge" in verdicts["ridge"].equivalent
    nothing = Thresholds(**{**vars(Thresholds.load()), "explained": 1.1})  # control
    assert seen["gd-1"].judge(nothing).algorithm_class != "first_order"


def test_thresholds_are_chosen_for_the_fewest_errors() -> None:
    task = find_task(TASK)
    planted = plant_descent(task, "gd-1", (0.03,), "gradient_descent")
    seen = look({"a": planted.model}, Plan(task, 512, 5, workers=1))["a"]
    label = Label("a", "gradient_descent", "gd-1", TASK, planted.truth, (), 0)
    far_off = Thresholds(**{**vars(Thresholds.load()), "explained": 1.1})
    assert not grade([Observed(label, seen)], far_off)[0].right
    assert grade([Observed(label, seen)], choose([Observed(label, seen)], far_off))[0].right


@pytest.mark.parametrize("checkpoint", [*LEARNERS, *OTHERS], ids=lambda c: c.folder)
def test_trained_checkpoints_do_what_their_labels_say(checkpoint) -> None:
    from probe.checkpoints.base import load

    model = load(FOLDER / checkpoint.folder, None).model
    plan = Plan(find_task(checkpoint.task), 1024, 8, workers=1)
    verdict = look({"a": model}, plan)["a"].judge(Thresholds.load())
    right = (checkpoint.truth.algorithm_class, *checkpoint.truth.also)
    assert verdict.algorithm_class in right
    if checkpoint.truth.family in ("memorised_map", "pool_lookup"):
        assert verdict.family == checkpoint.truth.family
        assert re.search("map of the query|training teachers", verdict.statement)


@pytest.mark.slow
def test_a_small_run_is_right_and_does_not_depend_on_the_workers(tmp_path) -> None:
    run = CliRunner().invoke(app, ["validate", "--models", "6", "--seed", "7", "--out", tmp_path])
    assert run.exit_code == 0, run.output
    found = json.loads((tmp_path / "validation.json").read_text())
    assert len(found["models"]) == 6
    assert found["summary"]["false_positive_rate"]["value"] == 0
    assert found["summary"]["class_accuracy"]["value"] >= 0.9
    assert "<svg" in (tmp_path / "validation.html").read_text()
    again = observe(2, 7, "report", lambda done, total: None, 1)
    labels = [one.label.planted for one in again]
    assert labels == [model["planted"] for model in found["models"][:2]]
