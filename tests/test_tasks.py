"""Tasks: the laws of their teachers, noise and tokens, and the problems that they state."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe import registry, tasks
from probe.errors import InputError
from probe.problem import InContextProblem
from probe.sampling import generator_for, normal
from probe.tasks.base import Sequences, asked_tokens, find_task, growing_windows, shifted
from probe.tasks.functions import FunctionClass
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.nonlinear_dynamics import FeatureMap, NonlinearDynamics
from probe.tasks.partial_observation import PartialObservation, delay_embedding
from probe.tasks.teachers import (
    Contracting,
    Fixed,
    GivenSpectrum,
    Nudged,
    Orthogonal,
    nudged,
)

ALL = sorted(registry.discover(tasks))
OF_STATES = (LinearDynamics, NonlinearDynamics, PartialObservation)
DYNAMICS = [name for name in ALL if isinstance(find_task(name), OF_STATES)]


def draw(task: object, count: int = 64, seed: int = 0) -> Sequences:
    return task.sample(count, generator_for(seed))  # type: ignore[attr-defined]


def residual(sample: Sequences) -> torch.Tensor:
    """Observation minus its expectation: the noise, where nothing is clipped."""
    return sample.observations[:, 1:] - sample.oracle


def largest_correlation(noise: torch.Tensor) -> float:
    """Largest |correlation| between the noise of two sequences."""
    table = np.corrcoef(noise.flatten(1).numpy())
    return float(np.abs(table - np.eye(len(table))).max())


# Teachers


@given(st.integers(1, 12))
def test_orthogonal_teachers_are_orthogonal(width: int) -> None:
    w = Orthogonal().draw(5, width, generator_for(width))
    assert torch.allclose(w @ w.mT, torch.eye(width).double().expand(5, -1, -1), atol=1e-12)


def trace_moments(w: torch.Tensor) -> list[float]:
    """E tr W, E (tr W)^2, E (tr W)^4 and E tr W^2."""
    trace = w.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (w @ w).diagonal(dim1=-2, dim2=-1).sum(-1)
    return [float(x.mean()) for x in (trace, trace**2, trace**4, square)]


def test_orthogonal_teachers_have_haar_trace_moments() -> None:
    """On O(10): E tr W = 0, E (tr W)^2 = 1, E (tr W)^4 = 3, E tr W^2 = 1 (Diaconis, Evans 2001)."""
    haar = trace_moments(Orthogonal().draw(20_000, 10, generator_for(1)))
    assert haar == pytest.approx([0, 1, 3, 1], abs=0.15)
    plain, _ = torch.linalg.qr(normal(generator_for(1), 20_000, 10, 10))
    assert trace_moments(plain) != pytest.approx([0, 1, 3, 1], abs=0.15)  # control: signs not fixed
    signs = torch.linalg.det(Orthogonal().draw(4_000, 10, generator_for(2))).sign()
    assert abs(float(signs.mean())) < 0.06  # both halves of O(10)


def test_haar_is_invariant_under_a_fixed_rotation() -> None:
    """The first entry of W and of W Q have the same law: variance 1/d and kurtosis 3d/(d+2)."""
    w = Orthogonal().draw(20_000, 10, generator_for(3))
    turn = Orthogonal().draw(1, 10, generator_for(4))[0]
    for entry in (w[:, 0, 0], (w @ turn)[:, 0, 0], (turn @ w)[:, 3, 7]):
        assert float(entry.square().mean()) == pytest.approx(0.1, abs=0.004)
        kurtosis = float(entry.pow(4).mean() / entry.square().mean() ** 2)
        assert kurtosis == pytest.approx(30 / 12, abs=0.1)


def test_contracting_teachers_have_the_stated_eigenvalues() -> None:
    w = Contracting().draw(500, 10, generator_for(0))
    eigenvalues = torch.linalg.eigvals(w)
    assert eigenvalues.imag.abs().max() < 1e-3
    real = eigenvalues.real.sort().values
    assert real[:, 0].min() > 0.3 - 1e-3
    assert torch.allclose(real[:, -1], torch.tensor(0.9).double(), atol=1e-3)
    others = real[:, :-1].flatten()
    assert float(others.mean()) == pytest.approx(0.6, abs=0.01)  # U(.3, .9), the pinned one apart
    assert float(others.std()) == pytest.approx(0.6 / 12**0.5, abs=0.01)
    haar = torch.linalg.eigvals(Orthogonal().draw(5, 10, generator_for(0)))
    assert haar.imag.abs().max() > 0.1  # control


def test_contracting_teachers_are_not_symmetric() -> None:
    """M is Gaussian, not orthogonal; so the largest singular value exceeds .9."""
    w = Contracting().draw(50, 6, generator_for(0))
    assert torch.linalg.matrix_norm(w, 2).min() > 0.91


def test_given_spectrum_repeats_to_fill_the_width() -> None:
    w = GivenSpectrum((1.0, -0.5, 0.25)).draw(20, 5, generator_for(0))
    want = torch.tensor([-0.5, -0.5, 0.25, 1.0, 1.0]).double()
    assert torch.allclose(torch.linalg.eigvalsh(w), want.expand(20, 5), atol=1e-12)
    assert torch.allclose(w, w.mT)
    assert not torch.allclose(w[0], w[1], atol=0.1)


def test_nudged_teacher_stays_orthogonal_and_close() -> None:
    fixed = Fixed.from_seed(10, seed=0)
    near = Nudged(fixed, 0.05).draw(500, 10, generator_for(0))
    assert torch.allclose(near @ near.mT, torch.eye(10).double().expand(500, -1, -1), atol=1e-10)
    # |exp(eps K) - I|_F^2 ~ eps^2 |K|_F^2; 90 off-diagonal standard normal entries.
    distance = (near - fixed.matrix).square().sum((1, 2))
    assert float(distance.mean()) == pytest.approx(0.05**2 * 90, rel=0.05)
    assert (near[0] - near[1]).abs().max() > 0.01
    still = Nudged(fixed, 0.0).draw(2, 10, generator_for(0))
    assert torch.allclose(still, fixed.matrix.expand(2, -1, -1), atol=1e-12)


def test_teachers_are_nudged() -> None:
    law = find_task("linear").teacher
    centre = nudged(law, 10, 0.05, seed=3).base.matrix
    assert torch.allclose(centre @ centre.T, torch.eye(10).double(), atol=1e-12)
    assert torch.equal(centre, nudged(law, 10, 0.05, seed=3).base.matrix)
    assert not torch.equal(centre, nudged(law, 10, 0.05, seed=4).base.matrix)
    fixed = find_task("fixed-teacher")
    assert nudged(fixed.teacher, 10, 0.05).base is fixed.teacher
    w = draw(fixed, 3).teachers
    assert torch.equal(w[0], w[1])
    turned = draw(replace(fixed, teacher=nudged(fixed.teacher, 10, 0.05)), 3).teachers
    assert not torch.allclose(turned[0], turned[1], atol=0.01)


# Linear dynamics


def test_oracle_is_the_teacher_on_the_state() -> None:
    sample = draw(find_task("linear"))
    states = sample.observations[:, :-1].double().numpy()
    want = np.einsum("bij,btj->bti", sample.teachers.double().numpy(), states)
    np.testing.assert_allclose(sample.oracle, want, atol=1e-5)
    other = np.einsum("bij,btj->bti", np.roll(sample.teachers.numpy(), 1, 0), states)
    assert np.abs(sample.oracle.numpy() - other).max() > 0.5  # control


def test_noise_has_the_stated_size_and_start_the_stated_law() -> None:
    sample = draw(find_task("linear"), 500)
    noise = residual(sample)
    assert float(noise.std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(noise.mean())) < 1e-4
    first = sample.observations[:, 0]
    assert float(first.abs().max()) <= 1.0
    assert float(first.var()) == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("name", ["linear", "partial", "nonlinear"])
def test_noise_is_independent_between_sequences(name: str) -> None:
    """500 numbers per sequence: correlations are N(0, 1/500), the largest of 2,016 about .17."""
    task = find_task(name)
    noise = residual(draw(task))
    if name == "partial":  # the residual holds the hidden noise through each sequence's own view
        noise = noise - noise.mean((0, 1))
    assert largest_correlation(noise) < 0.3
    common = noise + 3 * noise[:1]
    assert largest_correlation(common) > 0.8  # control: noise that the batch shares


def test_noise_is_independent_between_positions_and_channels() -> None:
    noise = residual(draw(find_task("linear"), 2_000)).double()
    lagged = float((noise[:, 1:] * noise[:, :-1]).mean() / noise.var())
    assert abs(lagged) < 0.005
    table = np.corrcoef(noise.flatten(0, 1).T.numpy())
    assert np.abs(table - np.eye(10)).max() < 0.02


def test_clip_and_its_share() -> None:
    expanding = LinearDynamics("x", Fixed(2 * torch.eye(3).double()), width=3, length=6, clip=3.0)
    sample = draw(expanding, 200)
    assert float(sample.observations.abs().max()) == 3.0
    # Doubling from |s_0| ~ U(0, 1): |2^k s_0| > 3, and a clipped state is clipped ever after.
    share = np.mean([max(0.0, 1 - 3 / 2**k) for k in range(1, 7)])
    assert sample.clipped_share == pytest.approx(share, abs=0.03)
    assert draw(replace(expanding, clip=1e6), 200).clipped_share == 0.0
    assert draw(find_task("linear"), 500).clipped_share < 0.01
    assert 0.01 < draw(find_task("contracting"), 500).clipped_share < 0.15


def check_alignment(problem: InContextProblem, features: torch.Tensor, sample: Sequences) -> None:
    s = sample.observations
    assert problem.first == 1
    assert problem.keys[:, 0].eq(0).all()
    assert torch.equal(problem.keys[:, 1:], features[:, :-1])
    assert torch.equal(problem.values, s[:, :-1])
    assert torch.equal(problem.queries, features)
    assert torch.equal(problem.targets, s[:, 1:])
    assert torch.equal(problem.oracle, sample.oracle)


@pytest.mark.parametrize("name", DYNAMICS)
def test_problem_alignment(name: str) -> None:
    """k_j = feature_{j-1}, v_j = s_j, q_t = feature_t, y_t = s_{t+1}."""
    task = find_task(name)
    sample = draw(task, 3)
    problem = task.problem(sample)
    check_alignment(problem, sample.features, sample)
    if isinstance(task, LinearDynamics):
        check_alignment(problem, sample.observations[:, :-1], sample)
    with pytest.raises(AssertionError):  # control: one position off
        check_alignment(replace(problem, keys=problem.queries), sample.features, sample)


@pytest.mark.parametrize("name", ALL)
def test_every_task_has_the_declared_widths(name: str) -> None:
    task = find_task(name)
    sample = draw(task, 4)
    assert task.name == name
    assert sample.tokens.shape == (4, task.length, task.width_in)
    positions = len(range(task.length)[asked_tokens(task)])
    assert sample.observations.shape[:2] == (4, positions + 1)
    problem = task.problem(sample)
    assert problem.targets.shape == problem.oracle.shape == (4, positions, task.width_out)
    assert problem.keys.shape == problem.queries.shape
    hidden_matrix = not isinstance(task.teacher, FunctionClass) or task.teacher.is_linear
    for name, value in vars(sample).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.float32
            assert value.isfinite().all() == (name != "teachers" or hidden_matrix)
    assert 0 <= sample.clipped_share < 0.2
    # The oracle knows what the pairs would teach: it leaves little but noise and replaced labels.
    left = (problem.targets - problem.oracle).square().mean() / problem.targets.square().mean()
    assert float(left) < 0.2
    assert task.params()["length"] == task.length
    assert "name" not in task.params()


def digest(sample: Sequences) -> str:
    parts = [sample.tokens, sample.observations, sample.oracle, sample.teachers]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


@pytest.mark.parametrize("name", ALL)
def test_a_seed_is_the_data_and_shards_differ(name: str) -> None:
    task = find_task(name)
    paths = ((7, 0, 0), (7, 0, 0), (7, 0, 1), (8, 0, 0))
    once, again, shard, other = (task.sample(2, generator_for(*path)) for path in paths)
    assert digest(once) == digest(again)
    assert len({digest(once), digest(shard), digest(other)}) == 3


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 3))
def test_streams_of_different_places_differ(path: list[int], at: int) -> None:
    moved = list(path)
    moved[at % len(path)] += 1
    here, there = (normal(generator_for(3, *p), 4) for p in (path, moved))
    assert torch.equal(here, normal(generator_for(3, *path), 4))
    assert not torch.equal(here, there)


def test_constructed_tokens_are_four_slots() -> None:
    """e_t = (0, s_t, s_t, s_{t-1}), with s_{-1} = 0."""
    task = find_task("linear-constructed")
    sample = draw(task, 4)
    states = sample.observations[:, :-1]
    slots = sample.tokens.unflatten(-1, (4, 10))
    assert slots[:, :, 0].eq(0).all()
    assert torch.equal(slots[:, :, 1], states)
    assert torch.equal(slots[:, :, 2], states)
    assert slots[:, 0, 3].eq(0).all()
    assert torch.equal(slots[:, 1:, 3], states[:, :-1])
    raw = draw(find_task("linear"), 4)
    assert torch.equal(raw.tokens, states)  # the layout changes no draw
    assert torch.equal(slots[:, :, 3], task.problem(sample).keys)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
def test_shifted_and_constructed_widths(batch: int, length: int, width: int) -> None:
    states = normal(generator_for(0), batch, length, width)
    later = shifted(states)
    assert torch.equal(later[:, 1:], states[:, :-1])
    assert later[:, 0].eq(0).all()
    tokens = ConstructedTokens().tokens(states)
    assert tokens.shape[-1] == ConstructedTokens().width(width)


# Partial observation


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 7))
def test_delay_embedding(length: int, width: int, depth: int) -> None:
    sequence = normal(generator_for(0), 2, length, width)
    slots = delay_embedding(sequence, depth).unflatten(-1, (depth, width))
    for t in range(length):
        for lag in range(depth):
            want = sequence[:, t - lag] if lag <= t else torch.zeros(2, width)
            assert torch.equal(slots[:, t, lag], want.to(slots))


def test_partial_observation_is_a_view_of_the_hidden_dynamics() -> None:
    task = find_task("partial")
    assert isinstance(task, PartialObservation)
    noise_free = replace(task, noise=0.0)
    sample = draw(noise_free, 200)
    # o_t = 0.5 C h_t: the variance of an entry is 0.25 E |h|^2 = 0.25 * 15 / 3 at the start.
    assert float(sample.observations[:, 0].var()) == pytest.approx(1.25, rel=0.15)
    # The expectation knows C and h: what is left is 0.5 C xi with xi ~ 0.01 N(0, I).
    left = sample.observations[:, 1:] - sample.oracle
    assert float(left.var()) == pytest.approx(0.25 * 15 * 1e-4, rel=0.1)
    noisy = draw(task, 200)
    left = noisy.observations[:, 1:] - noisy.oracle
    assert float(left.var()) == pytest.approx(0.25 * 15 * 1e-4 + 1e-4, rel=0.1)
    assert noisy.features.shape[-1] == task.depth * task.observed


# Nonlinear dynamics


def test_features_are_normalised_and_the_tanh_gelu_is_meant() -> None:
    phi = FeatureMap.from_seed(4, hidden=7, seed=0)
    x = normal(generator_for(1), 3, 5, 4)
    got = phi(x)
    assert torch.allclose(got.norm(dim=-1), torch.ones(3, 5).double())
    inner = x.numpy() @ phi.inner.numpy()
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    mapped = gelu @ phi.outer.numpy()
    want = mapped / np.linalg.norm(mapped, axis=-1, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-12)
    relu = np.maximum(inner, 0) @ phi.outer.numpy()
    assert np.abs(got.numpy() - relu / np.linalg.norm(relu, axis=-1, keepdims=True)).max() > 0.01


def test_nonlinear_dynamics_are_linear_in_the_features() -> None:
    task = find_task("nonlinear")
    assert isinstance(task, NonlinearDynamics)
    sample = draw(task, 100)
    want = torch.einsum("bij,btj->bti", sample.teachers, task.feature_map(sample.tokens))
    assert torch.allclose(sample.oracle, want, atol=1e-6)
    assert float(residual(sample).std()) == pytest.approx(0.01, rel=0.05)
    assert float(sample.observations[:, 0].abs().max()) <= 0.25
    assert "feature_map" not in task.params()
    linear = torch.einsum("bij,btj->bti", sample.teachers, sample.tokens)
    assert (sample.oracle - linear).abs().max() > 0.1  # control


def test_published_constants() -> None:
    fixed = find_task("von-oswald-2023/fixed-teacher")
    w = fixed.teacher.matrix
    assert torch.allclose(w @ w.T, torch.eye(10).double(), atol=1e-5)
    phi = find_task("von-oswald-2023/nonlinear").feature_map
    assert phi.inner.shape == (10, 40)
    assert phi.outer.shape == (40, 10)
    for matrix in (phi.inner, phi.outer):
        assert float(matrix.std()) == pytest.approx(1.1, rel=0.1)


# The rest


def test_windows_of_the_published_task() -> None:
    """10 channels, 50 positions: t = 2..14, 5..49, 15..49 and 15..45, counted from 1."""
    w = find_task("linear").windows
    assert (w.unsolved, w.judged, w.solved, w.probed) == ((1, 14), (4, 49), (14, 49), (14, 45))


@given(st.integers(1, 30), st.integers(9, 300))
def test_windows_stay_inside(width: int, length: int) -> None:
    w = growing_windows(width, length)
    assert w.unsolved[1] == w.solved[0]
    for start, stop in (w.unsolved, w.judged, w.solved, w.probed):
        assert 0 <= start < stop <= length


def test_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown task 'lineer'; known: .*linear") as caught:
        find_task("lineer")
    assert "\n" not in str(caught.value)
