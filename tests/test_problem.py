"""The in-context problem and its moments, against loops and direct solves in numpy."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.problem import InContextProblem, PrefixMoments, prefix_moments, spectrum
from probe.sampling import generator_for, normal
from probe.tasks.base import Task

LAMBDA = 0.3


def random_problem(
    batch: int, length: int, d_k: int, d_v: int, rank: int | None = None, seed: int = 0
) -> InContextProblem:
    """Unrelated Gaussian numbers; `rank` confines the keys to a subspace."""
    generator = generator_for(seed, batch, length, d_k, d_v)
    keys = normal(generator, batch, length, d_k)
    if rank is not None:
        keys = keys[..., :rank] @ normal(generator, rank, d_k)
    values, queries = (normal(generator, batch, length, d) for d in (d_v, d_k))
    targets, oracle = (normal(generator, batch, length, d_v) for _ in range(2))
    return InContextProblem(keys, values, queries, targets, oracle, first=0)


def ridge_loop(problem: InContextProblem, ridge: float) -> np.ndarray:
    """C_t (G_t + ridge)^-1 q_t by one numpy solve per sequence and prefix, from the pairs."""
    keys, values, queries = (
        tensor.double().numpy() for tensor in (problem.keys, problem.values, problem.queries)
    )
    out = np.empty_like(values)
    for b in range(keys.shape[0]):
        for t in range(keys.shape[1]):
            past, seen = keys[b, : t + 1], values[b, : t + 1]
            gram = past.T @ past + ridge * np.eye(keys.shape[2])
            out[b, t] = np.linalg.solve(gram, past.T @ seen).T @ queries[b, t]
    return out


shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))


@given(shapes)
def test_prefix_moments_equal_a_loop(shape: tuple[int, int, int, int]) -> None:
    problem = random_problem(*shape)
    moments = prefix_moments(problem)
    keys, values = problem.keys.numpy(), problem.values.numpy()
    for b in range(shape[0]):
        for t in range(shape[1]):
            gram = sum(np.outer(keys[b, j], keys[b, j]) for j in range(t + 1))
            cross = sum(np.outer(values[b, j], keys[b, j]) for j in range(t + 1))
            np.testing.assert_allclose(moments.gram[b, t], gram, atol=1e-12)
            np.testing.assert_allclose(moments.cross[b, t], cross, atol=1e-12)


def test_moments_are_float64_for_float32_tokens(small_task: Task) -> None:
    problem = small_task.problem(small_task.sample(4, generator_for(0)))
    assert problem.keys.dtype == torch.float32
    moments = prefix_moments(problem)
    assert moments.gram.dtype == moments.cross.dtype == torch.float64
    exact = (problem.keys.double()[..., :, None] * problem.keys.double()[..., None, :]).sum(1)
    assert torch.allclose(moments.gram[:, -1], exact, rtol=1e-14, atol=0)
    rounded = (problem.keys[..., :, None] * problem.keys[..., None, :]).sum(1).double()
    assert not torch.allclose(rounded, exact, rtol=1e-14, atol=0)  # control: float32 sums differ


@given(shapes, st.sampled_from([None, 1, 2]))
def test_ridge_response_is_ridge_regression(
    shape: tuple[int, int, int, int], rank: int | None
) -> None:
    """f = 1 / (mu + lambda) at every prefix; prefixes shorter than d_k lack rank on purpose."""
    if rank is not None and rank >= shape[2]:
        rank = None
    problem = random_problem(*shape, rank=rank)
    eigen = spectrum(prefix_moments(problem), problem.queries)
    got = eigen.predict(lambda mu: 1 / (mu + LAMBDA))
    np.testing.assert_allclose(got, ridge_loop(problem, LAMBDA), atol=1e-9)


def test_ridge_control_another_lambda_is_another_answer() -> None:
    problem = random_problem(2, 8, 4, 3)
    eigen = spectrum(prefix_moments(problem), problem.queries)
    got = eigen.predict(lambda mu: 1 / (mu + 2 * LAMBDA)).numpy()
    assert np.abs(got - ridge_loop(problem, LAMBDA)).max() > 0.05


def test_pseudo_inverse_at_rank_deficient_prefixes() -> None:
    """f = 1 / mu over the present directions is numpy's minimum-norm least squares."""
    problem = random_problem(3, 7, 5, 2, rank=3)
    eigen = spectrum(prefix_moments(problem), problem.queries)
    got = eigen.predict(lambda mu: 1 / mu).numpy()
    keys, values, queries = (t.numpy() for t in (problem.keys, problem.values, problem.queries))
    for b in range(3):
        for t in range(7):
            fit, *_ = np.linalg.lstsq(keys[b, : t + 1], values[b, : t + 1], rcond=1e-9)
            np.testing.assert_allclose(got[b, t], fit.T @ queries[b, t], atol=1e-7)
    assert eigen.present.sum(-1).max() == 3
    assert eigen.present[:, 0].sum(-1).eq(1).all()


