"""CKA from merged moments: its invariances, what breaks them, and what few rows do to it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def cka(x: torch.Tensor, y: torch.Tensor, layers=None) -> torch.Tensor:
    from probe.cka import CrossMoments, linear_cka

    widths_x, widths_y = layers or ((x.shape[1],), (y.shape[1],))
    pairs = (x, y), (x, x), (y, y)
    scatters = [CrossMoments.of(a, b).scatter for a, b in pairs]
    return linear_cka(*scatters, widths_x, widths_y)


def directly(x: torch.Tensor, y: torch.Tensor) -> float:
    """From the kernels of the rows: tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)), equation 4 of the paper."""
    centring = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    k, m = (centring @ part @ part.mT @ centring for part in (x, y))
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


@given(st.integers(1, 7), st.integers(0, 50), st.floats(0.01, 100))
def test_rotations_and_scales_change_nothing(d, seed, scale) -> None:
    x = normal(40, d, seed=seed)
    moved = scale * x @ rotation(d, seed + 1) + normal(d, seed=seed + 2)
    assert float(cka(x, moved)) == pytest.approx(1, abs=1e-9)


def test_unequal_scales_change_it() -> None:
    x = normal(5000, 3)
    # In the limit sum s_i^2 / sqrt(d sum s_i^4) with s = 1, 1, 4.
    assert float(cka(x, x * torch.tensor([1.0, 1.0, 4.0]))) == pytest.approx(
        18 / (3 * 258) ** 0.5, abs=0.02
    )


@pytest.mark.parametrize(("d", "k", "rows"), [(3, 3, 10), (5, 2, 30), (1, 6, 12)])
def test_it_is_that_of_the_kernels(d, k, rows) -> None:
    x = normal(rows, d) + 3
    y = x @ normal(d, k, seed=1) + normal(rows, k, seed=2) - 7
    found = float(cka(x, y))
    assert found == pytest.approx(directly(x, y), abs=1e-12)
    # Control: without centring the means decide.
    raw = float((x.mT @ y).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm()))
    assert abs(raw - found) > 0.01


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.integers(0, 50))
def test_split_and_merge_is_one_pass(counts, seed) -> None:
    from functools import reduce

    from probe.cka import CrossMoments

    x, y = normal(sum(counts), 4, seed=seed) + 5, normal(sum(counts), 3, seed=seed + 1)
    parts = zip(x.split(counts), y.split(counts), strict=True)
    merged = reduce(CrossMoments.merge, (CrossMoments.of(*part) for part in parts))
    whole = CrossMoments.of(x, y)
    assert merged.rows == whole.rows
    torch.testing.assert_close(merged.scatter, whole.scatter)


def test_a_pivot_changes_no_scatter_but_saves_digits() -> None:
    from probe.cka import CrossMoments

    x = normal(4000, 2)
    far = (x + 3000).float()
    near = far - far.mean(0)
    exact = CrossMoments.of(far.double(), far.double()).scatter
    error = [
        float((CrossMoments.of(part, part).scatter - exact).norm() / exact.norm())
        for part in (near, far)
    ]
    assert error[0] < 1e-5
    assert error[1] > 100 * error[0]


def test_independent_features_fall_to_nothing_with_many_rows() -> None:
    few, many = (float(cka(normal(n, 8), normal(n, 6, seed=1))) for n in (40, 40_000))
    assert many < 0.001
    # Control: few rows read as likeness, about sqrt(d k) / n.
    assert 0.05 < few < 0.5


def test_every_layer_with_every_other() -> None:
    x, y = normal(50, 5), normal(50, 4, seed=1)
    found = cka(x, y, ((2, 3), (1, 3)))
    assert found.shape == (2, 2)
    assert float(found[1, 0]) == pytest.approx(directly(x[:, 2:], y[:, :1]))
    assert not found.allclose(found.mT)


def test_constant_features_have_none_and_wrong_widths_are_refused() -> None:
    x = normal(30, 4)
    x[:, :2] = 0
    found = cka(x, x, ((2, 2), (2, 2)))
    assert found.isnan().tolist() == [[True, True], [True, False]]
    assert float(found[1, 1]) == pytest.approx(1)
    with pytest.raises(ValueError, match="widths"):
        cka(x, x, ((2, 3), (4,)))
