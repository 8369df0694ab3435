"""Every solver equals an explicit iteration on matrices, and finds the constants planted in it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import cg
from sklearn.neighbors import KNeighborsRegressor

from probe.capture import predictor_only
from probe.columns import Columns
from probe.errors import InputError
from probe.maps import map_products, solve_maps
from probe.mesa_layer import mesa_layer
from probe.pilot import scout
from probe.plan import Plan
from probe.problem import InContextProblem, PrefixMoments, Spectrum, prefix_moments, spectrum
from probe.sampling import generator_for, normal
from probe.solvers import (
    chebyshev,
    conjugate_gradient,
    gradient_descent,
    kernel_smoother,
    nearest_neighbours,
    newton,
    polynomial,
    ridge,
    stepwise_descent,
)
from probe.solvers.base import (
    ColumnFamily,
    Fitted,
    MapFamily,
    Posed,
    Quadratic,
    SpectralFamily,
    families,
    zoom,
)
from probe.solvers.chebyshev_recursion import Recursion
from probe.stages import Batch, Context
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.teachers import Orthogonal

Curve = Callable[[torch.Tensor], torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def random_problem(seed: int = 0, batch: int = 3, time: int = 8, d_k: int = 4, d_v: int = 3):
    """Independent Gaussian pairs and queries; the first prefixes are rank-deficient."""
    g = generator_for(seed)
    keys, values = normal(g, batch, time, d_k), normal(g, batch, time, d_v)
    queries, targets = normal(g, batch, time, d_k), normal(g, batch, time, d_v)
    keys[:, 0] = 0
    return InContextProblem(keys, values, queries, targets, targets, first=1)


@dataclass(frozen=True)
class Stated:
    """A problem with what follows from it, without a sample behind it."""

    problem: InContextProblem
    moments: PrefixMoments
    spectrum: Spectrum


def posed(problem: InContextProblem) -> Stated:
    moments = prefix_moments(problem)
    return Stated(problem, moments, spectrum(moments, problem.queries, torch.float64))


def spectral_prediction(context: Posed, shrinkage: Curve) -> torch.Tensor:
    """C f(G) q from a curve of mu f(mu)."""
    return context.spectrum.predict(lambda mu: shrinkage(mu) / mu)


def iterated(context: Posed, solve: Step) -> torch.Tensor:
    """C_t X_t q_t, with X_t from one moment matrix at a time."""
    gram, cross = context.moments.gram, context.moments.cross
    queries = context.problem.queries
    out = torch.zeros_like(context.problem.targets)
    for b in range(gram.shape[0]):
        for t in range(gram.shape[1]):
            out[b, t] = solve(gram[b, t], cross[b, t]) @ queries[b, t]
    return out


def descend(etas: list[float]) -> Step:
    """Gradient steps on 1/2 sum |v - W k|^2 from W = 0."""

    def solve(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros_like(cross)
        for eta in etas:
            weights = weights + eta * (cross - weights @ gram)
        return weights

    return solve


@pytest.mark.parametrize("steps", gradient_descent.STEPS)
def test_gradient_descent_is_a_loop_of_gradient_steps(steps: int) -> None:
    context = posed(random_problem(steps))
    found = spectral_prediction(context, lambda mu: gradient_descent.shrinkage(mu, steps, 0.07))
    assert torch.allclose(found, iterated(context, descend([0.07] * steps)))
    assert not torch.allclose(found, iterated(context, descend([0.07] * (steps + 1))), rtol=1e-2)


def test_one_gradient_step_is_autograd_on_the_loss() -> None:
    problem = random_problem()
    weights = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * ((problem.values[0, 1:6] - problem.keys[0, 1:6] @ weights.mT) ** 2).sum()
    loss.backward()
    assert weights.grad is not None
    found = spectral_prediction(posed(problem), lambda mu: gradient_descent.shrinkage(mu, 1, 0.3))
    assert torch.allclose(found[0, 5], -0.3 * weights.grad @ problem.queries[0, 5])
    assert not torch.allclose(found[0, 4], -0.3 * weights.grad @ problem.queries[0, 4])


@given(st.lists(st.floats(0.01, 0.2), min_size=2, max_size=6), st.integers(0, 99))
def test_stepwise_descent_is_a_loop_in_any_order(etas: list[float], seed: int) -> None:
    context = posed(random_problem(seed))
    sizes = torch.tensor(etas, dtype=torch.float64)

    def curve(mu: torch.Tensor) -> torch.Tensor:
        return stepwise_descent.shrinkage(mu.flatten(), sizes).view_as(mu)

    found = spectral_prediction(context, curve)
    assert torch.allclose(found, iterated(context, descend(etas)))
    assert torch.allclose(found, iterated(context, descend(etas[::-1])))
    doubled = iterated(context, descend([2 * eta for eta in etas]))
    assert not torch.allclose(found, doubled, rtol=1e-2)


@given(st.integers(2, 8), st.floats(0.05, 2.0), st.floats(3.0, 20.0))
def test_chebyshev_is_richardson_with_its_nodes(steps: int, low: float, high: float) -> None:
    context = posed(random_problem(1))
    found = spectral_prediction(context, lambda mu: chebyshev.shrinkage(mu, steps, low, high))
    etas = (1 / chebyshev.nodes(steps, low, high)).tolist()
    assert torch.allclose(found, iterated(context, descend(etas)), rtol=1e-6, atol=1e-8)
    other = (1 / chebyshev.nodes(steps, low, 1.5 * high)).tolist()
    assert not torch.allclose(found, iterated(context, descend(other)), rtol=1e-3)


@given(st.integers(2, 6), st.integers(0, 99))
def test_chebyshev_has_the_smallest_residual_on_its_interval(steps: int, seed: int) -> None:
    low, high = 0.5, 8.0
    mu = torch.linspace(low, high, 400, dtype=torch.float64)
    best = (1 - chebyshev.shrinkage(mu, steps, low, high)).abs().max()
    centre = torch.tensor((high + low) / (high - low), dtype=torch.float64)
    assert torch.allclose(best, 1 / chebyshev.polynomial(steps, centre))
    nodes = low + (high - low) * torch.rand(steps, generator=generator_for(seed)).double()
    rival = (1 - stepwise_descent.shrinkage(mu, 1 / nodes)).abs().max()
    assert rival > best
    # Control: a wider range of eigenvalues is no interval of optimality.
    beyond = torch.tensor([2 * high], dtype=torch.float64)
    assert (1 - chebyshev.shrinkage(beyond, steps, low, high)).abs() > 1


def test_chebyshev_polynomial_is_the_cosine_of_the_multiple_angle() -> None:
    angle = torch.linspace(0, torch.pi, 50, dtype=torch.float64)
    for degree in range(1, 9):
        assert torch.allclose(chebyshev.polynomial(degree, angle.cos()), (degree * angle).cos())
    assert not torch.allclose(chebyshev.polynomial(3, angle.cos()), (4 * angle).cos())


@pytest.mark.parametrize("steps", newton.STEPS[:6])
def test_newton_is_the_matrix_iteration(steps: int) -> None:
    context = posed(random_problem(steps))

    def schulz(count: int) -> Step:
        def solve(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
            eye = torch.eye(len(gram), dtype=gram.dtype)
            inverse = 0.05 * eye
            for _ in range(count):
                inverse = inverse @ (2 * eye - gram @ inverse)
            # Directions without pairs, which grow without bound, meet a zero of C.
            present = gram @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-6)
            return cross @ present @ inverse

        return solve

    found = spectral_prediction(context, lambda mu: newton.shrinkage(mu, steps, 0.05))
    assert torch.allclose(found, iterated(context, schulz(steps)), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found, iterated(context, schulz(steps - 1)), rtol=1e-3)


@given(st.floats(1e-3, 10.0), st.integers(0, 99))
def test_ridge_is_a_direct_solve_and_the_mesa_layer(penalty: float, seed: int) -> None:
    problem = random_problem(seed)
    context = posed(problem)

    def solve(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(
            gram + penalty * torch.eye(4, dtype=torch.float64), cross, left=False
        )

    found = spectral_prediction(context, lambda mu: ridge.shrinkage(mu, penalty))
    assert torch.allclose(found, iterated(context, solve))
    heads = [part[:, :, None] for part in (problem.keys, problem.values, problem.queries)]
    layer = mesa_layer(*heads, torch.tensor([penalty], dtype=torch.float64))[:, :, 0]
    assert torch.allclose(found, layer)
    doubled = spectral_prediction(context, lambda mu: ridge.shrinkage(mu, 2 * penalty))
    assert not torch.allclose(found, doubled, rtol=1e-5)


def test_ridge_is_the_optimum_of_its_loss() -> None:
    problem = random_problem(5)
    keys, values, penalty = problem.keys[0, 1:7], problem.values[0, 1:7], 0.3
    gram, cross = keys.mT @ keys, values.mT @ keys
    weights = torch.linalg.solve(
        gram + penalty * torch.eye(4, dtype=torch.float64), cross, left=False
    )
    weights.requires_grad_(True)

    def loss(of: torch.Tensor) -> torch.Tensor:
        return ((values - keys @ of.mT) ** 2).sum() + penalty * (of**2).sum()

    (gradient,) = torch.autograd.grad(loss(weights), weights)
    assert gradient.abs().max() < 1e-10
    assert loss(weights * 1.01) > loss(weights)
    found = spectral_prediction(posed(problem), lambda mu: ridge.shrinkage(mu, penalty))
    assert torch.allclose(found[0, 6], weights @ problem.queries[0, 6])


def test_conjugate_gradient_equals_scipy() -> None:
    context = posed(random_problem(2, time=10))
    x = conjugate_gradient.iterates(context.spectrum, 4)
    basis = context.spectrum.basis
    for b in range(3):
        for t in (5, 9):
            gram, query = context.moments.gram[b, t].numpy(), context.problem.queries[b, t].numpy()
            for steps in range(1, 5):
                expected, _ = cg(gram, query, rtol=0, atol=0, maxiter=steps)
                found = (basis[b, t] @ x[b, t, :, steps - 1]).numpy()
                assert np.allclose(found, expected, rtol=1e-6, atol=1e-9)
                if steps > 1:
                    fewer = (basis[b, t] @ x[b, t, :, steps - 2]).numpy()
                    assert not np.allclose(fewer, expected, rtol=1e-3)
    predicted = conjugate_gradient.ConjugateGradient().columns(context)
    last = context.moments.cross[0, 9] @ basis[0, 9] @ x[0, 9, :, 2]
    assert torch.allclose(predicted[0, 9, :, 2], last)


@given(st.integers(0, 99), st.integers(1, 4))
def test_conjugate_gradient_is_best_in_its_krylov_space(seed: int, steps: int) -> None:
    context = posed(random_problem(seed, batch=1, time=12))
    gram, query = context.moments.gram[0, 11], context.problem.queries[0, 11]
    x = conjugate_gradient.iterates(context.spectrum, steps)[0, 11, :, steps - 1]
    solution = context.spectrum.basis[0, 11] @ x
    powers = [query]
    for _ in range(steps):
        powers.append(gram @ powers[-1] / (gram @ powers[-1]).norm())
    krylov, _ = torch.linalg.qr(torch.stack(powers[:steps], -1))
    residual = query - gram @ solution
    assert (krylov.mT @ residual).abs().max() < 1e-6 * query.norm()
    assert (solution - krylov @ (krylov.mT @ solution)).norm() < 1e-6 * solution.norm()
    # Control: a step of plain descent is in the same space but not optimal.
    if 1 < steps < 4:
        descended = descend([0.01] * steps)(gram, torch.eye(4, dtype=torch.float64)) @ query
        assert (krylov.mT @ (query - gram @ descended)).abs().max() > 1e-6 * query.norm()


def test_conjugate_gradient_stays_finite_where_nothing_is_left() -> None:
    problem = random_problem(0, time=3)
    columns = conjugate_gradient.ConjugateGradient().columns(posed(problem))
    assert bool(columns.isfinite().all())
    assert (columns[:, 0] == 0).all() and (columns[:, 2] != 0).any()
    # One pair: a single step is exact, and more change nothing.
    assert torch.allclose(columns[:, 1, :, 0], columns[:, 1, :, 7])
    assert not torch.allclose(columns[:, 2, :, 0], columns[:, 2, :, 7])


def test_kernel_smoother_is_a_weighted_average() -> None:
    problem = random_problem(3)
    columns = kernel_smoother.KernelSmoother().columns(posed(problem))
    assert (columns[:, 0] == 0).all()
    for i, beta in enumerate(kernel_smoother.BETAS):
        for b, t in ((0, 1), (1, 4), (2, 7)):
            weights = (beta * problem.keys[b, 1 : t + 1] @ problem.queries[b, t]).exp()
            average = (weights[:, None] * problem.values[b, 1 : t + 1]).sum(0) / weights.sum()
            assert torch.allclose(columns[b, t, :, i], average, rtol=1e-4, atol=1e-5)
            if t > 1 and beta < 1:
                future = (beta * problem.keys[b, :t] @ problem.queries[b, t]).exp()
                leaky = (future[:, None] * problem.values[b, :t]).sum(0) / future.sum()
                assert not torch.allclose(columns[b, t, :, i], leaky, rtol=1e-2)


def test_nearest_neighbours_equal_scikit_learn() -> None:
    problem = random_problem(4)
    columns = nearest_neighbours.NearestNeighbours().columns(posed(problem))
    assert (columns[:, 0] == 0).all()
    for i, count in enumerate(nearest_neighbours.NEIGHBOURS):
        for b in range(3):
            for t in range(1, 8):
                seen = problem.keys[b, 1 : t + 1].numpy(), problem.values[b, 1 : t + 1].numpy()
                model = KNeighborsRegressor(min(count, t)).fit(*seen)
                expected = model.predict(problem.queries[b, t : t + 1].numpy())[0]
                assert np.allclose(columns[b, t, :, i], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(columns[:, 5, :, 0], columns[:, 5, :, 1], rtol=1e-2)


def test_nulls_and_normalised_descent_equal_their_formulas() -> None:
    problem, known = random_problem(6), families()
    context = posed(problem)
    at = 5
    mean = known["mean"].columns(context)[:, at, :, 0]
    assert torch.allclose(mean, problem.values[:, 1 : at + 1].mean(1))
    assert not torch.allclose(mean, problem.values[:, : at + 1].mean(1))
    copies = known["two_lag_copy"].columns(context)
    assert torch.equal(copies[:, at, :, 0], problem.values[:, at])
    assert torch.equal(copies[:, at, :, 1], problem.values[:, at - 1])
    assert torch.equal(known["oracle"].columns(context)[..., 0], problem.oracle)
    assert not known["zero"].columns(context).any()
    step = iterated(context, descend([1.0]))[:, at] / at
    assert torch.allclose(known["normalised_descent"].columns(context)[:, at, :, 0], step)


def test_recursion_with_plain_constants_is_a_neumann_series() -> None:
    g = generator_for(3)
    root = normal(g, 2, 4, 4)
    matrix, right = root @ root.mT + 0.5 * torch.eye(4), normal(g, 2, 4, 2)
    norm = torch.linalg.matrix_norm(matrix)[:, None, None]
    for steps in (1, 5, 400):
        found = Recursion((1.0,) * steps, (0.0,) * steps).solve(matrix, right)
        term = total = right
        for _ in range(steps):
            term = term - matrix @ term / norm
            total = total + term
        assert torch.allclose(found, total / norm)
    exact = torch.linalg.solve(matrix, right)
    assert torch.allclose(found, exact, rtol=1e-3)
    assert not torch.allclose(Recursion((1.0,), (0.0,)).solve(matrix, right), exact, rtol=0.1)


def test_recursion_refuses_unequal_constants() -> None:
    with pytest.raises(InputError, match="2 alphas, 1 betas"):
        Recursion((1.0, 1.0), (0.5,))
    with pytest.raises(InputError, match="0 alphas"):
        Recursion((), ())


@given(st.integers(0, 99))
def test_error_of_a_quadratic_is_the_summed_squared_error(seed: int) -> None:
    g = generator_for(seed)
    columns, y = normal(g, 20, 5), normal(g, 20)
    form = Quadratic(columns.mT @ columns, columns.mT @ y, float(y @ y))
    weights = normal(g, 3, 5)
    direct = ((y - weights @ columns.mT) ** 2).sum(-1)
    assert torch.allclose(form.error(weights), direct)
    part = slice(1, 3)
    narrow = ((y - weights[:, part] @ columns[:, part].mT) ** 2).sum(-1)
    assert torch.allclose(form.part(part).error(weights[:, part]), narrow)
    assert not torch.allclose(form.error(weights), narrow)


@given(st.floats(1e-3, 1e3))
def test_zoom_finds_a_constant_on_a_logarithmic_range(truth: float) -> None:
    form = Quadratic(torch.eye(1).double(), torch.tensor([truth]).double(), truth**2)
    found = zoom(form, lambda constant: constant, 1e-4, 1e4)
    assert found == pytest.approx(truth, rel=1e-3)
    # Control: a range that leaves the constant out ends at its edge.
    assert zoom(form, lambda constant: constant, 1e4, 1e5) == pytest.approx(1e4)


# --- Fits: what is planted comes back. ---

TASK = LinearDynamics("planted", Orthogonal(), width=5, length=24)
WINDOW = slice(3, 23)


@pytest.fixture(scope="module")
def setting():
    return scout(Plan(TASK, 256, 0), 1)


@pytest.fixture(scope="module")
def context() -> Context:
    sequences = TASK.sample(256, generator_for(0, 1))
    return Context(sequences, TASK.problem(sequences))


@pytest.fixture(scope="module")
def every() -> tuple[str, ...]:
    return tuple(name for name, f in families().items() if isinstance(f, ColumnFamily))


def fit_to(prediction: torch.Tensor, context: Context, setting, every) -> dict[str, list[Fitted]]:
    """All members of all families, fitted to a prediction over the window."""
    batch = Batch(context, predictor_only(prediction.float()), torch.arange(256) % 64)
    columns = Columns(setting.knots, every)
    spans = ((WINDOW.start, WINDOW.stop),)
    gram = columns.grams(batch, prediction.float()[..., None], spans).sum((0, 1))
    form = Quadratic(gram[:-1, :-1], gram[:-1, -1], float(gram[-1, -1]))
    rows = prediction[:, WINDOW].numel()
    found: dict[str, list[Fitted]] = {}
    for member in columns.fit(form, rows, setting.step_bound):
        found.setdefault(member.family, []).append(member)
    return found


def planted(name: str, bound: float) -> tuple[Curve, dict[str, float], int | None, int]:
    """A curve, the constants that must come back, the degree and the number of constants."""
    low, high = float(chebyshev.LOW_SHARES[14] * chebyshev.HIGHS[-1]), float(chebyshev.HIGHS[-1])
    low, high = 2 * low / bound, 2 * high / bound
    one, two = 0.9 * bound / 2, 2.5 * bound / 2
    table: dict[str, tuple[Curve, dict[str, float], int | None, int]] = {
        "ridge": (lambda mu: ridge.shrinkage(mu, 0.21), {"lambda": 0.21}, None, 1),
    }
    for k in gradient_descent.STEPS:
        table[f"gradient_descent {k}"] = (
            lambda mu, k=k: gradient_descent.shrinkage(mu, k, 0.2 * bound),
            {"steps": k, "eta": 0.2 * bound},
            k,
            1,
        )
    for k in (2, 4, 7, 9):
        table[f"newton {k}"] = (
            lambda mu, k=k: newton.shrinkage(mu, k, 0.3 * bound),
            {"steps": k, "start": 0.3 * bound},
            2**k - 1,
            1,
        )
    for k in (2, 3):
        table[f"chebyshev {k}"] = (
            lambda mu, k=k: chebyshev.shrinkage(mu, k, low, high),
            {"steps": k, "low": low, "high": high},
            k,
            2,
        )
    sizes = torch.tensor([one, two], dtype=torch.float64)
    table["stepwise_descent 2"] = (
        lambda mu: stepwise_descent.shrinkage(mu.flatten(), sizes).view_as(mu),
        {"steps": 2, "eta_1": one, "eta_2": two},
        2,
        2,
    )
    return table[name]


PLANTED = [
    "ridge",
    *(f"gradient_descent {k}" for k in gradient_descent.STEPS),
    *(f"newton {k}" for k in (2, 4, 7, 9)),
    *(f"chebyshev {k}" for k in (2, 3)),
    "stepwise_descent 2",
]


@pytest.mark.parametrize("name", PLANTED)
def test_planted_constants_come_back(name: str, context: Context, setting, every) -> None:
    curve, constants, degree, free = planted(name, setting.step_bound)
    found = fit_to(spectral_prediction(context, curve), context, setting, every)
    family = name.split()[0]
    same = [m for m in found[family] if m.constants.get("steps") == constants.get("steps")]
    (member,) = same
    assert member.error < 1e-3
    assert (member.degree, member.free) == (degree, free)
    for key, value in constants.items():
        assert member.constants[key] == pytest.approx(value, rel=0.02), key
    # The free response is near, as far as 16 knots can bend; nulls and fewer steps stay away.
    assert found["spline"][0].error < 0.025
    assert min(m.error for m in found["zero"] + found["mean"] + found["two_lag_copy"]) > 0.1
    others = [m.error for m in found[family] if m is not member and (m.degree or 0) < (degree or 0)]
    assert all(error > 2 * member.error for error in others)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_polynomials_are_found_at_their_degree(degree: int, context, setting, every) -> None:
    roots = torch.logspace(-0.7, 0.3, degree, dtype=torch.float64) * setting.mu_top

    def curve(mu: torch.Tensor) -> torch.Tensor:
        return 1 - (1 - mu[..., None] / roots).prod(-1)

    found = fit_to(spectral_prediction(context, curve), context, setting, every)["polynomial"]
    by_degree = {member.degree: member for member in found}
    assert by_degree[degree].error < 1e-3
    assert all(by_degree[k].error < 1e-3 for k in range(degree, 9))
    assert all(by_degree[k].error > 2 * by_degree[degree].error for k in range(1, degree))
    weights = by_degree[degree].weights[:64]
    expected = curve(torch.tensor(setting.knots, dtype=torch.float64))
    knots = torch.tensor(setting.knots)
    seen = (knots > 0.1 * setting.mu_top) & (knots < setting.mu_top)
    assert torch.allclose(weights[seen], expected[seen], atol=0.05)
    assert [member.free for member in found] == list(polynomial.DEGREES)


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_polynomials_contain_every_iteration_of_their_degree(steps, context, setting, every):
    """So does a family of step sizes contain Chebyshev, and Chebyshev plain descent's best."""
    curve, *_ = planted("ridge", setting.step_bound)
    found = fit_to(spectral_prediction(context, curve), context, setting, every)

    def error(family: str) -> float:
        return next(m.error for m in found[family] if m.degree == steps)

    assert error("polynomial") <= error("stepwise_descent") + 1e-9
    assert error("stepwise_descent") <= error("chebyshev") + 1e-9
    assert error("chebyshev") < error("gradient_descent")
    assert found["spline"][0].error < error("polynomial")


