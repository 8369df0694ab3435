"""Onsets of curves that are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.tracking.onset import (
    Absent,
    Course,
    Present,
    Rises,
    find_onset,
    overlap,
    share_of_fall,
    steepest_fall,
)

MARGIN = 0.2
STEPS = torch.arange(0, 2001, 100, dtype=torch.float64)


def course(values: torch.Tensor, noise: float = 0.0, steps: torch.Tensor = STEPS) -> Course:
    """A curve whose sample and resamples share one error, as those of a bootstrap do."""
    generator = torch.Generator().manual_seed(0)
    spread = noise * torch.randn(501, len(values), generator=generator, dtype=torch.float64)
    return Course(steps, values + spread[0], values + spread[0] + spread[1:])


def sigmoid(middle: float, width: float, height: float = 0.8, steps=STEPS) -> torch.Tensor:
    return height * torch.sigmoid((steps - middle) / width)


@given(middle=st.floats(300, 1700), width=st.floats(1, 60))
def test_a_sigmoid_rises_at_its_middle(middle: float, width: float) -> None:
    onset = find_onset(course(sigmoid(middle, width)), MARGIN)
    assert isinstance(onset, Rises) and onset.lasts
    assert onset.lo <= middle <= onset.hi and onset.lo <= onset.step <= onset.hi
    assert onset.hi - onset.lo == 100  # without noise: the bracket, and no less
    assert onset.level == pytest.approx(0.4, abs=1e-3)
    # Control: the same curve moved by three checkpoints rises elsewhere.
    moved = find_onset(course(sigmoid(middle + 300, width, steps=STEPS)), MARGIN)
    assert isinstance(moved, Rises) and not overlap((onset.lo, onset.hi), (moved.lo, moved.hi))


def test_a_wide_sigmoid_is_met_on_a_straight_line() -> None:
    onset = find_onset(course(sigmoid(1040, 150)), MARGIN)
    assert isinstance(onset, Rises)
    assert onset.step == pytest.approx(1040, abs=5)


def test_noise_widens_the_interval_and_leaves_the_middle_inside() -> None:
    quiet, noisy = (find_onset(course(sigmoid(1050, 200), noise), MARGIN) for noise in (0, 0.08))
    assert isinstance(quiet, Rises) and isinstance(noisy, Rises)
    assert noisy.hi - noisy.lo > quiet.hi - quiet.lo
    assert noisy.lo <= 1050 <= noisy.hi


def test_the_interval_covers_the_middle_as_often_as_it_says() -> None:
    steps, truth, covered = STEPS, 1030.0, 0
    clean = sigmoid(truth, 150)
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        sample = clean + 0.04 * torch.randn(len(clean), generator=generator, dtype=torch.float64)
        spread = 0.04 * torch.randn(400, len(clean), generator=generator, dtype=torch.float64)
        onset = find_onset(Course(steps, sample, sample + spread), MARGIN)
        covered += isinstance(onset, Rises) and onset.lo <= truth <= onset.hi
    assert covered >= 90


@pytest.mark.parametrize("height", [0.0, 0.1, 0.19])
def test_a_curve_below_the_margin_does_not_rise(height: float) -> None:
    for curve in (torch.full_like(STEPS, height), sigmoid(1000, 50, height)):
        onset = find_onset(course(curve, 0.005), MARGIN)
        assert isinstance(onset, Absent) and onset.peak.value < 0.22
    # Control: what reaches above the margin does.
    assert isinstance(find_onset(course(sigmoid(1000, 50, 0.3), 0.005), MARGIN), Rises)


def test_a_peak_that_noise_could_have_made_does_not_count() -> None:
    curve = torch.zeros_like(STEPS)
    curve[12] = 0.3
    assert isinstance(find_onset(course(curve, 0.1), MARGIN), Absent)
    assert isinstance(find_onset(course(curve, 0.001), MARGIN), Rises)


def test_what_is_there_from_the_first_is_said_to_be_so() -> None:
    onset = find_onset(course(torch.full_like(STEPS, 0.7), 0.01), MARGIN)
    assert isinstance(onset, Present) and onset.step == 0 and onset.lasts


def test_what_is_gone_at_the_end_is_said_to_be_so() -> None:
    passing = 0.8 * torch.exp(-(((STEPS - 900) / 300) ** 2))
    onset = find_onset(course(passing, 0.01), MARGIN)
    assert isinstance(onset, Rises) and not onset.lasts
    assert onset.lo <= 900 - 300 * math.log(2) ** 0.5 <= onset.hi


@given(at=st.integers(1, 18), gap=st.floats(20, 500))
def test_the_steepest_fall_is_per_step(at: int, gap: float) -> None:
    """The same fall over a longer gap is slower, so that uneven series are not misread."""
    steps = STEPS.clone()
    steps[at + 1 :] += gap
    log_loss = -0.01 * torch.arange(len(steps), dtype=torch.float64)
    log_loss[at + 1 :] -= 0.5
    log_loss[at:] -= 0.5
    fall = steepest_fall(course(log_loss, 1e-4, steps))
    assert fall is not None
    assert (fall.start, fall.stop) == (fall.lo, fall.hi) == (steps[at - 1], steps[at])


def test_two_falls_alike_are_both_in_the_interval() -> None:
    log_loss = torch.zeros_like(STEPS)
    log_loss[4:] -= 0.5
    log_loss[15:] -= 0.5
    fall = steepest_fall(course(log_loss, 0.02))
    assert fall is not None and (fall.lo, fall.hi) == (300, 1500)


def test_a_loss_that_does_not_fall_has_no_steepest_fall() -> None:
    assert steepest_fall(course(torch.zeros_like(STEPS), 0.05)) is None
    assert steepest_fall(course(0.001 * STEPS)) is None
    assert math.isnan(share_of_fall(course(0.001 * STEPS), 0, 500).value)


def test_shares_of_the_fall_add_up() -> None:
    falling = course(-sigmoid(1000, 100), 0.01)
    early, late = share_of_fall(falling, 0, 1000), share_of_fall(falling, 1000, 2000)
    assert early.value + late.value == pytest.approx(1)
    assert early.lo < 0.5 < early.hi
    assert share_of_fall(falling, 0, 300).hi < 0.1


def test_intervals_that_share_an_end_do_not_overlap() -> None:
    assert overlap((0, 200), (100, 300)) and not overlap((0, 200), (200, 300))


def test_steps_must_ascend() -> None:
    def flat(weights: torch.Tensor) -> torch.Tensor:
        return weights.sum(1)

    assert Course.of([1, 2], [flat, flat]).value.tolist() == [64, 64]
    for steps in ([2, 2], [2, 1], [1]):
        with pytest.raises(ValueError, match="ascend"):
            Course.of(steps, [flat] * len(steps))
