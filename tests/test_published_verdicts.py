"""The published checkpoints, where their folder is at hand, are judged as their design demands."""

from dataclasses import replace
from pathlib import Path

import pytest
from published_checkpoints import subject_of

from probe.findings import Verdict
from probe.pipeline import Request, analyze
from probe.plan import Plan
from probe.tasks.base import find_task
from probe.views import permuted_twin

FOLDER = "linear_seq_fully"
CAUSAL = ("layer_reconstruction", "linear_probing", "update_law", "interchange", "pair_edits")


def holds(verdict: Verdict, preset: str, expected: str, degree: int | None) -> None:
    # The twin and the foreign contexts read no learner, or there would be no verdict.
    assert verdict.instruments_ok, verdict.statement
    assert (verdict.algorithm_class, verdict.degree) == (expected, degree)
    known = {*verdict.equivalent, *verdict.undecided}
    if preset == "linear-1l":
        assert verdict.family == "gradient_descent" and verdict.parameters["steps"] == 1
        assert verdict.parameters["eta"] == pytest.approx(0.033, abs=0.003)
        assert not {"ridge", "newton", "conjugate_gradient"} & known
    elif expected == "first_order":
        assert "polynomial" in known and "ridge" not in known
    else:
        assert verdict.family == "ridge"
        assert "gradient_descent" not in verdict.equivalent
    if preset == "linear-6l":
        assert "newton" in verdict.equivalent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "preset", "expected", "degree"),
    [
        ("model_lin_2l_constr.pkl", "linear-2l", "first_order", 4),
        ("model_sm_7l_fullfledged.pkl", "softmax-7l", "least_squares", None),
        ("model_mesa_fullfledged.pkl", "hybrid-mesa", "least_squares", None),
    ],
)
def test_published_models_are_judged(paper_data: Path, file, preset, expected, degree) -> None:
    subject = subject_of(paper_data, f"{FOLDER}/{file}", preset)
    plan = Plan(find_task(subject.task or ""), 4096, 0)
    verdict = analyze(Request(subject, plan, ("behaviour",))).verdict
    holds(verdict, preset, expected, degree)
    assert verdict.evidence_level >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "preset", "expected", "degree"),
    [
        ("model_lin_1l_constr.pkl", "linear-1l", "first_order", 1),
        ("model_lin_6l_constr.pkl", "linear-6l", "least_squares", None),
        ("model_mesa_constr.pkl", "mesa-1l", "least_squares", None),
    ],
)
def test_published_models_reach_level_3_and_their_twins_none(
    paper_data: Path, file, preset, expected, degree
) -> None:
    subject = subject_of(paper_data, f"{FOLDER}/{file}", preset)
    plan = Plan(find_task(subject.task or ""), 2048, 1)
    report = analyze(Request(subject, plan, (*CAUSAL, "ablation", "signatures")))
    holds(report.verdict, preset, expected, degree)
    assert report.verdict.evidence_level == 3
    if preset == "linear-6l":
        found = {f.analysis: f for f in report.findings}["interchange"]
        assert found.metrics["transfer_r2"].lo >= 0.85
        assert found.metrics["above_controls"].lo > 0
    twin = replace(subject, model=permuted_twin(subject.model, 5))
    verdict = analyze(Request(twin, replace(plan, sequences=1024), CAUSAL)).verdict
    assert verdict.evidence_level == 0
    assert verdict.algorithm_class not in ("first_order", "least_squares")
