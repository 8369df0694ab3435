"""From a subject to a report, without the command line."""

from dataclasses import replace

import pytest
import torch

from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.findings import Report
from probe.models.transformer import SequenceTransformer
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.planted.base import families_planted
from probe.sampling import generator_for
from probe.tasks.base import Task, find_task
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.teachers import Fixed


@pytest.fixture(scope="module")
def subject(tiny_subject):
    return tiny_subject


@pytest.fixture(scope="module")
def report(subject, small_task):
    told = []
    plan = Plan(small_task, 256, 0, workers=1)
    request = Request(subject, plan, ("behaviour", "teacher_nudge"))
    return analyze(request, lambda done, total: told.append((done, total))), told


def test_a_report_names_its_subject_and_its_data(report, subject, small_task) -> None:
    found, _ = report
    assert found.subject["sha256"] == subject.sha256 and found.subject["layers"] == 2
    assert found.subject["parameters"] == sum(p.numel() for p in subject.model.parameters())
    assert (found.task["name"], found.task["sequences"], found.task["seed"]) == ("small", 256, 0)
    clipped = found.task["params"]["clipped_share"]
    assert set(clipped) == {"in distribution", "nudged teacher"}
    assert [finding.analysis for finding in found.findings] == ["behaviour", "teacher_nudge"]
    assert [check.name for check in found.verdict.instruments] == [
        "device beside float64 on the CPU",
        "streams at the hook sites",
        "planted mesa-layer",
        "twin with permuted weights",
        "moments of another sequence",
    ]
    assert "small" in found.verdict.scope and "2..11" in found.verdict.scope


def test_progress_ends_at_its_total(report) -> None:
    _, told = report
    done = [share / total for share, total in told]
    assert done == sorted(done) and done[-1] == 1


def test_a_task_of_other_width_is_refused(subject) -> None:
    wide = LinearDynamics("wide", Fixed.from_seed(4, 0), width=4, length=12)
    with pytest.raises(InputError, match=r"width 4.*wants 3 and 3"):
        analyze(Request(subject, Plan(wide, 256, 0)))


def test_predictions_that_are_not_finite_are_refused(subject, small_task, tiny_model) -> None:
    broken = tiny_model("linear")
    with torch.no_grad():
        next(broken.parameters()).mul_(1e38)
    with pytest.raises(InputError, match="not finite"):
        analyze(Request(replace(subject, model=broken), Plan(small_task, 256, 0)))


def test_another_seed_gives_other_data_and_another_twin(report, subject, small_task) -> None:
    found, _ = report
    plan = Plan(small_task, 256, 1, workers=1)
    other = analyze(Request(subject, plan, ("behaviour",)))
    assert other.reference != found.reference
    assert other.findings[0].controls["loss"] != found.findings[0].controls["loss"]
    assert other.subject == found.subject


def test_a_wrong_hook_site_takes_the_verdict_away() -> None:
    """A planted model whose stream is read one block late: the instruments misread."""
    planted = families_planted()["gradient_descent"]
    generator = generator_for(2, 1)
    while True:
        drawn = planted.draw(find_task("linear-narrow-constructed"), generator)
        if len(drawn.model.blocks) == 3:
            break
    right = _analysed(drawn.model, drawn.task)
    assert right.verdict.instruments_ok and right.verdict.algorithm_class == "first_order"
    sites = drawn.model.layer_sites()
    drawn.model.layer_sites = lambda: (sites[0], sites[2], sites[2], sites[3])
    wrong = _analysed(drawn.model, drawn.task)
    assert not wrong.verdict.instruments_ok
    assert wrong.verdict.algorithm_class == "inconclusive" and wrong.verdict.evidence_level == 0
    assert "misread" in wrong.verdict.statement and "hook sites" in wrong.verdict.statement


def _analysed(model: SequenceTransformer, task: Task) -> Report:
    subject = Subject("planted", "native", model, task.name, "0" * 64, ())
    return analyze(Request(subject, Plan(task, 512, 0, workers=1), only=("behaviour",)))