def test_column_families_find_their_constants(context: Context, setting, every) -> None:
    known = families()

    def fit(prediction: torch.Tensor, family: str) -> Fitted:
        return fit_to(prediction, context, setting, every)[family]

    smoother = known["kernel_smoother"].columns(context)
    (found,) = fit(0.7 * smoother[..., 4], "kernel_smoother")
    assert found.constants["beta"] == kernel_smoother.BETAS[4]
    assert found.constants["scale"] == pytest.approx(0.7, rel=1e-3)
    assert found.error < 1e-6 and found.free == 2
    copies = known["two_lag_copy"].columns(context)
    (found,) = fit(copies @ torch.tensor([0.8, -0.3]).double(), "two_lag_copy")
    assert (found.constants["last"], found.constants["one_before"]) == pytest.approx((0.8, -0.3))
    assert found.error < 1e-6 and found.free == 2
    (found,) = fit(2.5 * known["normalised_descent"].columns(context)[..., 0], "normalised_descent")
    assert found.constants["eta"] == pytest.approx(2.5, rel=1e-3)
    assert (found.degree, found.free) == (1, 1) and found.error < 1e-6
    (found,) = fit(known["nearest_neighbours"].columns(context)[..., 1], "nearest_neighbours")
    assert found.constants["neighbours"] == 3 and found.error < 1e-6 and found.free == 0
    steps = fit(known["conjugate_gradient"].columns(context)[..., 2], "conjugate_gradient")
    assert [m.constants["steps"] for m in steps if m.error < 1e-6] == [3]
    everything = fit_to(context.problem.oracle.double(), context, setting, every)
    assert everything["oracle"][0].error < 1e-6
    assert min(m.error for m in everything["zero"] + everything["mean"]) > 0.5


