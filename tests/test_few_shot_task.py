"""Few-shot pairs: what is drawn, where it stands, and what least squares makes of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import InputError
from probe.few_shot.losses import LossByPair, pairs_to_recover, squared_errors
from probe.few_shot.references import AllTransitions, Forgetting, LeastSquares, WithReset
from probe.problem import prefix_moments
from probe.sampling import generator_for
from probe.statistics import BLOCKS
from probe.tasks.base import Sequences, Spaced, asked_tokens
from probe.tasks.few_shot import Bare, FewShot, TaskSwitch, WithEos, WithPrefix

EOS = WithEos(torch.tensor([7.0, 8.0, 9.0]))
PREFIX = WithPrefix(EOS, torch.arange(6.0).view(2, 3))
TASK = FewShot("pairs", width=3, pairs=12)


def draw(task: FewShot, count: int = 64, seed: int = 0) -> Sequences:
    return task.sample(count, generator_for(seed))


def test_layouts_put_their_tokens_around_the_same_pairs() -> None:
    x, y = TASK.split(draw(TASK))
    eos = draw(replace(TASK, layout=EOS)).tokens
    assert torch.equal(eos[:, 0::3], x) and torch.equal(eos[:, 1::3], y)
    assert torch.equal(eos[:, 2::3], EOS.token.expand(64, 12, 3))
    prefix = draw(replace(TASK, layout=PREFIX)).tokens
    assert torch.equal(prefix[:, :2], PREFIX.prefix.expand(64, 2, 3))
    assert torch.equal(prefix[:, 2:], eos)
    assert not torch.equal(TASK.split(draw(TASK, seed=1))[0], x)  # control: another seed


@pytest.mark.parametrize("layout", [Bare(), EOS, PREFIX])
def test_the_problem_knows_the_pairs_before_each_query(layout) -> None:
    task = replace(TASK, layout=layout)
    sequences = draw(task)
    x, y = task.split(sequences)
    problem = task.problem(sequences)
    moments = prefix_moments(problem)
    for pair in (0, 1, 7):
        known = torch.einsum("bpi,bpj->bij", y[:, :pair].double(), x[:, :pair].double())
        assert torch.allclose(moments.cross[:, pair], known)
        assert torch.equal(problem.queries[:, pair], x[:, pair])
        assert torch.equal(problem.targets[:, pair], y[:, pair])
    assert not problem.queries[0].eq(0).any()
    assert isinstance(task, Spaced)
    assert torch.equal(sequences.tokens[:, asked_tokens(task)], problem.queries)
    first = layout.before + layout.stride * torch.arange(task.pairs)
    assert torch.equal(torch.arange(task.length)[task.asked], first)


def test_inputs_and_noise_are_drawn_independently() -> None:
    task = replace(TASK, pairs=40, noise=0.01)
    sequences = draw(task, 400)
    x, y = task.split(sequences)
    noise = y - torch.einsum("bij,bpj->bpi", sequences.teachers, x)
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    assert float(x.abs().max()) < 1 and float(x.square().mean()) == pytest.approx(1 / 3, rel=0.05)
    for drawn in (noise, x):
        between_sequences = torch.corrcoef(drawn.flatten(1).double())
        between_places = torch.corrcoef(drawn.flatten(1).double().T)
        for table in (between_sequences, between_places):
            assert float(table.fill_diagonal_(0).abs().max()) < 0.5
    reused = torch.cat([x[:200], x[:200]])  # control: one draw used twice
    assert float(torch.corrcoef(reused.flatten(1).double()).fill_diagonal_(0).abs().max()) > 0.99


def test_the_matrix_changes_at_the_switch() -> None:
    task = replace(TASK, course=TaskSwitch(5), noise=0.0)
    sequences = draw(task)
    x, y = task.split(sequences)
    last = torch.einsum("bij,bpj->bpi", sequences.teachers, x)
    assert torch.allclose(y[:, 5:], last[:, 5:], atol=1e-6)
    assert not torch.isclose(y[:, :5], last[:, :5], atol=1e-3).all(-1).any()
    identity = sequences.teachers @ sequences.teachers.mT
    assert torch.allclose(identity, torch.eye(3).expand_as(identity), atol=1e-5)


@pytest.mark.parametrize("after", [0, 12, -1])
def test_a_switch_outside_the_pairs_is_refused(after: int) -> None:
    with pytest.raises(InputError, match=f"a switch after {after} of 12 pairs"):
        replace(TASK, course=TaskSwitch(after))


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 5), st.integers(1, 4))
def test_shapes(width: int, pairs: int, before: int, count: int) -> None:
    layout = WithPrefix(WithEos(torch.zeros(width)), torch.ones(before, width))
    task = FewShot("any", layout=layout, width=width, pairs=pairs)
    sequences = draw(task, count)
    assert sequences.tokens.shape == (count, before + 3 * pairs, width)
    assert task.length == before + 3 * pairs
    for start, stop in vars(task.windows).values():
        assert 0 <= start < stop <= len(range(task.length)[task.asked])


def test_least_squares_is_the_direct_solution() -> None:
    ridge = 0.01
    task = replace(TASK, course=TaskSwitch(5))
    sequences = draw(task)
    x, y = (part.double() for part in task.split(sequences))

    def solved(first: int, pair: int) -> torch.Tensor:
        keys, values = x[:, first:pair], y[:, first:pair]
        gram = keys.mT @ keys + ridge * torch.eye(3, dtype=torch.float64)
        return (values.mT @ keys @ torch.linalg.solve(gram, x[:, pair, :, None]))[..., 0]

    alone, reset = LeastSquares(ridge)(task, sequences), WithReset(ridge)(task, sequences)
    for pair in (3, 8):
        assert torch.allclose(alone[:, pair].double(), solved(0, pair), atol=1e-5)
    assert torch.allclose(reset[:, 8].double(), solved(5, 8), atol=1e-5)
    assert not torch.allclose(reset[:, 8], alone[:, 8], atol=1e-2)  # control
    remembers = Forgetting(ridge, 1.0)(task, sequences)
    assert torch.allclose(remembers, alone.double(), atol=1e-5)


def test_references_rank_as_they_must() -> None:
    """Knowing the switch beats forgetting, which beats remembering; false transitions cost most."""
    task = replace(TASK, course=TaskSwitch(10), pairs=30)
    sequences = draw(task, 256)
    learners = (WithReset(1e-3), Forgetting(1e-3, 0.7), LeastSquares(1e-3), AllTransitions(1.0))
    late = [float(squared_errors(one, task, sequences)[:, 20:].mean()) for one in learners]
    assert late == sorted(late) and late[1] > 2 * late[0]


def test_pairs_to_recover_counts_to_the_last_large_excess() -> None:
    def constant(losses: list[float]) -> LossByPair:
        return LossByPair(torch.tensor([losses] * BLOCKS).double(), torch.ones(BLOCKS).double())

    best, none = constant([0.0] * 6), constant([1.0] * 6)
    for losses, expected in (
        ([0, 0, 1, 1, 0.05, 0], 2),
        ([0, 0, 1, 0, 1, 0], 3),
        ([1, 1, 0, 0, 0, 0], 0),
        ([0, 0, 1, 1, 1, 1], 4),
    ):
        found = pairs_to_recover(constant(losses), best, none, switch=2, tolerance=0.1)
        assert found.value == found.lo == found.hi == expected
