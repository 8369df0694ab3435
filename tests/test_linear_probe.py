"""Ridge regression from moments, and RidgeProbe."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import check_estimator

from probe.linear_probe import RidgeProbe
from probe.moments import CentredMoments, Moments, layer_moments
from probe.ridge import fit_ridge, group_sums, least_squares, penalty_grid, ridge_path
from probe.sampling import generator_for, normal

GROUPS = (2, 3)


def problem(cells=(), rows=80, d=6, k=5, noise=0.1, seed=0, rank=None):
    """Folds of rows: x (folds, *cells, rows, d) and y = x W + noise."""
    generator = generator_for(seed)
    x = normal(generator, 4, *cells, rows, d)
    if rank is not None:
        x[..., rank:] = x[..., :1]
    weights = normal(generator, *cells, d, k)
    return x, x @ weights + noise * normal(generator, 4, *cells, rows, k), weights


def moments(x, y):
    return Moments(x.mT @ x, x.mT @ y, y.square().sum(-2))


def test_weights_solve_the_normal_equations_at_the_chosen_penalty():
    x, y, _ = problem(cells=(3, 2))
    folds = moments(x, y)
    fit = fit_ridge(folds, GROUPS)
    total = folds.total()
    columns = fit.penalties.repeat_interleave(torch.tensor(GROUPS), -1)
    gradient = total.xx @ fit.weights + columns[..., None, :] * fit.weights - total.xy
    assert gradient.abs().max() < 1e-9 * total.xy.abs().max()


def test_penalties_minimise_the_error_of_explicit_cross_validation():
    x, y, _ = problem(rows=5, d=6, noise=2.0)
    grid = penalty_grid(6, torch.finfo(torch.float32).eps)
    errors = torch.zeros(len(GROUPS), len(grid), dtype=torch.float64)
    for held in range(4):
        rest = [fold for fold in range(4) if fold != held]
        a, b = x[rest].flatten(0, 1), y[rest].flatten(0, 1)
        unit = (a.T @ a).trace() / 6
        for i, penalty in enumerate(grid * unit):
            w = torch.linalg.solve(a.T @ a + penalty * torch.eye(6), a.T @ b)
            errors[:, i] += group_sums((y[held] - x[held] @ w).square().sum(0), GROUPS)
    fit = fit_ridge(moments(x, y), GROUPS)
    unit = moments(x, y).total().xx.trace() / 6
    torch.testing.assert_close(fit.penalties, grid[errors.argmin(1)] * unit)
    assert 0 < errors.argmin(1).max() < len(grid) - 1, "the choice should be a real one"
    assert not fit.at_edge[errors.argmin(1).argmax()]


def test_agrees_with_scikit_learn_at_the_same_penalty():
    x, y, _ = problem(noise=1.0)
    fit = fit_ridge(moments(x, y), (5,))
    x, y = x.flatten(0, 1).numpy(), y.flatten(0, 1).numpy()
    reference = Ridge(alpha=float(fit.penalties[0]), fit_intercept=False).fit(x, y)
    np.testing.assert_allclose(fit.weights.T, reference.coef_, rtol=1e-8)
    np.testing.assert_allclose(fit.in_sample[0], np.square(y - reference.predict(x)).sum())


def test_many_cells_give_what_each_gives_alone():
    x, y, _ = problem(cells=(2, 3))
    together = fit_ridge(moments(x, y), GROUPS)
    alone = fit_ridge(moments(x[:, 1, 2], y[:, 1, 2]), GROUPS)
    torch.testing.assert_close(together.weights[1, 2], alone.weights)


def test_rank_and_condition_are_diagnosed():
    full, poor = (fit_ridge(moments(*problem(rank=rank)[:2]), (5,)) for rank in (None, 4))
    assert int(full.rank) == 6 and int(poor.rank) == 4
    assert float(full.condition) < 10 < 1e4 < float(poor.condition)
    assert poor.weights.abs().max() < 10, "no weight may grow along directions without data"


def test_features_that_are_zero_get_no_weight():
    x, y, _ = problem()
    fit = fit_ridge(moments(0 * x, y), GROUPS)
    assert not fit.weights.any() and fit.weights.isfinite().all()


def test_rounding_noise_of_float32_features_is_not_fitted():
    generator = generator_for(3)
    source, mix = normal(generator, 4, 100, 10), normal(generator, 10, 40)
    x = (source.float() @ mix.float()).double()
    y = normal(generator, 4, 100, 5)
    fit = fit_ridge(moments(x, y), (5,))
    assert int(fit.rank) == 10
    best = torch.linalg.lstsq(source.flatten(0, 1), y.flatten(0, 1)).solution
    honest = (y.flatten(0, 1) - source.flatten(0, 1) @ best).square().sum()
    assert fit.in_sample[0] >= honest


def test_random_targets_are_not_predicted():
    x, _, _ = problem(rows=200)
    y = normal(generator_for(9), 4, 200, 5)
    fit = fit_ridge(moments(x, y), (5,))
    fresh_x, fresh_y = normal(generator_for(10), 5000, 6), normal(generator_for(11), 5000, 5)
    r2 = 1 - moments(fresh_x, fresh_y).squared_error(fit.weights).sum() / fresh_y.square().sum()
    assert -0.02 < r2 < 0.005


def test_least_squares_meets_lstsq():
    x, y, _ = problem()
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    reference = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(least_squares(moments(x, y)), reference, rtol=1e-5, atol=1e-6)


def test_a_path_meets_scikit_learn_at_every_penalty_of_every_cell():
    generator = generator_for(3)
    x, y = normal(generator, 2, 50, 6), normal(generator, 2, 50, 3)
    cells = Moments(x.mT @ x, x.mT @ y, y.square().sum(1))
    penalties = torch.tensor([1e-6, 1.0, 100.0], dtype=torch.float64)
    path = ridge_path(cells, penalties)
    assert path.shape == (2, 3, 6, 3)
    for cell in range(2):
        for i, penalty in enumerate(penalties.tolist()):
            fit = Ridge(penalty, fit_intercept=False).fit(x[cell].numpy(), y[cell].numpy())
            expected = torch.from_numpy(fit.coef_).T
            torch.testing.assert_close(path[cell, i], expected, rtol=1e-7, atol=1e-10)
            assert not torch.allclose(path[cell, i], path[1 - cell, i], rtol=1e-2)  # control
    with pytest.raises(torch.linalg.LinAlgError):
        ridge_path(Moments(0 * cells.xx, cells.xy, cells.yy), 0 * penalties)


def test_groups_must_add_up():
    with pytest.raises(ValueError, match="do not add up to 5 targets"):
        fit_ridge(moments(*problem()[:2]), (2, 2))


def test_layer_moments_are_sums_over_the_batch():
    generator = generator_for(0)
    x, y = normal(generator, 3, 20, 4, 5), normal(generator, 20, 4, 2)
    found = layer_moments(x, y)
    torch.testing.assert_close(found.xx, torch.einsum("lbtd,lbte->ltde", x, x))
    torch.testing.assert_close(found.xy, torch.einsum("lbtd,btk->ltdk", x, y))
    torch.testing.assert_close(found.yy[1], y.square().sum(0))


def test_squared_error_is_that_of_the_rows():
    x, y, weights = problem()
    expected = (y - x @ weights).square().sum(-2)
    torch.testing.assert_close(moments(x, y).squared_error(weights.expand(4, -1, -1)), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.integers(1, 3))
def test_centred_moments_merge_to_those_of_all_rows(first, second, d, k):
    generator = generator_for(first, second)
    x = normal(generator, first + second, d) + 1e4
    y = normal(generator, first + second, k)
    parts = [CentredMoments.of(x[:first], y[:first]), CentredMoments.of(x[first:], y[first:])]
    whole, merged = CentredMoments.of(x, y), parts[0].merge(parts[1])
    torch.testing.assert_close(merged.centred.xx, whole.centred.xx, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(merged.mean_x, whole.mean_x)
    torch.testing.assert_close(whole.uncentred().xx, x.T @ x)


# RidgeProbe


def sample(rows=60, d=8, k=3, seed=0):
    generator = generator_for(seed)
    x = normal(generator, rows, d) + 1.0
    y = x @ normal(generator, d, k) + normal(generator, rows, k) - 2.0
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("intercept", [True, False])
def test_passes_the_checks_of_scikit_learn(intercept):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(RidgeProbe(fit_intercept=intercept))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rows", [60, 8, 5])
def test_probe_agrees_with_ridge_in_primal_and_dual(intercept, rows):
    x, y = sample(rows)
    probe = RidgeProbe(alphas=[0.7], fit_intercept=intercept).fit(x, y)
    reference = Ridge(alpha=0.7, fit_intercept=intercept, solver="svd").fit(x, y)
    np.testing.assert_allclose(probe.coef_, reference.coef_, rtol=1e-8)
    np.testing.assert_allclose(probe.intercept_, reference.intercept_, atol=1e-9)
    np.testing.assert_allclose(probe.predict(x), reference.predict(x))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rows", [60, 6])
def test_penalty_minimises_generalised_cross_validation(intercept, rows):
    x, y = sample(rows)
    alphas = np.logspace(-3, 3, 13)
    probe = RidgeProbe(alphas, fit_intercept=intercept).fit(x, y)
    scores = []
    for alpha in alphas:  # by the hat matrix, as the method is defined
        centring = np.eye(rows) - intercept / rows
        cx, cy = centring @ x, centring @ y
        hat = cx @ np.linalg.solve(cx.T @ cx + alpha * np.eye(8), cx.T)
        scores.append(np.square(cy - hat @ cy).sum() / (rows - intercept - np.trace(hat)) ** 2)
    assert probe.alpha_ == pytest.approx(alphas[int(np.argmin(scores))])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 39), st.integers(1, 12), st.booleans(), st.booleans())
def test_parts_and_merges_equal_one_fit(rows, cut, d, intercept, flat):
    cut = min(cut, rows - 1)
    x, y = sample(rows, d)
    y = y[:, 0] if flat else y
    whole = RidgeProbe([0.3, 3.0], intercept).fit(x, y)
    parts = RidgeProbe([0.3, 3.0], intercept).partial_fit(x[:cut], y[:cut])
    parts.partial_fit(x[cut:], y[cut:])
    left, right = (RidgeProbe([0.3, 3.0], intercept) for _ in range(2))
    merged = left.partial_fit(x[:cut], y[:cut]).merge(right.partial_fit(x[cut:], y[cut:]))
    for other in (parts, merged):
        assert other.alpha_ == whole.alpha_
        np.testing.assert_allclose(other.predict(x), whole.predict(x), rtol=1e-6, atol=1e-7)
        assert other.coef_.shape == whole.coef_.shape == ((d,) if flat else (3, d))


def test_new_rows_drop_the_old_solution():
    x, y = sample()
    probe = RidgeProbe(alphas=[1.0]).partial_fit(x[:30], y[:30])
    before = probe.coef_.copy()
    assert not np.allclose(probe.partial_fit(x[30:], y[30:]).coef_, before)


def test_warns_at_the_edge_of_the_grid():
    x, y = sample()
    with pytest.warns(UserWarning, match="largest of the penalties"):
        RidgeProbe(alphas=[1e-9, 1e-8]).fit(x, y)
    with pytest.warns(UserWarning, match="smallest of the penalties"):
        RidgeProbe(alphas=[1e8, 1e9]).fit(x, y)


def test_warns_at_a_high_condition_number_and_is_silent_otherwise():
    x, y = sample()
    with pytest.warns(UserWarning, match="condition number"):
        RidgeProbe(alphas=[1e-9]).fit(np.hstack([x, x[:, :1]]), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = RidgeProbe(alphas=[0.1, 1.0, 10.0, 100.0]).fit(x, y)
    assert probe.rank_ == 8 and probe.condition_ < 1e3


def test_refuses_what_does_not_fit():
    x, y = sample()
    with pytest.raises(NotFittedError):
        RidgeProbe().merge(RidgeProbe())
    with pytest.raises(ValueError, match="must be positive"):
        RidgeProbe(alphas=[0.0]).fit(x, y)
    probe = RidgeProbe([1.0]).fit(x, y)
    with pytest.raises(ValueError, match="unlike the targets before"):
        probe.partial_fit(x, y[:, 0])
    with pytest.raises(ValueError, match="cannot merge"):
        probe.merge(RidgeProbe([1.0]).fit(x, y[:, :2]))
