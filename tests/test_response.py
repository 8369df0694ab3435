"""The response: hats, spline and penalty, and what is read off a curve."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV

from probe.problem import InContextProblem, Spectrum, prefix_moments, spectrum
from probe.response import (
    COARSE,
    FINE,
    STRIDE,
    coarse_to_fine,
    gcv_ridge,
    gcv_solve,
    half_crossing,
    hat_features,
    hats,
    log_knots,
    second_differences,
)
from probe.sampling import generator_for, normal
from probe.solvers.ridge import shrinkage

KNOTS = log_knots(0.01, 100.0)
GRID = torch.logspace(-9, 2, 23, dtype=torch.float64)


def random_spectrum(seed: int = 0, dtype: torch.dtype = torch.float32) -> Spectrum:
    g = generator_for(seed)
    keys, values, queries, targets = (normal(g, 4, 10, 3) for _ in range(4))
    problem = InContextProblem(keys, values, queries, targets, targets, first=0)
    return spectrum(prefix_moments(problem), queries, dtype)


def test_knots_are_even_on_a_logarithmic_axis() -> None:
    steps = KNOTS.log().diff()
    assert torch.allclose(steps, steps[:1].expand(FINE - 1))
    assert float(KNOTS[STRIDE - 1]) == pytest.approx(0.01)
    assert float(KNOTS[-1]) == pytest.approx(100.0)
    assert float(KNOTS[0]) < 0.01


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_hats_are_a_partition_of_unity_and_interpolate(values: list[float]) -> None:
    mu = torch.tensor(values, dtype=torch.float64)
    weights = hats(mu, KNOTS)
    assert torch.allclose(weights.sum(-1), torch.ones(len(mu)), atol=1e-5)
    assert (weights >= 0).all() and ((weights > 0).sum(-1) <= 2).all()
    # A function that is linear in log mu is reproduced, and stays constant beyond the ends.
    line = 2 + 3 * KNOTS.log()
    inside = 2 + 3 * mu.clamp(float(KNOTS[0]), float(KNOTS[-1])).log()
    assert torch.allclose(weights.double() @ line, inside, atol=1e-3)


def test_hats_at_the_knots_are_the_identity_and_a_square_is_not_reproduced() -> None:
    assert torch.allclose(hats(KNOTS, KNOTS), torch.eye(FINE), atol=1e-4)
    between = (KNOTS[:-1] * KNOTS[1:]).sqrt()
    square = KNOTS.log() ** 2
    assert not torch.allclose(hats(between, KNOTS).double() @ square, between.log() ** 2, atol=1e-4)


def test_coarse_to_fine_interpolates_between_the_coarse_knots() -> None:
    spread = coarse_to_fine()
    assert torch.allclose(spread.sum(-1), torch.ones(FINE).double())
    coefficients = normal(generator_for(1), COARSE)
    fine = spread @ coefficients
    places = np.arange(COARSE) * STRIDE + STRIDE - 1
    expected = np.interp(np.arange(FINE), places, coefficients.numpy())
    assert np.allclose(fine, expected)
    assert (fine[:STRIDE] == coefficients[0]).all() and fine[STRIDE] != coefficients[0]
    assert not np.allclose(fine, np.interp(np.arange(FINE), places - 1, coefficients.numpy()))


@given(st.integers(0, 99))
def test_second_differences_vanish_on_lines_only(seed: int) -> None:
    penalty = second_differences(COARSE)
    g = generator_for(seed)
    line = normal(g, 1) + normal(g, 1) * torch.arange(COARSE)
    assert (line @ penalty @ line).abs() < 1e-9
    bent = normal(g, COARSE)
    expected = ((bent[2:] - 2 * bent[1:-1] + bent[:-2]) ** 2).sum()
    assert torch.allclose(bent @ penalty @ bent, expected)
    assert bent @ penalty @ bent > 1e-3


@given(st.integers(0, 99), st.floats(0.02, 5.0))
def test_features_times_a_curve_are_the_prediction_of_that_curve(seed: int, lam: float) -> None:
    seen = random_spectrum(seed)
    curve = shrinkage(KNOTS, lam)

    def interpolated(mu: torch.Tensor) -> torch.Tensor:
        inside = mu.clamp(float(KNOTS[0]), float(KNOTS[-1])).log()
        return torch.from_numpy(np.interp(inside, KNOTS.log(), curve)) / mu

    found = hat_features(seen, KNOTS).double() @ curve
    scale = float(found.abs().max())
    assert torch.allclose(found, seen.predict(interpolated), atol=1e-4 * scale)
    # Where all eigenvalues lie between the knots, that is the curve itself.
    within = ((seen.mu >= KNOTS[0]) & (seen.mu <= KNOTS[-1]) | ~seen.present).all(-1)
    exact = seen.predict(lambda mu: 1 / (mu + lam))
    assert within.any()
    assert torch.allclose(found[within], exact[within], atol=5e-3 * scale)
    wrong = seen.predict(lambda mu: 1 / (mu + 3 * lam))
    assert not torch.allclose(found[within], wrong[within], atol=5e-3 * scale)


def design(rows: int, columns: int, outputs: int, noise: float, seed: int = 0):
    g = generator_for(seed)
    x = normal(g, rows, columns)
    y = x @ normal(g, columns, outputs) + noise * normal(g, rows, outputs)
    return x, y


def solved(x: torch.Tensor, y: torch.Tensor, rows: int | None = None):
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return gcv_solve(x.mT @ x, x.mT @ y, (y**2).sum(), eye, rows or len(x))


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
def test_gcv_is_its_formula_and_the_solution_is_ridge(noise: float) -> None:
    x, y = design(60, 8, 2, noise)
    fit = solved(x, y)
    scores = []
    penalties = GRID * (x**2).sum(0).mean()
    for penalty in penalties:
        hat = x @ torch.linalg.solve(x.mT @ x + penalty * torch.eye(8).double(), x.mT)
        scores.append(((y - hat @ y) ** 2).sum() / (1 - hat.trace() / 60) ** 2)
    best = penalties[int(torch.stack(scores).argmin())]
    assert float(fit.penalty) == pytest.approx(float(best))
    outside = Ridge(float(best), fit_intercept=False).fit(x, y)
    assert np.allclose(fit.coefficients.mT, outside.coef_, rtol=1e-6, atol=1e-9)
    other = Ridge(float(best) * 1e4, fit_intercept=False).fit(x, y)
    assert not np.allclose(fit.coefficients.mT, other.coef_, rtol=1e-3)


def test_ridge_by_eigenvalues_is_that_of_any_penalty() -> None:
    x, y = (
        torch.stack([design(60, 8, 2, noise)[0] for noise in (0.1, 30.0)]),
        design(60, 8, 2, 1)[1],
    )
    gram, cross, energy = x.mT @ x, x.mT @ y, (y**2).sum().expand(2)
    eye = torch.eye(8, dtype=torch.float64)
    for rows in (60, 12):
        want, got = gcv_solve(gram, cross, energy, eye, rows), gcv_ridge(gram, cross, energy, rows)
        assert torch.allclose(got.coefficients, want.coefficients, rtol=1e-6)
        assert torch.allclose(got.penalty, want.penalty)
    other = gcv_solve(gram, cross, energy, second_differences(8), 60)
    assert not torch.allclose(got.coefficients, other.coefficients, rtol=1e-3)  # Control.


@pytest.mark.parametrize("noise", [0.3, 2.0, 20.0])
def test_gcv_equals_leave_one_out_where_all_rows_have_equal_leverage(noise: float) -> None:
    """Sines and cosines on a circle: each row sees the same design, so that GCV is exact."""
    angle = 2 * torch.pi * torch.arange(48, dtype=torch.float64) / 48
    waves = [wave(k * angle) * 0.5**k for k in range(1, 6) for wave in (torch.sin, torch.cos)]
    x = torch.stack(waves, -1)
    g = generator_for(int(10 * noise))
    y = x @ normal(g, 10, 1) + noise * normal(g, 48, 1)
    alphas = (GRID * (x**2).sum(0).mean()).numpy()
    outside = RidgeCV(alphas, fit_intercept=False).fit(x, y[:, 0])
    fit = solved(x, y)
    assert float(fit.penalty) == pytest.approx(outside.alpha_)
    assert np.allclose(fit.coefficients[:, 0], outside.coef_, rtol=1e-6, atol=1e-9)
    # Control: the penalty answers to the noise.
    quiet = solved(x, x @ torch.ones(10, 1).double())
    assert quiet.penalty < fit.penalty


def test_gcv_at_its_limits() -> None:
    x, y = design(80, 6, 3, 0.0)
    exact = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(solved(x, y).coefficients, exact, rtol=1e-5)
    noise = normal(generator_for(5), 80, 3)
    least_squares = torch.linalg.lstsq(x, noise).solution
    assert solved(x, noise).coefficients.norm() < 0.5 * least_squares.norm()
    # A predictor that says nothing, and a design without rank, give finite coefficients.
    assert not solved(x, torch.zeros_like(y)).coefficients.any()
    assert bool(solved(torch.zeros_like(x), y).coefficients.isfinite().all())
    doubled = torch.cat([x, x], -1)
    assert torch.allclose(doubled @ solved(doubled, y).coefficients, y, rtol=1e-4, atol=1e-5)
    # Cells are solved apart.
    both = torch.stack([x, 3 * x])
    cells = gcv_solve(
        both.mT @ both,
        both.mT @ y,
        (y**2).sum().expand(2),
        torch.eye(6, dtype=torch.float64),
        80,
    )
    assert torch.allclose(cells.coefficients[0], 3 * cells.coefficients[1], rtol=1e-5)


def test_a_floor_keeps_rounding_noise_out_of_the_choice_of_penalty() -> None:
    """Six columns of rank three in float32: rounding makes some eigenvalues negative."""
    eye = torch.eye(6, dtype=torch.float64)
    floor = 256 * torch.finfo(torch.float32).eps

    def gaps(least: float) -> torch.Tensor:
        found = []
        for seed in range(30):
            g = generator_for(seed)
            x = (normal(g, 256, 3) @ normal(g, 3, 6)).float()
            y = normal(g, 256, 2).float()
            rounded = (x.mT @ x).double(), (x.mT @ y).double()
            x, y = x.double(), y.double()
            energy = (y**2).sum()
            said = x @ gcv_solve(*rounded, energy, eye, 256, least).coefficients
            exact = x @ gcv_solve(x.mT @ x, x.mT @ y, energy, eye, 256, least).coefficients
            found.append(((said - exact) ** 2).sum() / energy)
        return torch.stack(found)

    assert gaps(floor).max() < 1e-6
    assert gaps(1e-9).max() > 1e-4


@given(st.floats(0.05, 50.0))
def test_half_crossing_of_ridge_is_its_lambda(lam: float) -> None:
    assert half_crossing(KNOTS, shrinkage(KNOTS, lam), 100.0) == pytest.approx(lam, rel=0.01)
    assert np.isnan(half_crossing(KNOTS, shrinkage(KNOTS, lam), lam / 3))


def test_no_crossing_is_nan_and_falling_is_no_crossing() -> None:
    flat = torch.full((FINE,), 0.4, dtype=torch.float64)
    falling = torch.linspace(1, 0, FINE, dtype=torch.float64)
    assert np.isnan(half_crossing(KNOTS, flat, 100.0))
    assert np.isnan(half_crossing(KNOTS, falling, 100.0))
    assert np.isfinite(half_crossing(KNOTS, 1 - falling, 100.0))
    # The smallest of several crossings counts, and none below the knots of the spline.
    twice = (4 * torch.pi * torch.arange(FINE) / FINE).sin().double() + 0.5
    twice[: STRIDE - 1] = torch.tensor([0.0, 1.0, 0.0]).double()
    first = half_crossing(KNOTS, twice, 100.0)
    assert float(KNOTS[FINE // 2 - 2]) < first < float(KNOTS[FINE // 2 + 2])
