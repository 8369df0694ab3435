"""Newton's iteration and GD++ on the context's tokens, and steps that work with and without a mask.

Every comparison is with formulas of its own: moments summed here, matrices iterated in float64.
"""

from dataclasses import replace

import pytest
import torch

from probe.planted.base import Planted, error_against_solver, families_planted
from probe.planted.gradient_descent_pp import SharpenedSteps
from probe.planted.newton import NewtonSteps
from probe.problem import prefix_moments
from probe.sampling import generator_for, normal
from probe.solvers import newton
from probe.stages import Context
from probe.tasks.linear_dynamics import LinearDynamics
from probe.tasks.regression import Geometric, InContextRegression, Isotropic
from probe.tasks.teachers import Gaussian, Orthogonal

OWN = ("newton", "gradient_descent_pp")
SHARED = ("chebyshev", "gradient_descent", "momentum", "richardson", "ridge")
TASKS = {
    "isotropic": InContextRegression("isotropic", Gaussian(), width=5, pairs=15, queries=6),
    "skewed": InContextRegression("skewed", Gaussian(), Geometric(), width=6, pairs=18, queries=7),
}
MU = torch.linspace(0, 1.5, 301, dtype=torch.float64)


def drawn(family: str, task: str, seed: int) -> Planted:
    return families_planted()[family].draw(TASKS[task], generator_for(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", OWN + SHARED)
def test_output_is_that_of_the_solver(family: str, task: str, seed: int) -> None:
    planted = drawn(family, task, seed)
    assert error_against_solver(planted, 64, generator_for(seed, 1)) < 1e-5
    other = drawn(family, task, seed + 10)  # control: the solver of other constants
    assert error_against_solver(replace(planted, solver=other.solver), 64, generator_for(1)) > 1e-4


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_newton_leaves_the_residual_squared_in_every_step(steps: int) -> None:
    curve = MU * NewtonSteps(1.0, steps)(MU)
    assert torch.allclose(curve, newton.shrinkage(MU, steps, 1.0), atol=1e-12)
    assert not torch.allclose(curve, newton.shrinkage(MU, steps + 1, 1.0), atol=1e-3)


def _whole_context(planted: Planted, seed: int) -> tuple[torch.Tensor, ...]:
    """Output and query at one query position, and G and C summed over all pairs."""
    sequences = planted.task.sample(32, generator_for(seed))
    problem = planted.task.problem(sequences)
    keys, values = problem.keys.double(), problem.values.double()
    output = planted.model(sequences.tokens)[:, -2].double()
    return output, problem.queries[:, -2].double(), keys.mT @ keys, values.mT @ keys


@pytest.mark.parametrize("task", TASKS)
def test_newton_is_the_matrix_iteration(task: str) -> None:
    planted = drawn("newton", task, 4)
    output, query, gram, cross = _whole_context(planted, 5)
    curve = planted.solver.f  # type: ignore[attr-defined]
    inverse = curve.start * torch.eye(gram.shape[-1], dtype=torch.float64)
    for _ in range(curve.steps):
        before, inverse = inverse, 2 * inverse - inverse @ gram @ inverse
    expected, one_less = ((cross @ m @ query[..., None])[..., 0] for m in (inverse, before))
    scale = float(expected.square().mean().sqrt())
    assert float((output - expected).abs().max()) < 1e-5 * max(1.0, scale)
    assert float((output - one_less).abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("task", TASKS)
def test_sharpened_descent_is_the_recursion_on_tokens(task: str) -> None:
    """The tokens' own recursion, as matrices: a of all tokens, rho of the pairs."""
    planted = drawn("gradient_descent_pp", task, 4)
    curve = planted.solver.f  # type: ignore[attr-defined]
    sequences = planted.task.sample(32, generator_for(5))
    problem = planted.task.problem(sequences)
    output = planted.model(sequences.tokens)[:, -1].double()

    def run(gammas: tuple[float, ...]) -> torch.Tensor:
        a, rho = problem.keys.double(), problem.values.double()
        query = problem.queries[:, -1:].double()
        y = torch.zeros_like(query)
        for eta, gamma in zip(curve.etas, gammas, strict=True):
            y = y + eta * (query @ a.mT) @ rho
            rho = rho - eta * (a @ a.mT) @ rho
            query = query - gamma * (query @ a.mT) @ a
            a = a - gamma * (a @ a.mT) @ a
        return y[:, 0]

    expected = run(curve.gammas)
    scale = max(1.0, float(expected.square().mean().sqrt()))
    assert float((output - expected).abs().max()) < 1e-5 * scale
    assert float((output - run((0.0, 0.0))).abs().max()) > 1e-2 * scale  # plain steps


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_degree_of_sharpened_steps(layers: int) -> None:
    """A polynomial of this degree interpolates the curve exactly; one less does not."""
    curve = SharpenedSteps((1.1, 3.0, 2.0)[:layers], (0.7, 0.6, 0.5)[:layers])
    values = MU * curve(MU)
    powers = torch.stack([torch.cos(n * torch.acos(MU / 0.75 - 1)) for n in range(14)], 1)

    def misfit(degree: int) -> float:
        columns = powers[:, : degree + 1]
        fitted = columns @ torch.linalg.lstsq(columns, values[:, None]).solution
        return float((fitted[:, 0] - values).abs().max())

    assert misfit(curve.degree) < 1e-9
    assert misfit(curve.degree - 1) > 1e-7


@pytest.mark.parametrize("family", OWN + SHARED)
def test_states_pass_what_the_remaining_layers_make_of_them(family: str) -> None:
    planted = drawn(family, "skewed", 2)
    sequences = planted.task.sample(16, generator_for(3))
    moments = prefix_moments(planted.task.problem(sequences))
    gram, cross = moments.gram[:, -2], moments.cross[:, -2]
    change = normal(generator_for(4), 16, gram.shape[-1])
    mu, basis = torch.linalg.eigh(gram)
    for state in planted.states:
        stream = _before(planted, sequences.tokens, state.layer)
        edited = stream.clone()
        edited[:, -2] += (change @ state.write.double()).float()
        moved = planted.model.resume(edited, state.layer) - planted.model.resume(
            stream, state.layer
        )
        turned = (basis.mT @ change[..., None])[..., 0] * state.remaining(mu.clamp(min=0))
        expected = (cross @ basis @ turned[..., None])[..., 0]
        scale = max(1.0, float(expected.square().mean().sqrt()))
        assert float((moved[:, -2] - expected).abs().max()) < 2e-5 * scale
        assert float((moved[:, -2] - 1.1 * expected).abs().max()) > 1e-3 * scale
        assert float(moved[:, [-1, -3]].abs().max()) < 1e-5 * scale  # queries do not meet


def _before(planted: Planted, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    _, cache = planted.model.run_with_cache(tokens)
    return cache[planted.model.layer_sites()[layer]]


@pytest.mark.parametrize("family", OWN)
def test_labels_are_visible_on_the_tasks_themselves(family: str) -> None:
    """Newton is out of reach of degree 8, GD++ out of reach of ridge, both by more than 0.015."""
    for covariance in (Isotropic(), Geometric()):
        task = InContextRegression("own", Gaussian(), covariance)
        planted = families_planted()[family].draw(task, generator_for(1))
        sequences = task.sample(256, generator_for(2))
        context = Context(sequences, task.problem(sequences))
        output = planted.solver(context)[:, -8:].flatten()
        powers = [
            context.spectrum.predict(lambda mu, n=n: (mu / 40 - 1) ** n)[:, -8:].flatten()
            for n in range(8)
        ]
        columns = torch.stack(powers, 1)
        fitted = columns @ torch.linalg.lstsq(columns, output[:, None]).solution
        ridges = [
            context.spectrum.predict(lambda mu, p=p: 1 / (mu + p))[:, -8:].flatten()
            for p in torch.logspace(-3, 2, 26, dtype=torch.float64)
        ]
        polynomial = _misfit(fitted[:, 0], output)
        ridge = min(_misfit(predicted, output) for predicted in ridges)
        worse, better = (polynomial, ridge) if family == "newton" else (ridge, polynomial)
        assert better < 0.003
        assert worse > 0.015


def _misfit(predicted: torch.Tensor, output: torch.Tensor) -> float:
    return float((predicted - output).square().sum() / output.square().sum())


def test_where_they_can_be_planted() -> None:
    regression, dynamics = TASKS["isotropic"], LinearDynamics("d", Orthogonal())
    found = families_planted()
    assert all(found[name].fits(regression) for name in OWN + SHARED)
    assert all(found[name].fits(dynamics) for name in SHARED)
    assert not any(found[name].fits(dynamics) for name in OWN)