def test_rounding_noise_of_the_tokens_adds_no_rank() -> None:
    """Keys in a 3-dimensional subspace, rounded to 8 bits: their moments have full rank."""
    generator = generator_for(5)
    basis, _ = torch.linalg.qr(normal(generator, 6, 3))
    keys = (normal(generator, 4, 40, 3) @ basis.T).bfloat16().double()
    problem = InContextProblem(keys, keys, keys, keys, keys, first=0)
    moments = prefix_moments(problem)
    aware = spectrum(moments, keys, token_dtype=torch.bfloat16)
    fooled = spectrum(moments, keys, token_dtype=torch.float32)
    assert aware.present[:, -1].sum(-1).eq(3).all()
    assert fooled.present[:, -1].sum(-1).gt(3).all()  # control: float32's eps takes it for signal


@given(shapes)
def test_filtered_query_is_a_direct_solve(shape: tuple[int, int, int, int]) -> None:
    problem = random_problem(*shape)
    moments = prefix_moments(problem)
    got = spectrum(moments, problem.queries).filtered_query(lambda mu: 1 / (mu + LAMBDA))
    want = np.linalg.solve(
        moments.gram.numpy() + LAMBDA * np.eye(shape[2]), problem.queries.numpy()[..., None]
    )[..., 0]
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_filtered_query_keeps_directions_without_pairs() -> None:
    """With no pair at all (G + lambda)^-1 q = q / lambda, while the prediction is 0."""
    problem = random_problem(2, 3, 4, 2)
    nothing = PrefixMoments(torch.zeros(2, 3, 4, 4).double(), torch.zeros(2, 3, 2, 4).double())
    eigen = spectrum(nothing, problem.queries)
    kept = eigen.filtered_query(lambda mu: 1 / (mu + LAMBDA))
    assert torch.allclose(kept, problem.queries / LAMBDA)
    assert not eigen.present.any()
    assert eigen.predict(lambda mu: 1 / (mu + LAMBDA)).eq(0).all()


def test_identity_response_is_one_gradient_step() -> None:
    """f = eta gives eta C q, and f = 1 on G itself gives back the query."""
    problem = random_problem(2, 6, 3, 3)
    moments = prefix_moments(problem)
    eigen = spectrum(moments, problem.queries)
    step = 0.1 * torch.einsum("btvk,btk->btv", moments.cross, problem.queries)
    assert torch.allclose(eigen.predict(lambda mu: torch.full_like(mu, 0.1)), step)
    assert torch.allclose(eigen.filtered_query(torch.ones_like), problem.queries)


def test_swapped_context_changes_the_pairs_and_nothing_else() -> None:
    problem = random_problem(4, 5, 3, 2)
    swapped = problem.with_swapped_context()
    for name in ("keys", "values"):
        assert torch.equal(getattr(swapped, name)[1:], getattr(problem, name)[:-1])
        assert torch.equal(getattr(swapped, name)[0], getattr(problem, name)[-1])
        assert not torch.equal(getattr(swapped, name), getattr(problem, name))
    for name in ("queries", "targets", "oracle"):
        assert torch.equal(getattr(swapped, name), getattr(problem, name))
    assert swapped.first == problem.first


def test_another_sequence_is_a_permutation_of_whole_problems() -> None:
    problem = random_problem(4, 5, 3, 2)
    other = problem.of_another_sequence()
    for name in ("keys", "values", "queries", "targets", "oracle"):
        assert torch.equal(getattr(other, name).roll(-1, 0), getattr(problem, name))
        assert not torch.equal(getattr(other, name), getattr(problem, name))
    # Every sequence still answers its own question, only under another index.
    there = ridge_loop(other, LAMBDA)
    np.testing.assert_allclose(np.roll(there, -1, 0), ridge_loop(problem, LAMBDA), atol=1e-12)
    here = ridge_loop(problem.with_swapped_context(), LAMBDA)
    assert np.abs(here - ridge_loop(problem, LAMBDA)).max() > 0.1
    assert np.abs(here - there).max() > 0.1


@given(st.sampled_from(["keys", "values", "queries", "targets", "oracle"]))
def test_misshapen_problems_are_refused(name: str) -> None:
    """The shape checks are alive: one axis too long in any field is an error."""
    good = random_problem(2, 5, 3, 2)
    parts = {field.name: getattr(good, field.name) for field in fields(good)}
    InContextProblem(**parts)
    parts[name] = torch.cat([parts[name], parts[name][:, :1]], 1)
    with pytest.raises(TypeError, match=name):
        InContextProblem(**parts)
