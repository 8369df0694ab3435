"""The heavy ball equals an explicit iteration on matrices, and its constants are found again."""

import pytest
import torch

from probe.response import log_knots
from probe.sampling import generator_for, normal
from probe.solvers import chebyshev, gradient_descent, momentum
from probe.solvers.base import Quadratic, Spectral, SpectralFamily, families

MU = torch.linspace(0.01, 1.0, 50, dtype=torch.float64)


def iterated(gram: torch.Tensor, query: torch.Tensor, steps: int, eta: float, beta: float):
    """p_k from its definition, one matrix product per step."""
    before = now = torch.zeros_like(query)
    for _ in range(steps):
        before, now = now, now + eta * (query - gram @ now) + beta * (now - before)
    return now


@pytest.mark.parametrize("steps", momentum.STEPS)
def test_the_curve_is_the_iteration_on_a_matrix(steps: int) -> None:
    g = generator_for(steps)
    keys, query = normal(g, 9, 5), normal(g, 5)
    gram = keys.mT @ keys
    mu, basis = torch.linalg.eigh(gram)
    eta, beta = 0.8 / float(mu[-1]), 0.45
    found = basis @ (momentum.shrinkage(mu, steps, eta, beta) / mu * (basis.mT @ query))
    assert torch.allclose(found, iterated(gram, query, steps, eta, beta))
    assert not torch.allclose(found, iterated(gram, query, steps, eta, 0.4), rtol=1e-3)
    assert not torch.allclose(found, iterated(gram, query, steps + 1, eta, beta), rtol=1e-3)


@pytest.mark.parametrize("steps", momentum.STEPS)
def test_without_momentum_it_is_gradient_descent(steps: int) -> None:
    descent = gradient_descent.shrinkage(MU, steps, 0.7)
    assert torch.allclose(momentum.shrinkage(MU, steps, 0.7, 0.0), descent)
    assert not torch.allclose(momentum.shrinkage(MU, steps, 0.7, 0.3), descent, rtol=1e-2)


def test_polyak_s_constants_reach_polyak_s_rate() -> None:
    low, high = 0.05, 1.0
    rate = (high**0.5 - low**0.5) / (high**0.5 + low**0.5)
    eta, beta = 4 / (high**0.5 + low**0.5) ** 2, rate**2
    mu = torch.linspace(low, high, 101, dtype=torch.float64)

    def left(curve: torch.Tensor) -> float:
        return float((1 - curve).abs().max())

    # Both ends have a double root, -rate at the upper one: (-rate)^k (1 + k (1 + rate)).
    for steps in (1, 5, 20):
        expected = rate**steps * (1 + steps * (1 + rate))
        assert left(momentum.shrinkage(mu, steps, eta, beta)) == pytest.approx(expected)
    best = left(momentum.shrinkage(mu, 20, eta, beta))
    assert best < 0.1 * left(gradient_descent.shrinkage(mu, 20, 2 / (high + low)))
    assert best < 0.1 * left(momentum.shrinkage(mu, 20, eta, 0.5 * beta))


def spectral(curve: torch.Tensor, mu: torch.Tensor, seed: int = 0) -> Spectral:
    """Squared errors from a curve, with random weights over the knots."""
    root = normal(generator_for(seed), len(mu), len(mu)) / len(mu) ** 0.5
    gram = root.mT @ root + 0.1 * torch.eye(len(mu), dtype=torch.float64)
    quadratic = Quadratic(gram, gram @ curve, float(curve @ gram @ curve))
    return Spectral(quadratic, mu, step_bound=2 / float(mu[-8]), rows=1000)


@pytest.mark.parametrize(("steps", "eta", "beta"), [(2, 0.8, 0.3), (4, 1.5, 0.5), (6, 0.4, 0.75)])
def test_planted_constants_are_found_again(steps: int, eta: float, beta: float) -> None:
    mu = log_knots(0.05, 50.0)
    eta = eta / float(mu[-8])
    given = spectral(momentum.shrinkage(mu, steps, eta, beta), mu)
    fits = {int(fit.constants["steps"]): fit for fit in momentum.Momentum().fit_curve(given)}
    assert tuple(fits) == momentum.STEPS
    best = fits[steps]
    assert best.constants["eta"] == pytest.approx(eta, rel=1e-2)
    assert best.constants["beta"] == pytest.approx(beta, rel=1e-2)
    assert best.degree == steps and best.free == 2
    error = given.errors.error(best.weights) / given.errors.energy
    assert error < 1e-5
    others = (gradient_descent.GradientDescent(), chebyshev.Chebyshev())
    rivals = [fit for family in others for fit in family.fit_curve(given)]
    least = min(given.errors.error(fit.weights) for fit in rivals) / given.errors.energy
    assert least > 10 * error


def test_steps_that_diverge_are_not_offered() -> None:
    mu = log_knots(0.05, 50.0)
    eta = 3.9 / float(mu[-8])  # stable only with a large beta
    given = spectral(momentum.shrinkage(mu, 3, eta, 0.1), mu)
    for fit in momentum.Momentum().fit_curve(given):
        limit = (1 + fit.constants["beta"]) * given.step_bound
        assert fit.constants["eta"] < limit
    assert eta > 1.1 * given.step_bound


def test_it_is_a_family_of_solvers() -> None:
    family = families()["momentum"]
    assert isinstance(family, SpectralFamily) and not family.is_null
