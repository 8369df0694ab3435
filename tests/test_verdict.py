"""The rule reads predictors whose algorithm is known, and says nothing about broken instruments."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_predictors import Measurement, column, measure, spectral
from scipy import stats

from probe.change_point import Parts
from probe.findings import Finding, Instrument, Table, Verdict
from probe.pilot import scout
from probe.plan import Plan
from probe.rule import Thresholds, classify
from probe.sampling import generator_for, normal
from probe.scores import Reading, Score, nulls
from probe.solvers import gradient_descent, newton, ridge
from probe.stages import Context
from probe.standing import Power, power, standing
from probe.statistics import BLOCKS, against_margin
from probe.tasks.base import find_task
from probe.verdict import Evidence, Nudge, check_instruments, judge

LEARNERS = ("first_order", "least_squares")
RULE = Thresholds.load()
ONES = torch.ones(BLOCKS, dtype=torch.float64)


def noise(context: Context) -> torch.Tensor:
    values = context.problem.values
    return normal(generator_for(int(float(values.abs().sum()) * 100) % 9973), *values.shape)


def half_noise(context: Context) -> torch.Tensor:
    said = spectral(lambda mu: ridge.shrinkage(mu, 0.05))(context)
    return said + 2 * noise(context)


@pytest.fixture(scope="module")
def measured() -> Measurement:
    task = find_task("linear")
    bound = scout(Plan(task, 256, 0), 1).step_bound
    trained = normal(generator_for(5), 10, 10)
    return measure(
        task,
        {
            "gd-1": spectral(lambda mu: gradient_descent.shrinkage(mu, 1, 0.3 * bound)),
            "gd-3": spectral(lambda mu: gradient_descent.shrinkage(mu, 3, 0.35 * bound)),
            "ridge": spectral(lambda mu: ridge.shrinkage(mu, 0.05)),
            "newton-9": spectral(lambda mu: newton.shrinkage(mu, 9, 0.2 * bound)),
            "newton-3": spectral(lambda mu: newton.shrinkage(mu, 3, 0.2 * bound)),
            "newton-4": spectral(lambda mu: newton.shrinkage(mu, 4, 0.4 * bound)),
            "kernel": column("kernel_smoother", 0, 0, 0, 0, 0.8, 0, 0, 0),
            "neighbours": column("nearest_neighbours", 0, 1),
            "map": lambda context: context.problem.queries.double() @ trained.mT,
            "copy": column("two_lag_copy", 0.7, -0.4),
            "mean": column("mean", 1),
            "oracle": column("oracle", 1),
            "noise": noise,
            "half-noise": half_noise,
            "silence": column("zero", 1),
        },
        sequences=512,
    )


CLASSES = {
    "gd-1": "first_order",
    "gd-3": "first_order",
    "ridge": "least_squares",
    "newton-9": "least_squares",
    "newton-3": "first_order",  # the same curve as eight gradient steps
    "newton-4": "inconclusive",  # near to least squares and to a short iteration
    "kernel": "kernel",
    "neighbours": "kernel",
    "map": "context_free",
    "copy": "copy",
    "mean": "kernel",
    "oracle": "unexplained",
    "noise": "unexplained",
    "half-noise": "unexplained",
    "silence": "unexplained",
}
GOOD = (Instrument("planted mesa-layer", "least_squares", "least_squares", True),)


def evidence(reading: Reading, **changes) -> Evidence:
    return replace(Evidence(reading, GOOD, None, {}, 1, "task linear"), **changes)


@pytest.mark.parametrize(("name", "expected"), CLASSES.items())
def test_planted_predictors_are_named(measured: Measurement, name: str, expected: str) -> None:
    reading = measured.reading(name)
    found = classify(reading, RULE)
    assert found.name == expected
    verdict = judge(evidence(reading), RULE)
    assert verdict.algorithm_class == expected
    assert (verdict.degree is not None) == (expected == "first_order")
    assert verdict.evidence_level == (1 if expected in LEARNERS else 0)
    assert bool(verdict.equivalent) == (expected in (*LEARNERS, "inconclusive"))
    for word in ("None", "nan", "inf", "_"):
        assert word not in verdict.statement
    assert verdict.statement.endswith(".")


def test_families_and_constants_of_planted_learners(measured: Measurement) -> None:
    bound = measured.setting.step_bound
    one = judge(evidence(measured.reading("gd-1")), RULE)
    assert (one.family, one.degree) == ("gradient_descent", 1)
    assert one.parameters["steps"] == 1
    assert one.parameters["eta"] == pytest.approx(0.3 * bound, rel=0.02)
    assert "ridge" not in one.equivalent and "newton" not in one.equivalent
    three = judge(evidence(measured.reading("gd-3")), RULE)
    assert three.family == "gradient_descent" and three.degree in (2, 3)
    assert three.parameters["eta"] == pytest.approx(0.35 * bound, rel=0.02)
    exact = judge(evidence(measured.reading("ridge")), RULE)
    assert exact.family == "ridge"
    assert exact.parameters["lambda"] == pytest.approx(0.05, rel=0.05)
    assert not {"gradient_descent", "polynomial"} & {*exact.equivalent, *exact.undecided}
    iterated = judge(evidence(measured.reading("newton-9")), RULE)
    assert {"newton", "ridge"} <= {*iterated.equivalent, *iterated.undecided}


def test_nulls_get_the_name_of_what_they_are(measured: Measurement) -> None:
    for name, family in (
        ("map", "memorised_map"),
        ("copy", "two_lag_copy"),
        ("kernel", "kernel_smoother"),
        ("neighbours", "kernel_smoother"),
        ("mean", "mean"),
    ):
        assert judge(evidence(measured.reading(name)), RULE).family == family


def test_no_null_is_equivalent(measured: Measurement) -> None:
    for name in CLASSES:
        groups = standing(measured.reading(name), RULE)
        assert not {*groups.equivalent, *groups.undecided, *groups.rejected} & (
            nulls() | {"spline"}
        )


# --- The margins, on scores that are given. ---


def score(family: str, r2: float, degree: int | None = None, rough: float = 0.0) -> Score:
    wave = rough * torch.linspace(-1, 1, BLOCKS, dtype=torch.float64)
    return Score(family, {}, degree, 1, 1 - r2, (1 - r2) * ONES + wave)


def reading_of(**r2: float) -> Reading:
    """A reading from R^2 by family; poly_k stands for the polynomial of degree k."""
    given_ = {"spline": 0.99, "oracle": 0.1, "zero": 0.0, "newton": 0.5, "ridge": 0.5, **r2}
    scores = []
    for name, value in given_.items():
        family, _, degree = name.partition("_")
        if family == "poly":
            scores.append(score("polynomial", value, int(degree)))
        elif name.startswith("gd"):
            scores.append(score("gradient_descent", value, int(name[2:])))
        else:
            scores.append(score(name, value, 1023 if name == "newton" else None))
    if "poly_1" not in given_:
        scores.append(score("polynomial", 0.4, 1))
    return Reading(tuple(scores), ONES, 0.5 * ONES)


def test_the_class_is_the_reach_of_least_squares_and_of_polynomials() -> None:
    first = classify(reading_of(poly_1=0.5, poly_4=0.985, poly_8=0.99), RULE)
    assert (first.name, first.degree) == ("first_order", 4)
    assert classify(reading_of(ridge=0.985), RULE).name == "least_squares"
    assert classify(reading_of(newton=0.985), RULE).name == "least_squares"
    assert classify(reading_of(ridge=0.985, poly_8=0.985), RULE).name == "inconclusive"
    assert classify(reading_of(ridge=0.97, poly_8=0.97), RULE).name == "unexplained"
    assert classify(reading_of(ridge=0.97, poly_9=0.99), RULE).name == "unexplained"
    assert classify(reading_of(spline=0.79, ridge=0.79), RULE).name == "unexplained"
    assert classify(reading_of(spline=0.39, newton=0.3, ridge=0.3, poly_1=0.3), RULE).name == (
        "unexplained"
    )


def test_a_null_wins_by_what_it_leaves_unexplained() -> None:
    assert classify(reading_of(ridge=0.99, memorised_map=0.987), RULE).name == "least_squares"
    found = classify(reading_of(ridge=0.99, memorised_map=0.988), RULE)
    assert (found.name, found.null) == ("context_free", "memorised_map")
    found = classify(reading_of(ridge=0.99, two_lag_copy=0.988), RULE)
    assert found.name == "copy"


@given(st.floats(-0.05, 0.01))
def test_the_distance_is_that_of_the_deciding_number(gap: float) -> None:
    found = classify(reading_of(ridge=0.98 + gap), RULE)
    assert found.distance == pytest.approx(abs(gap), abs=1e-9)
    # Rounding decides at the threshold itself.
    if abs(gap) > 1e-9:
        assert found.name == ("least_squares" if gap > 0 else "unexplained")


@given(st.floats(0.0, 0.04), st.just(0.0) | st.floats(1e-4, 0.2))
def test_families_stand_by_tests_against_the_margin(gap: float, rough: float) -> None:
    rival = score("newton", 0.99 - gap, 1023, rough)
    best = score("ridge", 0.99)
    reading = Reading((best, rival, score("zero", 0.0), score("oracle", 0.1)), ONES, ONES)
    groups = standing(reading, RULE)
    assert "ridge" in groups.equivalent
    lost = (rival.error - best.error).numpy()
    if rough > 0:
        beyond = stats.ttest_1samp(lost, RULE.delta, alternative="greater").pvalue
        within = max(
            stats.ttest_1samp(lost, RULE.delta, alternative="less").pvalue,
            stats.ttest_1samp(lost, -RULE.delta, alternative="greater").pvalue,
        )
        # Of two rejections the second is never sought: the better family is not worse than itself.
        assert ("newton" in groups.rejected) == (2 * beyond < RULE.level)
        assert ("newton" in groups.equivalent) == (within < RULE.level)
    elif abs(gap - RULE.delta) > 1e-6:
        assert ("newton" in groups.equivalent) == (gap < RULE.delta)
        assert ("newton" in groups.rejected) == (gap > RULE.delta)


def shaky(family: str, r2: float, seed: int, fit_error: float, spread: float = 0.04) -> Score:
    error = 1 - r2 + spread * normal(generator_for(seed, 3), BLOCKS)
    return replace(score(family, r2), error=error, fit_error=fit_error)


def test_many_families_do_not_reject_one_another_by_chance() -> None:
    """All families lose exactly delta to the best, so no rejection is right."""
    names = (
        "newton",
        "chebyshev",
        "polynomial",
        "gradient_descent",
        "stepwise_descent",
        "momentum",
    )
    wrong = alone = 0
    for seed in range(300):
        worse = [shaky(n, 0.98, 10 * seed + i, 0.02) for i, n in enumerate(names)]
        reading = Reading((score("ridge", 0.99), *worse), ONES, ONES)
        wrong += bool(standing(reading, RULE).rejected)
        alone += any(
            against_margin(s.error - 0.01, ONES, RULE.delta).above < RULE.level for s in worse
        )
    assert wrong / 300 < 0.08
    assert alone / 300 > 0.15  # Control: unadjusted.


def test_the_reference_is_chosen_on_the_fit_split() -> None:
    def rejected(*fit_errors: float) -> tuple[str, ...]:
        given_ = zip(("ridge", "lucky", "newton"), (0.98, 0.988, 0.974), fit_errors, strict=True)
        scores = tuple(replace(score(name, r2), fit_error=fit) for name, r2, fit in given_)
        return standing(Reading(scores, ONES, ONES), RULE).rejected

    assert rejected(0.01, 0.02, 0.03) == ()
    # Control: against the family that the test split favours, newton would be rejected.
    assert rejected(0.02, 0.01, 0.03) == ("newton",)


def test_power_says_whether_a_difference_could_hide() -> None:
    def powered(ridge: Score, poly: Score) -> Power:
        spline = replace(score("spline", 0.99), fit_error=0.0)
        return power(Reading((spline, ridge, poly, score("oracle", 0.1)), ONES, ONES), RULE)

    def poly(r2: float, spread: float) -> Score:
        return replace(shaky("polynomial", r2, 2, 0.02, spread), degree=4)

    sharp = powered(shaky("ridge", 0.988, 1, 0.01, 0.004), poly(0.9, 0.004))
    assert sharp.enough and sharp.minimum_detectable < RULE.delta
    # A difference of three margins could hide, and nothing is decided.
    blunt = powered(shaky("ridge", 0.985, 1, 0.01, 0.1), poly(0.985, 0.1))
    assert not blunt.enough and blunt.minimum_detectable > 3 * RULE.delta
    # As coarse, but both are far outside the margin: nothing is left to be seen.
    assert powered(shaky("ridge", 0.7, 1, 0.01, 0.1), poly(0.6, 0.1)).enough
    assert not powered(shaky("ridge", 0.7, 1, 0.01, 0.1), poly(0.985, 0.1)).enough


def test_planted_predictors_are_read_with_power(measured: Measurement) -> None:
    for name in ("gd-1", "gd-3", "ridge", "newton-9"):
        assert power(measured.reading(name), RULE).enough, name


def test_better_data_decide_what_poor_data_leave_open() -> None:
    def place(gap: float, rough: float) -> str:
        scores = (score("ridge", 0.99), score("newton", 0.99 - gap, 1023, rough))
        groups = standing(Reading((*scores, score("oracle", 0.1)), ONES, ONES), RULE)
        return next(name for name, members in vars(groups).items() if "newton" in members)

    assert place(0.005, 0.0) == "equivalent" and place(0.005, 0.1) == "undecided"
    assert place(0.02, 0.0) == "rejected" and place(0.02, 0.1) == "undecided"


# --- Instruments, nudge, evidence. ---


def views(measured: Measurement, planted: str, twin: str, swapped: str):
    names = {"planted_mesa": planted, "permuted_twin": twin, "swapped_context": swapped}
    return check_instruments(lambda view: measured.reading(names[view]), RULE)


def test_instruments_read_what_they_must(measured: Measurement) -> None:
    good = views(measured, "ridge", "noise", "silence")
    assert [check.ok for check in good] == [True, True, True]
    assert views(measured, "newton-4", "noise", "noise")[0].reads == "no power"
    assert not views(measured, "gd-1", "noise", "noise")[0].ok
    assert not views(measured, "noise", "noise", "noise")[0].ok
    assert not views(measured, "ridge", "gd-1", "noise")[1].ok
    assert not views(measured, "ridge", "noise", "ridge")[2].ok


def test_a_broken_instrument_takes_the_verdict_away(measured: Measurement) -> None:
    reading = measured.reading("ridge")
    assert judge(evidence(reading), RULE).evidence_level == 1
    broken = views(measured, "ridge", "gd-1", "noise")
    verdict = judge(evidence(reading, instruments=broken), RULE)
    assert verdict.algorithm_class == "inconclusive" and verdict.evidence_level == 0
    assert not verdict.instruments_ok and verdict.family == "none"
    assert verdict.equivalent == () and verdict.parameters == {}
    assert "misread" in verdict.statement and "permuted" in verdict.statement


@pytest.mark.parametrize(
    ("nudge", "expected"),
    [
        (None, "least_squares"),
        (Nudge(0.0, 0.95, 1, 0.0), "context_free"),
        (Nudge(0.0, 0.95, 4, 0.0), "lookup"),
        (Nudge(0.0, 0.5, 1, 0.0), "unexplained"),
        (Nudge(0.0, 0.5, 4, 0.0), "unexplained"),
        (Nudge(0.9, 0.95, 1, 0.0), "least_squares"),
        (Nudge(0.9, 0.95, 4, 0.0), "least_squares"),
        (Nudge(0.0, 0.95, 0, 0.0), "least_squares"),
        (Nudge(0.0, 0.95, 1, 0.02), "least_squares"),
    ],
)
def test_few_teachers_are_judged_by_the_nudge_first(measured, nudge, expected) -> None:
    verdict = judge(evidence(measured.reading("ridge"), nudge=nudge), RULE)
    assert verdict.algorithm_class == expected
    assert verdict.evidence_level == (1 if expected == "least_squares" else 0)
    assert "None" not in verdict.statement and "nan" not in verdict.statement


def test_a_table_of_teachers_has_its_own_family_and_sentence(measured: Measurement) -> None:
    reading = measured.reading("ridge")
    verdict = judge(evidence(reading, nudge=Nudge(0.0, 0.95, 4, 0.0)), RULE)
    assert (verdict.algorithm_class, verdict.family) == ("lookup", "pool_lookup")
    assert verdict.parameters == {} and verdict.equivalent == ()
    assert "recognises which of its training teachers" in verdict.statement
    one = judge(evidence(reading, nudge=Nudge(0.0, 0.95, 1, 0.0)), RULE)
    assert one.family == "memorised_map" and "recognises" not in one.statement


def finding(name: str, outcome: str) -> Finding:
    return Finding(name, "?", outcome, "", {}, {}, "")


def test_the_inside_lifts_the_evidence(measured: Measurement) -> None:
    reading = measured.reading("ridge")
    inside = ("layer_reconstruction", "linear_probing", "update_law")
    supports = {name: finding(name, "supports") for name in inside}

    def level(layers: int, findings, of: Reading = reading) -> int:
        return judge(evidence(of, layers=layers, findings=findings), RULE).evidence_level

    assert level(4, supports) == 2
    assert level(4, {}) == 1
    for name in inside:
        assert level(4, supports | {name: finding(name, "contradicts")}) == 1
        assert level(4, supports | {name: finding(name, "inconclusive")}) == 1
    only = {"layer_reconstruction": supports["layer_reconstruction"]}
    assert level(1, only) == 2 and level(2, only) == 1
    assert level(4, supports, measured.reading("kernel")) == 0


def test_the_head_atlas_is_no_part_of_the_verdict(measured: Measurement) -> None:
    for name in ("ridge", "kernel"):
        without = evidence(measured.reading(name), layers=1)
        for outcome in ("supports", "contradicts"):
            beside = {"head_atlas": finding("head_atlas", outcome)}
            assert judge(replace(without, findings=beside), RULE) == judge(without, RULE)


def test_weights_that_are_read_in_full_say_what_the_inside_does(measured: Measurement) -> None:
    def level(**outcomes: str) -> int:
        findings = {name: finding(name, outcome) for name, outcome in outcomes.items()}
        return judge(
            evidence(measured.reading("ridge"), layers=4, findings=findings), RULE
        ).evidence_level

    assert level(weights="supports") == 2 and level(weights="inconclusive") == 1
    for name in ("token_binding", "features"):
        assert level(weights="supports", **{name: "inconclusive"}) == 2
        assert level(weights="supports", interchange="supports", **{name: "contradicts"}) == 1


def test_edits_of_the_inside_are_the_third_level(measured: Measurement) -> None:
    reading = measured.reading("ridge")
    inside = ("layer_reconstruction", "linear_probing", "update_law")
    supports = {name: finding(name, "supports") for name in inside}

    def judged(**edits: str) -> Verdict:
        findings = supports | {name: finding(name, outcome) for name, outcome in edits.items()}
        return judge(evidence(reading, layers=4, findings=findings), RULE)

    assert judged(interchange="supports").evidence_level == 3
    assert judged(pair_edits="supports", interchange="inconclusive").evidence_level == 3
    assert judged(interchange="inconclusive").evidence_level == 2
    assert judged(interchange="supports", ablation="contradicts").evidence_level == 2
    assert judged(interchange="supports", update_law="inconclusive").evidence_level == 1


def test_a_broken_symmetry_caps_the_evidence_or_narrows_the_scope(measured: Measurement) -> None:
    def judged(*failed: str) -> Verdict:
        names = ("rotation_equivariance", "mixed_pairs")
        rows = [(n, "failed" if n in failed else "passed", n == names[0]) for n in names]
        frame = pd.DataFrame(rows, columns=["signature", "outcome", "caps_verdict"])
        tested = replace(finding("signatures", "supports"), tables=(Table("signatures", frame),))
        inside = finding("layer_reconstruction", "supports")
        findings = {"layer_reconstruction": inside, "signatures": tested}
        return judge(evidence(measured.reading("ridge"), layers=1, findings=findings), RULE)

    whole = judged()
    assert whole.evidence_level == 2 and "mixed" not in whole.scope
    capped = judged("rotation_equivariance")
    assert capped.evidence_level == 1 and "rotation equivariance" in capped.statement
    narrowed = judged("mixed_pairs")
    assert narrowed.evidence_level == 2
    assert narrowed.scope.endswith("not on inputs changed to test mixed pairs")


@pytest.mark.parametrize(
    ("whole", "after", "expected"),
    [
        (0.7, 0.99, "mixture"),
        (0.98, 0.99, "least_squares"),  # two responses gain next to nothing
        (0.5, 0.6, "least_squares"),  # nor do two explain it
    ],
)
def test_a_mixture_gains_from_two_parts_that_explain_it(whole, after, expected) -> None:
    def part(r2: float, share: float) -> Reading:
        found = replace(score("ridge", r2), error=(1 - r2) * share * ONES)
        return Reading((found,), share * ONES, ONES)

    parts = Parts(20, part(whole, 1.0), part(0.5, 0.1), part(after, 0.9))
    verdict = judge(evidence(reading_of(ridge=0.99, poly_8=0.9), parts=parts), RULE)
    assert verdict.algorithm_class == expected


def test_no_evidence_where_a_null_does_as_well() -> None:
    reading = reading_of(ridge=0.99)
    assert judge(evidence(reading), RULE).evidence_level == 1
    rival = score("memorised_map", 0.985, rough=0.05)
    verdict = judge(evidence(replace(reading, scores=(*reading.scores, rival))), RULE)
    assert verdict.algorithm_class == "least_squares" and verdict.evidence_level == 0


def test_a_verdict_abstains_where_power_is_lacking() -> None:
    """The same mean errors, with and without blocks that differ wildly."""
    ridge_like = reading_of(ridge=0.99, poly_8=0.97)
    assert judge(evidence(ridge_like), RULE).algorithm_class == "least_squares"
    spread = torch.linspace(-1, 1, BLOCKS, dtype=torch.float64)
    wild = tuple(
        replace(s, error=s.error + 0.4 * spread) if s.family == "ridge" else s
        for s in ridge_like.scores
    )
    verdict = judge(evidence(replace(ridge_like, scores=wild)), RULE)
    assert verdict.algorithm_class == "inconclusive" and verdict.confidence == 0
    assert verdict.minimum_detectable > RULE.delta
    assert "could hide" in verdict.statement


def test_confidence_is_that_of_the_distance() -> None:
    sure = replace(RULE, confidence={"intercept": 2.0, "slope": 1.0})
    near = judge(evidence(reading_of(ridge=0.981, poly_8=0.97)), sure).confidence
    far = judge(evidence(reading_of(ridge=0.99, poly_8=0.97)), sure).confidence
    assert 0 < near < far < 1
