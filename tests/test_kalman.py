"""The Kalman bound and the depth of delay embeddings, against independent solves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.kalman import StateSpace, kalman
from probe.sampling import generator_for, normal
from probe.sequential_ridge import one_step_ahead
from probe.tasks.base import find_task
from probe.tasks.partial_observation import (
    PartialObservation,
    choose_depth,
    delay_embedding,
)
from probe.tasks.teachers import Orthogonal

SMALL = PartialObservation("small", Orthogonal(), hidden=4, observed=2, length=20, depth=2)


def dense_forecast(system: StateSpace, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the next observation, from the covariance of all of them."""
    move, view = system.transition[0].double(), system.view[0].double()
    count, width = seen.shape[0] + 1, view.shape[0]
    hidden = move.shape[0]
    states = [[torch.zeros(hidden, hidden).double() for _ in range(count)] for _ in range(count)]
    spread = system.start**2 * torch.eye(hidden).double()
    for t in range(count):
        for later in range(t, count):
            states[later][t] = torch.linalg.matrix_power(move, later - t) @ spread
            states[t][later] = states[later][t].T
        spread = move @ spread @ move.T + system.process**2 * torch.eye(hidden).double()
    rows = [torch.cat([view @ one @ view.T for one in row], 1) for row in states]
    whole = torch.cat(rows) + system.measurement**2 * torch.eye(count * width).double()
    past = (count - 1) * width
    gain = torch.linalg.solve(whole[:past, :past], whole[:past, past:]).T
    return gain @ seen.double().flatten(), whole[past:, past:] - gain @ whole[:past, past:]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
def test_the_filter_is_the_gaussian_conditional(
    observed: int, hidden: int, length: int, seed: int
) -> None:
    generator = generator_for(seed)
    system = StateSpace(
        Orthogonal().draw(2, hidden, generator),
        normal(generator, 2, observed, hidden),
        process=0.3,
        measurement=0.2,
        start=0.7,
    )
    seen = normal(generator, 2, length, observed)
    forecast = kalman(system, seen)
    mean, covariance = dense_forecast(system, seen[0])
    assert torch.allclose(forecast.mean[0, -1], mean, atol=1e-9)
    assert torch.allclose(forecast.covariance[0, -1], covariance, atol=1e-9)
    other, _ = dense_forecast(replace(system, process=2.0, measurement=1.0), seen[0])
    assert length == 1 or not torch.allclose(forecast.mean[0, -1], other, atol=1e-6)  # Control.


def test_without_noise_the_hidden_state_is_found() -> None:
    """4 hidden and 2 observed channels: two observations determine the state."""
    generator = generator_for(0)
    move, view = Orthogonal().draw(8, 4, generator), normal(generator, 8, 2, 4)
    states = [normal(generator, 8, 4)]
    for _ in range(12):
        states.append(torch.einsum("bij,bj->bi", move, states[-1]))
    seen = torch.einsum("boh,bth->bto", view, torch.stack(states, 1))
    forecast = kalman(StateSpace(move, view, 0.0, 1e-5, 1.0), seen[:, :-1])
    error = (forecast.mean - seen[:, 1:]).abs().amax((0, 2))
    assert float(error[0]) > 0.1 > 1e-2 > float(error[6:].max())


def test_innovations_are_white_and_as_large_as_they_are_said_to_be() -> None:
    task = replace(SMALL, noise=0.1)
    sequences = task.sample(4000, generator_for(1))
    forecast = task.bound(sequences)
    factor = torch.linalg.cholesky(forecast.covariance)
    innovation = sequences.observations[:, 1:] - forecast.mean
    white = torch.linalg.solve_triangular(factor, innovation[..., None], upper=False)[..., 0]
    joined = white.flatten(1)
    covariance = joined.mT @ joined / len(joined)
    assert torch.allclose(covariance, torch.eye(len(covariance)).double(), atol=0.12)
    plain = innovation.flatten(1).double()  # Control: without the covariance they are not.
    plain = plain / plain.std()
    other = plain.mT @ plain / len(plain)
    assert not torch.allclose(other, torch.eye(len(other)).double(), atol=0.12)


def test_the_bound_lies_between_the_oracle_and_ridge() -> None:
    task = find_task("partial")
    assert isinstance(task, PartialObservation)
    sequences = task.sample(64, generator_for(2))
    targets = sequences.observations[:, 1:]
    ridge = one_step_ahead(sequences.features, targets, torch.tensor([3.0], dtype=torch.float64))[0]

    def loss(prediction: torch.Tensor) -> float:
        return float(0.5 * (prediction - targets).square().sum(-1).mean())

    assert loss(sequences.oracle) < loss(task.bound(sequences).mean) < 0.2 * loss(ridge)


@given(st.integers(1, 5), st.integers(2, 9), st.integers(1, 3))
def test_one_step_ahead_is_ridge_at_every_prefix(width: int, length: int, outputs: int) -> None:
    generator = generator_for(width, length)
    features = normal(generator, 2, length, width)
    following = normal(generator, 2, length, outputs)
    ridges = torch.tensor([0.1, 2.0], dtype=torch.float64)
    said = one_step_ahead(features, following, ridges)
    for place, ridge in enumerate(ridges):
        for t in range(length):
            x, y = features[0, :t], following[0, :t]
            weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(width), x.T @ y)
            assert torch.allclose(said[place, 0, t], features[0, t] @ weights, atol=1e-9)
    assert not torch.allclose(said[0], said[1])  # Control.


def test_the_depth_of_least_held_out_loss_is_chosen() -> None:
    """4 hidden and 2 observed channels: two observations are needed, more average out noise."""
    task = replace(SMALL, noise=1e-4, length=40)
    choice = choose_depth(task, seed=0, deepest=6)
    assert choice.depth >= 2 and len(choice.losses) == len(choice.ridges) == 6
    assert choice.losses[choice.depth - 1] == min(choice.losses)
    assert choice.losses[0] > 2 * choice.losses[1]
    assert task.with_chosen_depth(0).depth == choose_depth(task, 0).depth
    assert replace(task, depth=5).with_chosen_depth(0) == task.with_chosen_depth(0)
    assert choose_depth(task, seed=0, deepest=6) == choice


def test_one_delay_is_the_observation() -> None:
    sequences = SMALL.sample(3, generator_for(0))
    assert torch.equal(delay_embedding(sequences.tokens, 1), sequences.tokens)
    assert sequences.views.shape == (3, 2, 4)
    with pytest.raises(AttributeError):
        find_task("linear").sample(1, generator_for(0)).views  # noqa: B018
