"""Laws of inputs, noise, weights, functions and query shifts: moments, counts, known answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probe.errors import InputError
from probe.problem import prefix_moments
from probe.sampling import generator_for, normal
from probe.tasks.functions import (
    DecisionTree,
    Linear,
    Networks,
    Quadratic,
    ScaledFunctions,
    Sign,
    Trees,
    TwoLayer,
)
from probe.tasks.inputs import (
    Clustered,
    Exponential,
    Geometric,
    InputLaw,
    Isotropic,
    Laplace,
    PowerLaw,
    ScaledInputs,
    Uniform,
)
from probe.tasks.label_noise import Clean, Corrupted, GaussianNoise, StudentNoise, VaryingNoise
from probe.tasks.regression import InContextRegression
from probe.tasks.shifts import OrthogonalQueries, OtherOrthant, RepeatedQueries
from probe.tasks.teachers import Fixed, Gaussian
from probe.tasks.weights import GaussianWeights, PooledWeights, ScaledTeacher, SparseWeights

SPECTRA = {
    "isotropic": (Isotropic(), [1.0] * 6),
    "geometric": (Geometric(1e4), [10 ** (-0.8 * i) for i in range(6)]),
    "two clusters": (Clustered(2, 100.0), [1.0] * 3 + [0.01] * 3),
    "three clusters": (Clustered(3, 100.0), [1.0] * 2 + [0.1] * 2 + [0.01] * 2),
    "power law": (PowerLaw(2.0), [1.0, 1 / 4, 1 / 9, 1 / 16, 1 / 25, 1 / 36]),
}


def drawn(law: InputLaw, count: int = 20_000, seed: int = 0) -> torch.Tensor:
    return law.draw(count, 1, 6, generator_for(seed))[:, 0]


@pytest.mark.parametrize("name", SPECTRA)
def test_inputs_have_the_covariance_that_is_named(name: str) -> None:
    law, eigenvalues = SPECTRA[name]
    expected = torch.tensor(eigenvalues, dtype=torch.float64)
    expected = expected / expected.mean()
    x = drawn(law)
    sizes = expected.sqrt()
    correlation = (x / sizes).T @ (x / sizes) / len(x)
    assert torch.allclose(correlation, torch.eye(6, dtype=torch.float64), atol=0.05)
    flat = x.T @ x / len(x)  # control: another spectrum is told apart
    if name != "isotropic":
        assert not torch.allclose(flat, torch.eye(6, dtype=torch.float64), atol=0.05)


MARGINALS = {
    "laplace": (Laplace(), stats.laplace(scale=0.5**0.5).cdf),
    "exponential": (Exponential(), stats.expon(loc=-1).cdf),
    "uniform": (Uniform(), stats.uniform(-(3**0.5), 12**0.5).cdf),
    "normal": (Isotropic(), stats.norm.cdf),
}


@pytest.mark.parametrize("name", MARGINALS)
def test_inputs_have_the_marginal_that_is_named(name: str) -> None:
    law, _ = MARGINALS[name]
    x = drawn(law, 2000).flatten().numpy()
    levels = {other: stats.kstest(x, cdf).pvalue for other, (_, cdf) in MARGINALS.items()}
    assert levels.pop(name) > 1e-3
    assert max(levels.values()) < 1e-6
    assert x.var() == pytest.approx(1, abs=0.1) and x.mean() == pytest.approx(0, abs=0.05)


def test_marginals_take_a_spectrum_and_laws_a_scale() -> None:
    x = drawn(Laplace(Clustered(2, 100.0)))
    variances = x.var(0)
    assert float(variances[:3].mean() / variances[3:].mean()) == pytest.approx(100, rel=0.1)
    assert torch.equal(drawn(ScaledInputs(PowerLaw(), 3.0)), 3 * drawn(PowerLaw()))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 12), st.integers(1, 4))
def test_shapes_of_any_law(count: int, length: int, width: int, clusters: int) -> None:
    for law in (Clustered(clusters, 50.0), PowerLaw(), Geometric(10.0), Laplace(), StudentNoise()):
        numbers = law.draw(count, length, width, generator_for(1))
        assert numbers.shape == (count, length, width) and numbers.isfinite().all()
    for weights in (GaussianWeights(), SparseWeights(2), PooledWeights(5)):
        assert weights.matrices(count, length, width, generator_for(1)).shape[1:] == (length, width)
        assert weights.draw(count, width, generator_for(1)).shape == (count, width, width)


def test_noise_has_the_quantiles_of_its_law() -> None:
    shape = (4000, 5, 2)
    normals, varying, heavy = (
        law.draw(*shape, generator_for(2))
        for law in (GaussianNoise(), VaryingNoise(), StudentNoise(3))
    )
    assert stats.kstest(normals.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    student = stats.t(3, scale=(1 / 3) ** 0.5).cdf
    assert stats.kstest(heavy.flatten().numpy(), student).pvalue > 1e-3
    assert stats.kstest(heavy.flatten().numpy(), stats.norm.cdf).pvalue < 1e-6
    # One scale per sequence, uniform: E s^2 = 1/3, and squares of a sequence go together.
    assert float(varying.square().mean()) == pytest.approx(1 / 3, abs=0.02)
    first, second = varying[:, 0].square().mean(-1), varying[:, -1].square().mean(-1)
    assert stats.spearmanr(first, second).pvalue < 1e-6
    assert stats.spearmanr(normals[:, 0, 0] ** 2, normals[:, -1, 0] ** 2).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(1, 10), st.integers(0, 99))
def test_as_many_labels_are_replaced_as_are_named(labels: int, length: int, seed: int) -> None:
    clean = normal(generator_for(seed), 6, length, 2)
    offered = torch.arange(length) < torch.arange(6)[:, None]
    spoiled = Corrupted(labels).spoil(clean, offered, generator_for(seed, 1))
    changed = (spoiled != clean).any(-1)
    assert not (changed & ~offered).any()
    assert torch.equal(changed.sum(1), offered.sum(1).clamp(max=labels))
    assert torch.equal(Clean().spoil(clean, offered, generator_for(0)), clean)


def test_replaced_labels_are_anywhere_and_know_nothing() -> None:
    x = normal(generator_for(0), 4000, 8, 1)
    spoiled = Corrupted(2).spoil(3 * x, torch.ones(4000, 8, dtype=torch.bool), generator_for(1))
    changed = (spoiled != 3 * x)[..., 0]
    assert torch.allclose(changed.double().mean(0), torch.full((8,), 0.25).double(), atol=0.03)
    seen, true = spoiled[..., 0][changed], x[..., 0][changed]
    assert abs(stats.pearsonr(seen, true).statistic) < 0.05
    assert float(seen.std()) == pytest.approx(3, rel=0.1)


def test_corruption_reaches_the_task() -> None:
    task = InContextRegression(
        "c", Gaussian(), width=3, pairs=9, noise=0.0, corruption=Corrupted(2)
    )
    sequences = task.sample(64, generator_for(0))
    problem = task.problem(sequences)
    taught = torch.einsum("bij,btj->bti", sequences.teachers, problem.keys)
    wrong = ((problem.values - taught).abs() > 1e-4).any(-1)
    there = problem.keys.ne(0).any(-1)
    assert torch.equal(wrong.sum(1), there.sum(1).clamp(max=2))


def test_sparse_weights_and_pools() -> None:
    w = SparseWeights(3).matrices(4000, 1, 10, generator_for(0))[:, 0]
    assert (w.ne(0).sum(1) == 3).all()
    assert torch.allclose(w.ne(0).double().mean(0), torch.full((10,), 0.3).double(), atol=0.04)
    assert float(w[w != 0].var()) == pytest.approx(1, abs=0.1)
    pool = PooledWeights(5, seed=3)
    found = pool.draw(600, 4, generator_for(0))
    assert len(found.unique(dim=0)) == 5
    assert not torch.equal(pool.members(4, 4), PooledWeights(5, seed=4).members(4, 4))
    large = PooledWeights(2**15).matrices(4, 1, 20, generator_for(0))
    assert len(large.unique(dim=0)) == 4


def test_a_pool_of_one_is_a_fixed_teacher() -> None:
    pool = PooledWeights(1, seed=7)
    fixed = Fixed(pool.members(10, 10)[0])
    tasks = [InContextRegression("t", teacher) for teacher in (pool, fixed)]
    one, other = (task.sample(5, generator_for(1)).teachers for task in tasks)
    assert torch.equal(one, other) and torch.equal(one[0], one[4])
    fresh = InContextRegression("t", Gaussian()).sample(5, generator_for(1)).teachers
    assert not torch.equal(fresh[0], fresh[4])
    described = tasks[0].params()["teacher"]
    assert described == {
        "kind": "PooledWeights",
        "size": 1,
        "seed": 7,
        "law": {"kind": "GaussianWeights", "tau": 1.0},
    }


def test_teachers_have_their_prior() -> None:
    w = Gaussian(tau=3.0).draw(4000, 4, generator_for(0))
    assert float(w.var()) == pytest.approx(9 / 4, rel=0.05)
    doubled = ScaledTeacher(Gaussian(3.0), 2.0).draw(4000, 4, generator_for(0))
    assert torch.equal(doubled, 2 * w)


def test_trees_decide_by_signs() -> None:
    """A tree of depth 2 by hand: channel 0, then channel 1 on the left and 2 on the right."""
    tree = Trees(torch.tensor([[0, 1, 2]]), torch.tensor([[10.0, 11.0, 12.0, 13.0]]).double())
    x = torch.tensor([[[-1, -1, 5], [-1, 1, 5], [1, 5, -1], [1, 5, 1]]]).double()
    assert tree(x).flatten().tolist() == [10.0, 11.0, 12.0, 13.0]
    assert tree(-x).flatten().tolist() == [12.0, 12.0, 11.0 - 1.0, 10.0]
    drawn_trees = DecisionTree(4).draw(500, 20, generator_for(0))
    values = drawn_trees(normal(generator_for(1), 500, 100, 20))[..., 0]
    assert max(len(row.unique()) for row in values) <= 16
    assert float(values.var()) == pytest.approx(1, abs=0.15)


def test_networks_and_signs() -> None:
    network = Networks(torch.eye(2).double()[None], torch.tensor([[[1.0, -2.0]]]).double())
    x = torch.tensor([[[3.0, 5.0], [-3.0, 5.0], [-3.0, -5.0]]]).double()
    assert network(x).flatten().tolist() == [3 - 10, -10, 0]  # sqrt(2 / 2) = 1
    x = normal(generator_for(0), 400, 50, 6)
    values = TwoLayer(100).draw(400, 6, generator_for(1))(x)
    assert float(values.square().mean()) == pytest.approx(6, rel=0.15)  # that of a linear map
    sign = Sign().draw(400, 6, generator_for(1))
    assert torch.equal(sign(x).abs(), torch.ones_like(sign(x)))
    assert torch.equal(sign(-x), -sign(x)) and torch.equal(sign(3 * x), sign(x))


@pytest.mark.parametrize("functions", [Linear(), Linear(SparseWeights(), 2), Quadratic()])
def test_features_make_the_class_linear(functions: Linear | Quadratic) -> None:
    x = normal(generator_for(0), 30, 12, 5)
    y = functions.draw(30, 5, generator_for(1))(x)
    phi = functions.features(x)
    solved = torch.linalg.lstsq(phi, y).solution
    assert functions.is_linear and torch.allclose(phi @ solved, y, atol=1e-8)
    other = TwoLayer(4).draw(30, 5, generator_for(1))(x)  # control: no linear class
    assert not torch.allclose(phi @ torch.linalg.lstsq(phi, other).solution, other, atol=1e-2)
    scaled = ScaledFunctions(functions, 3.0)
    assert torch.equal(scaled.draw(30, 5, generator_for(1))(x), 3 * y)
    assert (scaled.outputs, scaled.is_linear) == (functions.outputs, True)


def test_quadratic_functions_have_the_size_of_linear_ones() -> None:
    x = normal(generator_for(0), 2000, 20, 6)
    y = Quadratic().draw(2000, 6, generator_for(1))(x)
    assert float(y.square().mean()) == pytest.approx(6, rel=0.1)


def shifted(shift, pairs: int = 4, width: int = 6, seed: int = 0):
    context, queries = normal(generator_for(seed), 50, pairs + 3, width).split([pairs, 3], 1)
    context[:10, -1] = 0  # no pair
    return (context, queries), shift.apply(context, queries, generator_for(seed, 1))


def test_queries_in_another_orthant() -> None:
    (context, queries), (folded, moved) = shifted(OtherOrthant())
    there = folded.ne(0).any(-1)
    signs = folded.sign()
    first = signs[:, :1]
    assert (signs == first)[there].all()
    assert (moved.sign() != first).any(-1).all()
    assert torch.equal(folded.abs(), context.abs()) and torch.equal(moved.abs(), queries.abs())
    assert not (context.sign() == context[:, :1].sign())[there].all()  # control
    for width in (1, 2):  # few orthants to be apart in
        _, (folded, moved) = shifted(OtherOrthant(), width=width)
        assert (moved.sign() != folded[:, :1].sign()).any(-1).all()


@pytest.mark.parametrize("pairs", [1, 4, 5])
def test_orthogonal_queries_leave_least_squares_with_nothing(pairs: int) -> None:
    (context, queries), (same, moved) = shifted(OrthogonalQueries(), pairs)
    assert torch.equal(same, context)
    assert float((moved @ context.mT).abs().max()) < 1e-12
    assert torch.allclose(moved.norm(dim=-1), queries.norm(dim=-1))
    assert float((queries @ context.mT).abs().max()) > 0.1  # control
    predicted = moved @ torch.linalg.pinv(context) @ normal(generator_for(3), 50, pairs, 1)
    assert float(predicted.abs().max()) < 1e-10


def test_orthogonal_queries_need_room() -> None:
    with pytest.raises(InputError, match="6 pairs of 6 channels leave no direction; at most 5"):
        shifted(OrthogonalQueries(), pairs=6)


def test_repeated_queries_are_pairs_that_are_there() -> None:
    (context, queries), (same, moved) = shifted(RepeatedQueries())
    assert torch.equal(same, context)
    met = (moved[:, :, None] == context[:, None]).all(-1)
    assert (met.sum(-1) == 1).all()
    assert not met[:10, :, -1].any()  # the row of zeros is no pair
    counts = met[10:].sum((0, 1)).double()
    assert float(stats.chisquare(counts).pvalue) > 1e-3
    assert not (queries[:, :, None] == context[:, None]).all(-1).any()  # control


@pytest.mark.parametrize("pairs", [3, 9])
def test_a_shift_leaves_the_rest_of_a_task_alone(pairs: int) -> None:
    task = InContextRegression("t", Gaussian(), width=4, pairs=pairs, queries=5)
    moved = InContextRegression(
        "t", Gaussian(), width=4, pairs=pairs, queries=5, shift=RepeatedQueries()
    )
    one, other = (t.sample(20, generator_for(1)) for t in (task, moved))
    assert torch.equal(one.teachers, other.teachers)
    problem = moved.problem(other)
    assert torch.equal(problem.keys, task.problem(one).keys)
    assert torch.equal(problem.values, task.problem(one).values)
    known = torch.einsum("btk,bsk->bts", problem.queries[:, pairs:], problem.keys[:, :pairs])
    assert known.isfinite().all()
    exact = (problem.queries[:, pairs:, None] == problem.keys[:, None, :pairs]).all(-1)
    assert (exact.sum(-1) == 1).all()
    moments = prefix_moments(problem)
    assert math.isfinite(float(moments.gram.sum()))