def test_map_families_find_their_matrix(context: Context) -> None:
    g = generator_for(9)
    trained = normal(g, 5, 5)
    queries = context.problem.queries.double()
    predictions = {
        "memorised_map": queries @ trained.mT,
        "preconditioned_gd": torch.einsum(
            "btvk,kl,btl->btv", context.moments.cross, trained, queries
        ),
    }
    for name, prediction in predictions.items():
        batch = Batch(context, predictor_only(prediction.float()), torch.arange(256) % 64)
        sums = map_products(batch, prediction[..., None], ((3, 23),))
        for family in predictions:
            solved = solve_maps(sums[f"{family}:gram"][0], sums[f"{family}:cross"][0])[0]
            close = torch.allclose(solved, trained, rtol=0.02, atol=0.02)
            assert close == (family == name)


def test_every_family_has_one_shape_and_its_own_name() -> None:
    kinds = (SpectralFamily, ColumnFamily, MapFamily)
    for name, family in families().items():
        assert family.name == name
        assert sum(isinstance(family, kind) for kind in kinds) == 1
    assert {"oracle", "zero", "mean", "memorised_map"} <= {
        name for name, family in families().items() if family.is_null
    }
    assert not families()["ridge"].is_null
    assert not isinstance(object(), kinds)


@pytest.mark.parametrize("penalty", [1e-3, 0.05, 1.0])
def test_newton_never_diverges_at_a_knot(penalty: float, context: Context, setting, every) -> None:
    target = spectral_prediction(context, lambda mu: ridge.shrinkage(mu, penalty))
    found = fit_to(target, context, setting, every)["newton"]
    curves = torch.stack([member.weights[:64] for member in found])
    rounding = 1e-12  # a diverging curve leaves the interval by orders of magnitude
    assert (curves >= -rounding).all() and (curves <= 1 + rounding).all()
    # Control: at the largest step of gradient descent the highest knots explode.
    knots = torch.tensor(setting.knots, dtype=torch.float64)
    assert newton.shrinkage(knots, 9, setting.step_bound).abs().max() > 1e6
