"""The controls of every run: a twin with nothing learned, foreign contexts, a planted solver."""

import pytest
import torch

from probe.capture import capture, predictor_only
from probe.sampling import generator_for
from probe.solvers.ridge import shrinkage
from probe.stages import Context
from probe.views import (
    ANOTHER,
    PLANTED,
    SUBJECT,
    SWAPPED,
    TWIN,
    all_views,
    permuted_twin,
    planted_mesa,
)


@pytest.fixture
def context(small_task) -> Context:
    sequences = small_task.sample(5, generator_for(0))
    return Context(sequences, small_task.problem(sequences))


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
def test_a_twin_keeps_the_entries_of_every_tensor(tiny_model, kind) -> None:
    model = tiny_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = permuted_twin(model, seed=3)
    moved = 0
    for name, tensor in twin.state_dict().items():
        assert tensor.shape == before[name].shape
        assert torch.equal(tensor.flatten().sort().values, before[name].flatten().sort().values)
        moved += not torch.equal(tensor, before[name])
    assert moved >= 0.5 * len(before)
    # The subject itself is left as it was, and the same seed gives the same twin.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again, other = permuted_twin(model, seed=3), permuted_twin(model, seed=4)
    tokens = torch.ones(2, 5, 3)
    assert torch.equal(twin(tokens), again(tokens))
    assert not torch.equal(twin(tokens), other(tokens))
    assert not torch.allclose(twin(tokens), model(tokens), rtol=1e-2)


@pytest.mark.parametrize("penalty", [0.02, 1.5])
def test_the_planted_layer_is_the_ridge_solver(context, penalty) -> None:
    planted = planted_mesa(context.problem, penalty)
    solver = context.spectrum.predict(lambda mu: shrinkage(mu, penalty) / mu)
    assert planted.dtype == context.problem.values.dtype
    assert torch.allclose(planted.double(), solver, rtol=1e-3, atol=1e-5)
    wrong = context.spectrum.predict(lambda mu: shrinkage(mu, 3 * penalty) / mu)
    assert not torch.allclose(planted.double(), wrong, rtol=1e-3, atol=1e-5)


def test_every_view_pairs_a_problem_with_what_a_model_said(context, tiny_model) -> None:
    model = tiny_model("softmax")
    tokens = context.sequences.tokens
    captures = {
        SUBJECT: capture(model, tokens, 5),
        TWIN: capture(permuted_twin(model, 0), tokens, 5),
    }
    seen = {name: view(context, captures) for name, view in all_views(0.3).items()}
    assert set(seen) == {SUBJECT, TWIN, SWAPPED, ANOTHER, PLANTED}
    for name in (SUBJECT, SWAPPED, ANOTHER):
        assert torch.equal(seen[name][1].output, captures[SUBJECT].output)
    assert torch.equal(seen[TWIN][1].output, captures[TWIN].output)
    assert torch.equal(seen[PLANTED][1].output, planted_mesa(context.problem, 0.3))
    own = context.problem
    assert seen[SUBJECT][0].problem is own and seen[TWIN][0].problem is own
    swapped, another = seen[SWAPPED][0].problem, seen[ANOTHER][0].problem
    assert torch.equal(swapped.values, own.values.roll(1, 0))
    assert torch.equal(swapped.queries, own.queries)
    assert torch.equal(another.queries, own.queries.roll(1, 0))
    assert not torch.equal(another.queries, own.queries)


def test_a_predictor_has_no_layers() -> None:
    said = torch.ones(2, 5, 3)
    seen = predictor_only(said)
    assert torch.equal(seen.output, said)
    assert len(seen.layers) == len(seen.updates) == len(seen.readouts) == 0
