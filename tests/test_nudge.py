"""The nudge of the teacher: learners follow it, memorised maps do not."""

from dataclasses import replace

import pytest
import torch

from analyses.teacher_nudge import TeacherNudge
from probe.capture import capture, predictor_only
from probe.nudge import NudgeStage, known_teachers, nudge_of
from probe.pilot import scout
from probe.plan import Plan
from probe.solvers.ridge import shrinkage
from probe.sweep import Sweep
from probe.tasks.base import find_task
from probe.tasks.teachers import Fixed, Pool
from probe.views import SUBJECT


@pytest.fixture(scope="module")
def one_teacher(small_task):
    return replace(small_task, name="one", teacher=Fixed.from_seed(3, 0), length=30)


@pytest.fixture(scope="module")
def three_teachers(small_task):
    return replace(small_task, name="three", teacher=Pool.from_seed(3, 3, 0), length=30)


def measured(task, predictor):
    plan = Plan(task, 512, 0, workers=1)
    setting = scout(plan, 1)
    (stage,) = nudge_of(setting)

    def view(context, captures):
        return context, predictor_only(predictor(context, stage).float())

    sweep = Sweep(replace(plan, task=stage.task), {}, {SUBJECT: view}, capture)
    results = sweep.run((stage,))
    return stage, results, TeacherNudge().conclude(setting, results)


def memorised(context, stage: NudgeStage) -> torch.Tensor:
    return context.problem.queries.double() @ stage.unturned(context.sequences.teachers).mT


def learned(context, stage: NudgeStage) -> torch.Tensor:
    return context.spectrum.predict(lambda mu: shrinkage(mu, 1e-3) / mu)


def test_the_oracle_follows_and_a_memorised_map_stays(one_teacher) -> None:
    stage, results, finding = measured(one_teacher, lambda c, s: c.problem.oracle)
    alpha, fixed = stage.read(results)
    assert alpha.value == pytest.approx(1, abs=1e-4) and fixed.value < 0.999
    assert finding.outcome == "supports"
    stage, results, finding = measured(one_teacher, memorised)
    alpha, fixed = stage.read(results)
    assert alpha.value == pytest.approx(0, abs=1e-4)
    assert fixed.value == pytest.approx(1, abs=1e-6)
    assert finding.outcome == "contradicts"


@pytest.mark.parametrize("share", [0.1, 0.37, 0.8])
def test_a_mixture_is_read_at_its_share(one_teacher, share) -> None:
    def mixed(context, stage):
        return share * context.problem.oracle + (1 - share) * memorised(context, stage)

    stage, results, finding = measured(one_teacher, mixed)
    alpha, _ = stage.read(results)
    assert alpha.value == pytest.approx(share, abs=1e-3)
    assert alpha.lo <= alpha.value <= alpha.hi
    outcome = {0.1: "contradicts", 0.37: "inconclusive", 0.8: "supports"}[share]
    assert finding.outcome == outcome
    assert finding.metrics["alpha"].value == alpha.value


def test_least_squares_follows(one_teacher) -> None:
    stage, results, finding = measured(one_teacher, learned)
    alpha, _ = stage.read(results)
    assert alpha.value > 0.8 and finding.outcome == "supports"


def test_the_teacher_is_turned_a_little(one_teacher) -> None:
    (stage,) = nudge_of(scout(Plan(one_teacher, 256, 0), 1))
    sample = stage.task.sample(64, torch.Generator().manual_seed(0))
    base = torch.tensor(stage.bases[0])
    assert torch.allclose(base.double(), one_teacher.teacher.matrix, atol=1e-6)
    apart = (sample.teachers - base).norm(dim=(1, 2)) / base.norm()
    assert (apart > 1e-3).all() and (apart < 0.3).all()
    other = one_teacher.sample(64, torch.Generator().manual_seed(0)).teachers
    assert torch.allclose(other, base.expand_as(other), atol=1e-6)


def test_a_pool_is_turned_around_each_of_its_teachers(three_teachers) -> None:
    (stage,) = nudge_of(scout(Plan(three_teachers, 256, 0), 1))
    assert known_teachers(three_teachers) == len(stage.bases) == 3
    sample = stage.task.sample(96, torch.Generator().manual_seed(0))
    apart = (sample.teachers[:, None] - torch.tensor(stage.bases)).norm(dim=(2, 3))
    nearest = stage.unturned(sample.teachers)
    assert torch.allclose((sample.teachers - nearest).norm(dim=(1, 2)).float(), apart.amin(1))
    size = sample.teachers.norm(dim=(1, 2))
    assert (apart.amin(1) > 1e-3 * size).all() and (apart.amin(1) < 0.3 * size).all()
    assert set(apart.argmin(1).tolist()) == {0, 1, 2}
    assert (apart.sort(1).values[:, 1] > 0.5 * size).all()


def test_a_table_of_the_pool_stays_and_a_single_map_does_not_explain_it(three_teachers) -> None:
    stage, results, finding = measured(three_teachers, memorised)
    alpha, fixed = stage.read(results)
    assert alpha.value == pytest.approx(0, abs=1e-4)
    assert fixed.value == pytest.approx(1, abs=1e-6)
    assert finding.outcome == "contradicts"
    stage, results, finding = measured(three_teachers, lambda c, s: c.problem.oracle)
    assert stage.read(results)[0].value == pytest.approx(1, abs=1e-4)
    assert finding.outcome == "supports"

    def first_only(context, stage):
        return context.problem.queries.double() @ torch.tensor(stage.bases[0]).double().mT

    stage, results, _ = measured(three_teachers, first_only)
    assert stage.read(results)[1].value < 0.5


def test_which_tasks_are_nudged(small_task, one_teacher) -> None:
    assert known_teachers(one_teacher) == 1 and known_teachers(small_task) == 0
    setting = scout(Plan(find_task("partial"), 256, 0), 1)
    assert nudge_of(setting) == ()
    finding = TeacherNudge().conclude(setting, {})
    assert finding.outcome == "inconclusive" and not finding.metrics


def test_nudges_are_told_apart_by_what_they_turn(one_teacher) -> None:
    (stage,) = nudge_of(scout(Plan(one_teacher, 256, 0), 1))
    (again,) = nudge_of(scout(Plan(one_teacher, 256, 1), 1))
    assert stage == again and hash(stage) == hash(again)
    other = replace(one_teacher, teacher=Fixed.from_seed(3, 1))
    (turned,) = nudge_of(scout(Plan(other, 256, 0), 1))
    assert stage != turned
