"""How scores are read: shares, deficits, and the member that stands for a family."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.sampling import generator_for
from probe.scores import SIMPLER, Reading, Score, nulls
from probe.statistics import BLOCKS

ONES = torch.ones(BLOCKS, dtype=torch.float64)


def score(family: str, share: float, steps: int = 1, fit_error: float | None = None) -> Score:
    error = share * ONES
    known = share if fit_error is None else fit_error
    return Score(family, {"steps": steps}, steps, 1, known, error)


def noisy(share: float, spread: float, seed: int) -> torch.Tensor:
    rough = torch.rand(BLOCKS, generator=generator_for(seed), dtype=torch.float64)
    return share + spread * (rough - rough.mean())


@given(st.floats(0.0, 2.0), st.floats(0.1, 5.0))
def test_shares_are_of_the_energy_and_of_the_distance_to_the_oracle(
    share: float, oracle: float
) -> None:
    found = score("ridge", share)
    reading = Reading((found,), ONES, oracle * ONES)
    assert reading.value(found) == pytest.approx(1 - share)
    assert reading.r2(found).value == pytest.approx(1 - share)
    assert reading.error_r2(found).value == pytest.approx(1 - share / oracle)
    assert reading.r2(found).lo == pytest.approx(1 - share)  # equal blocks leave no doubt


def test_the_simplest_member_near_the_best_stands_for_the_family() -> None:
    members = (
        score("gradient_descent", 0.3, 1),
        score("gradient_descent", 0.1 + 0.5 * SIMPLER, 2),
        score("gradient_descent", 0.1, 3),
        score("ridge", 0.0),
    )
    reading = Reading(members, ONES, ONES)
    assert reading.chosen("gradient_descent").constants["steps"] == 2
    apart = Reading(
        (members[0], score("gradient_descent", 0.1 + 2 * SIMPLER, 2), members[2]), *[ONES] * 2
    )
    assert apart.chosen("gradient_descent").constants["steps"] == 3
    assert reading.names() == ["gradient_descent", "ridge"]
    assert len(reading.members("gradient_descent")) == 3


def test_members_are_chosen_on_the_fit_split_only() -> None:
    lucky = score("newton", 0.0, 2, fit_error=0.5)
    fitted = score("newton", 0.2, 3, fit_error=0.1)
    reading = Reading((lucky, fitted), ONES, ONES)
    assert reading.value(lucky) > reading.value(fitted)
    assert reading.chosen("newton") is fitted


def test_a_silent_site_has_a_member_all_the_same() -> None:
    silent = score("newton", float("nan"), 2)
    reading = Reading((silent, score("newton", float("nan"), 3)), ONES, ONES)
    assert reading.chosen("newton") is silent


def test_deficits_are_paired_by_block() -> None:
    common = noisy(0.3, 0.5, 0)
    best = Score("ridge", {}, None, 1, 0.3, common)
    worse = Score("newton", {}, None, 1, 0.32, common + 0.02)
    unpaired = Score("mean", {}, None, 1, 0.32, noisy(0.32, 0.5, 1))
    reading = Reading((best, worse, unpaired), ONES, ONES)
    gap = reading.deficit(worse, best)
    assert (gap.lo, gap.value, gap.hi) == pytest.approx((0.02, 0.02, 0.02))
    assert reading.deficit(best, worse).value == pytest.approx(-0.02)
    loose = reading.deficit(unpaired, best)
    assert loose.value == pytest.approx(0.02)
    assert loose.lo < 0 < loose.hi


def test_nulls_are_no_learners() -> None:
    assert {"oracle", "zero", "mean", "kernel_smoother", "memorised_map", "two_lag_copy"} <= nulls()
    assert not nulls() & {"ridge", "newton", "spline", "gradient_descent", "preconditioned_gd"}
