"""Intervals by blocks of sequences."""

import numpy as np
import pytest
import torch

from probe.sampling import generator_for, normal
from probe.statistics import (
    BLOCKS,
    bootstrap_interval,
    mean_per_sequence,
    resample_weights,
    share_explained,
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
