"""Intervals and tests by blocks of sequences."""

import numpy as np
import pytest
import torch
from scipy import stats

from probe.sampling import generator_for, normal
from probe.statistics import (
    BLOCKS,
    MarginTest,
    against_margin,
    bootstrap_interval,
    detectable_in_errors,
    equivalence_p,
    holm,
    mean_per_sequence,
    minimum_detectable,
    resample_weights,
    share_explained,
    standard_error,
)

SEQUENCES = 1024


def by_block(values: torch.Tensor) -> torch.Tensor:
    blocks = torch.arange(len(values)) % BLOCKS
    return torch.zeros(BLOCKS, dtype=torch.float64).index_add_(0, blocks, values)


def sample(seed: int, tail: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared errors and energies of sequences, whose true ratio is 0.2."""
    g = generator_for(seed, 77)
    size = (tail * normal(g, SEQUENCES)).exp()
    energy = size * (1 + 0.5 * normal(g, SEQUENCES).abs())
    return 0.2 * energy * normal(g, SEQUENCES) ** 2, energy


def test_weights_count_every_block_of_every_draw() -> None:
    weights = resample_weights()
    assert weights.shape == (2000, BLOCKS)
    assert (weights.sum(1) == BLOCKS).all()
    assert (weights >= 0).all() and torch.equal(weights, weights.round())
    assert torch.equal(weights, resample_weights())
    # Multinomial: mean 1, variance 1 - 1 / BLOCKS.
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.var()) == pytest.approx(1 - 1 / BLOCKS, rel=0.02)
    assert not torch.equal(weights[0], weights[1])


def test_values_are_the_plain_statistics() -> None:
    error, energy = sample(0)
    share = share_explained(by_block(error), by_block(energy))
    assert share.value == pytest.approx(1 - float(error.sum() / energy.sum()))
    assert share.lo < share.value < share.hi
    mean = mean_per_sequence(by_block(error), by_block(torch.ones(SEQUENCES).double()))
    assert mean.value == pytest.approx(float(error.mean()))
    constant = bootstrap_interval(lambda weights: (weights @ torch.ones(BLOCKS).double()) / BLOCKS)
    assert constant.lo == constant.value == constant.hi == 1


@pytest.mark.parametrize("tail", [0.0, 0.5])
def test_intervals_cover_the_truth_at_their_level(tail: float) -> None:
    repetitions = 400
    hits = lower = shrunk = 0
    for seed in range(repetitions):
        error, energy = sample(seed, tail)
        found = share_explained(by_block(error), by_block(energy))
        hits += found.lo <= 0.8 <= found.hi
        lower += found.hi < 0.8
        middle, half = (found.lo + found.hi) / 2, (found.hi - found.lo) / 4
        shrunk += middle - half <= 0.8 <= middle + half
    assert 0.91 <= hits / repetitions <= 0.98
    assert lower / repetitions < 0.06
    # Control: half as wide, and it would be seen.
    assert shrunk / repetitions < 0.8


def test_blocks_give_the_interval_of_single_sequences() -> None:
    ratios = []
    for seed in range(20):
        error, energy = sample(seed)
        found = share_explained(by_block(error), by_block(energy))
        rng = np.random.default_rng(seed)
        drawn = rng.integers(SEQUENCES, size=(1000, SEQUENCES))
        draws = 1 - error.numpy()[drawn].sum(1) / energy.numpy()[drawn].sum(1)
        lo, hi = np.quantile(draws, [0.025, 0.975])
        ratios.append((found.hi - found.lo) / (hi - lo))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert np.max(np.abs(np.array(ratios) - 1)) < 0.35


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    error, energy = sample(3, tail=0.5)
    worse = error * 1.01
    a, b, e = by_block(error), by_block(worse), by_block(energy)
    paired = bootstrap_interval(lambda weights: (weights @ (b - a)) / (weights @ e))
    alone = share_explained(a, e)
    assert paired.value == pytest.approx(0.01 * (1 - alone.value))
    assert paired.hi - paired.lo < 0.05 * (alone.hi - alone.lo)
    assert paired.lo > 0


# --- Tests against a margin. ---


def drawn(seed: int, ratio: float, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Totals and energies of blocks whose true ratio is given."""
    g = generator_for(seed, 78)
    energy = 1 + 0.3 * torch.rand(BLOCKS, generator=g, dtype=torch.float64)
    return ratio * energy + spread * normal(g, BLOCKS), energy


def test_margins_of_a_mean_are_those_of_scipy() -> None:
    total, _ = drawn(0, 0.02)
    ones = torch.ones(BLOCKS, dtype=torch.float64)
    for margin in (-0.1, 0.0, 0.01, 0.3):
        found = against_margin(total, ones, margin)
        less = stats.ttest_1samp(total.numpy(), margin, alternative="less").pvalue
        greater = stats.ttest_1samp(total.numpy(), margin, alternative="greater").pvalue
        assert (found.below, found.above) == pytest.approx((less, greater), rel=1e-9)
        assert equivalence_p(total, ones, abs(margin)) == pytest.approx(
            max(
                stats.ttest_1samp(total.numpy(), abs(margin), alternative="less").pvalue,
                stats.ttest_1samp(total.numpy(), -abs(margin), alternative="greater").pvalue,
            )
        )
    error = stats.sem(total.numpy())
    assert standard_error(total, ones) == pytest.approx(float(error), rel=1e-9)


def test_a_test_at_the_margin_errs_at_its_level() -> None:
    repetitions, margin = 2000, 0.1
    below = above = equivalent = beyond = 0
    for seed in range(repetitions):
        total, energy = drawn(seed, margin)
        found = against_margin(total, energy, margin)
        below, above = below + (found.below < 0.05), above + (found.above < 0.05)
        equivalent += equivalence_p(total, energy, margin) < 0.05
        # Control: against a margin of half the ratio it would err far more often.
        beyond += against_margin(total, energy, margin / 2).above < 0.05
    assert 0.035 < below / repetitions < 0.065 and 0.035 < above / repetitions < 0.065
    assert equivalent / repetitions < 0.065 and beyond / repetitions > 0.2


def test_a_rare_divergence_does_not_hide_its_own_excess() -> None:
    total, energy = drawn(3, 0.3)
    diverging = total.clone()
    diverging[5] = 1e4
    assert against_margin(total, energy, 0.1).above < 1e-3
    assert against_margin(diverging, energy, 0.1).above < 1e-3
    gap = (diverging - 0.1 * energy).numpy()  # control: the plain test
    assert stats.ttest_1samp(gap, 0, alternative="greater").pvalue > 0.1
    assert equivalence_p(diverging, energy, 0.5) > 0.5  # nor is it called small
    assert minimum_detectable(diverging, energy) < 2 * minimum_detectable(total, energy)


def test_without_spread_the_sign_decides_and_without_numbers_nothing() -> None:
    ones = torch.ones(BLOCKS, dtype=torch.float64)
    assert against_margin(0.02 * ones, ones, 0.01) == MarginTest(below=1.0, above=0.0)
    assert against_margin(0.005 * ones, ones, 0.01) == MarginTest(below=0.0, above=1.0)
    assert equivalence_p(0.005 * ones, ones, 0.01) == 0.0
    assert equivalence_p(-0.02 * ones, ones, 0.01) == 1.0
    assert against_margin(ones * torch.nan, ones, 0.01) == MarginTest(1.0, 1.0)


def test_the_detectable_difference_is_found_in_four_of_five_samples() -> None:
    repetitions = 2000
    ones = torch.ones(BLOCKS, dtype=torch.float64)
    shift = detectable_in_errors() * 0.3 / BLOCKS**0.5
    found = halved = 0
    for seed in range(repetitions):
        total, _ = drawn(seed, 0.0)
        found += stats.ttest_1samp((total + shift).numpy(), 0).pvalue < 0.05
        halved += stats.ttest_1samp((total + shift / 2).numpy(), 0).pvalue < 0.05
    assert found / repetitions == pytest.approx(0.8, abs=0.03)
    assert halved / repetitions < 0.4  # Control.
    # Of many blocks: the normal quantiles of 97.5 % and 80 %.
    assert detectable_in_errors(100_000) == pytest.approx(1.959964 + 0.841621, rel=1e-4)
    total, _ = drawn(1, 0.0)
    expected = detectable_in_errors() * float(stats.sem(total.numpy()))
    assert minimum_detectable(total, ones) == pytest.approx(expected)


def test_the_error_of_a_ratio_is_its_spread_over_samples() -> None:
    pairs = [drawn(seed, 0.4) for seed in range(1000)]
    ratios = [float(total.sum() / energy.sum()) for total, energy in pairs]
    errors = [standard_error(total, energy) for total, energy in pairs]
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.06)


def test_holm_by_hand_and_its_familywise_error() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, then the running maximum.
    assert holm((0.04, 0.01, 0.03, 0.02)) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm((0.5, 0.9)) == (1.0, 1.0) and holm((0.03,)) == (0.03,) and holm(()) == ()
    uniform = np.random.default_rng(0).random((2000, 6))
    wrong = np.mean([min(holm(row)) < 0.05 for row in uniform.tolist()])
    assert wrong == pytest.approx(0.05, abs=0.015)
    assert np.mean(uniform.min(1) < 0.05) > 0.2  # Control: unadjusted.
