"""The problem of a head and its explanations, against direct solves and other libraries."""

import math

import pytest
import torch
from sklearn.linear_model import Ridge

from probe.atlas.explanations import (
    MEMBERS,
    SHUFFLED,
    STEPS,
    TEMPERATURES,
    Penalties,
    explanations,
    penalties_for,
    planted_ridge,
    planted_step,
)
from probe.atlas.problem import HeadProblem, answers, derangements, pose
from probe.atlas.scores import ROWS, Sums, products, scores
from probe.mesa_layer import ForgetData, mesa_layer
from probe.models.hooked import Heads
from probe.sampling import generator_for, normal, uniform

BATCH, TIME, HEADS, WIDTH = 3, 14, 2, 4
AT = torch.tensor([3, 7, 13])


def heads(seed: int = 0, gated: bool = False) -> Heads:
    generator = generator_for(seed)
    q, k, v, z = (normal(generator, BATCH, TIME, HEADS, WIDTH) for _ in range(4))
    gates = (uniform(generator, 0.2, 1.0, BATCH, TIME, HEADS) for _ in range(2))
    return Heads(q, k, v, z, *gates) if gated else Heads(q, k, v, z)


def row(group: str, form: str) -> int:
    return next(i for i, one in enumerate(MEMBERS) if (one.group, one.form) == (group, form))


def explained(problem: HeadProblem, penalties: Penalties | None = None) -> torch.Tensor:
    return torch.cat(explanations(problem, penalties or penalties_for(problem)), -1)


# The problem


def test_gates_weigh_the_pairs() -> None:
    seen = heads(gated=True)
    weights = pose(seen, AT).weights
    for place, p in enumerate(AT.tolist()):
        for j in range(TIME):
            want = seen.write[:, j] * seen.forget[:, j + 1 : p + 1].prod(1) if j <= p else 0.0
            assert torch.allclose(weights[:, :, place, j], torch.as_tensor(want).double())


def test_without_gates_the_past_counts_evenly() -> None:
    problem = pose(heads(), AT)
    assert torch.equal(problem.weights[0, 0].sum(-1), AT + 1.0)
    assert torch.equal(problem.weights[0, 0], problem.past)


def test_moments_are_sums_over_the_past() -> None:
    seen, problem = heads(), pose(heads(), AT)
    for place, p in enumerate(AT.tolist()):
        keys, values = seen.keys[1, : p + 1, 0], seen.values[1, : p + 1, 0]
        assert torch.allclose(problem.gram[1, 0, place], keys.T @ keys)
        assert torch.allclose(problem.cross[1, 0, place], values.T @ keys)
        assert torch.allclose(problem.mean_value[1, 0, place], values.mean(0))
        assert torch.allclose(problem.mean_key[1, 0, place], keys.mean(0))


def test_every_pair_of_the_past_loses_its_key() -> None:
    moved = derangements(AT, TIME)
    for p, order in zip(AT.tolist(), moved, strict=True):
        assert order[: p + 1].sort().values.tolist() == list(range(p + 1))
        assert (order[: p + 1] != torch.arange(p + 1)).all()
        assert torch.equal(order[p + 1 :], torch.arange(p + 1, TIME))
    assert torch.equal(moved, derangements(AT, TIME))


# The explanations


@pytest.mark.parametrize("gated", [False, True])
def test_steps_are_those_of_the_loop(gated: bool) -> None:
    seen = heads(gated=gated)
    problem = pose(seen, AT)
    found = explained(problem)
    for place, p in enumerate(AT.tolist()):
        w = problem.weights.expand(BATCH, HEADS, -1, -1)[0, 1, place, : p + 1]
        k, v, q = seen.keys[0, : p + 1, 1], seen.values[0, : p + 1, 1], seen.queries[0, p, 1]
        mean_k, mean_v = (w @ k) / w.sum(), (w @ v) / w.sum()
        step = sum(w[j] * v[j] * (k[j] @ q) for j in range(p + 1))
        centred = sum(w[j] * (v[j] - mean_v) * ((k[j] - mean_k) @ q) for j in range(p + 1))
        want = {"sum": step, "average": step / w.sum(), "from the mean": centred / w.sum()}
        for form in STEPS:
            assert torch.allclose(found[0, 1, place, :, row("step", form)], want[form])


def test_ridge_is_that_of_scikit_learn() -> None:
    seen = heads()
    penalties = penalties_for(pose(seen, AT))
    found = explained(pose(seen, AT), penalties)
    for place, p in enumerate(AT.tolist()):
        keys, values = seen.keys[2, : p + 1, 1].numpy(), seen.values[2, : p + 1, 1].numpy()
        for index in (5, 20, 60):
            model = Ridge(alpha=float(penalties.grid[1, index]), fit_intercept=False)
            want = model.fit(keys, values).predict(seen.queries[2, p, 1][None].numpy())[0]
            got = found[2, 1, place, :, row("ridge", str(index))].numpy()
            assert got == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_ridge_with_gates_is_the_mesa_layer_that_forgets() -> None:
    seen = heads(gated=True)
    penalties = penalties_for(pose(seen, AT))
    found = explained(pose(seen, AT), penalties)
    index = 25
    ridge, gates = penalties.grid[:, index], (ForgetData(seen.forget), seen.write)
    want = mesa_layer(seen.keys, seen.values, seen.queries, ridge, *gates)[:, AT].transpose(1, 2)
    assert torch.allclose(found[..., row("ridge", str(index))], want, atol=1e-8)
    bare = mesa_layer(seen.keys, seen.values, seen.queries, ridge)[:, AT].transpose(1, 2)
    assert not torch.allclose(found[..., row("ridge", str(index))], bare, atol=0.01)


def test_smoothers_are_softmax_attention() -> None:
    seen = heads()
    found = explained(pose(seen, AT))
    q, k, v = (t.transpose(1, 2) for t in (seen.queries, seen.keys, seen.values))
    attention = torch.nn.functional.scaled_dot_product_attention
    own = attention(q, k, v, is_causal=True)[:, :, AT]
    assert torch.allclose(found[..., row("softmax", "own")], own)
    for scale in TEMPERATURES:
        want = attention(q, k, v, is_causal=True, scale=scale * WIDTH**-0.5)[:, :, AT]
        assert torch.allclose(found[..., row("smoother", f"{scale:.3g}")], want)


def test_means_and_copies() -> None:
    seen = heads()
    found = explained(pose(seen, AT))
    values = seen.values.transpose(1, 2)
    assert torch.allclose(found[..., row("copy", "current")], values[:, :, AT])
    assert torch.allclose(found[..., row("copy", "previous")], values[:, :, AT - 1])
    assert torch.allclose(found[..., row("copy", "first")], values[:, :, torch.zeros(3).long()])
    total = values.cumsum(2)[:, :, AT]
    assert torch.allclose(found[..., row("mean", "sum")], total)
    assert torch.allclose(found[..., row("mean", "mean")], total / (AT + 1)[:, None])
    alike = Heads(seen.queries, seen.keys[:, :1].expand_as(seen.keys), seen.values, seen.gathered)
    found = explained(pose(alike, AT))
    step, mean = row("step", "sum"), row("mean", "sum by the mean key")
    assert torch.allclose(found[..., step], found[..., mean])


def test_shuffled_keys_are_another_problem() -> None:
    """The same explanations of a problem whose keys were exchanged beforehand, position by one."""
    seen = heads()
    penalties = penalties_for(pose(seen, AT))
    found = explained(pose(seen, AT), penalties)
    for place, p in enumerate(AT.tolist()):
        order = derangements(AT, TIME)[place]
        other = Heads(seen.queries, seen.keys[:, order], seen.values, seen.gathered)
        alone = torch.tensor([p])
        want = explained(pose(other, alone), penalties)[:, :, 0, :, :SHUFFLED]
        assert torch.allclose(found[:, :, place, :, len(MEMBERS) :], want, atol=1e-8)
        assert not torch.allclose(found[:, :, place, :, :SHUFFLED], want, atol=0.01)


def test_planted_answers_are_their_own_explanations() -> None:
    problem = pose(heads(gated=True), AT)
    penalties = penalties_for(problem)
    found = explained(problem, penalties)
    assert torch.allclose(planted_step(problem), found[..., row("step", "sum")])
    middle = Penalties(penalties.middle[:, None].expand(-1, penalties.grid.shape[1]))
    want = explained(problem, middle)[..., row("ridge", "0")]
    assert torch.allclose(planted_ridge(problem, penalties), want, atol=1e-8)


def test_penalties_span_the_spectrum() -> None:
    problem = pose(heads(), AT)
    mu = torch.linalg.eigvalsh(problem.gram)
    grid = penalties_for(problem).grid
    assert (grid.diff(dim=1) > 0).all()
    assert torch.allclose(grid[:, -1], 10 * mu.amax((0, 2, 3)))
    assert (grid[:, 0] < mu.quantile(0.05)).all()


def test_heads_without_keys_have_penalties_too() -> None:
    seen = heads()
    empty = Heads(seen.queries, torch.zeros_like(seen.keys), seen.values, seen.gathered)
    found = explained(pose(empty, AT))
    assert bool(found.isfinite().all())
    assert found[..., row("step", "sum")].abs().max() == 0


# From products to scores


def sums_of(answer: torch.Tensor, problem: HeadProblem, penalties: Penalties) -> Sums:
    sums = Sums(HEADS)
    found = explained(problem, penalties)
    (seen,) = products(answer[None], problem.mean_value, [found])
    sums.add_fit(seen)
    sums.add_test(seen, problem.values.square().sum((-1, -2)), torch.arange(BATCH))
    return sums


def test_products_serve_every_factor() -> None:
    problem = pose(heads(), AT)
    answer = answers(heads(), AT)
    found = explained(problem)
    rr, rd, dd = products(answer[None], problem.mean_value, [found])[0].unbind(-1)
    for index in (0, 2, 10, len(MEMBERS) - 1, len(ROWS) - 1):
        base = answer - problem.mean_value if index == 2 else answer
        want = (base - 0.3 * found[..., index]).square().sum((-1, -2))
        got = rr[..., index] - 0.6 * rd[..., index] + 0.09 * dd[..., index]
        assert torch.allclose(got, want)


def test_shares_are_those_of_the_best_factor() -> None:
    problem, answer = pose(heads(), AT), answers(heads(), AT)
    penalties = penalties_for(problem)
    found = explained(problem, penalties)
    for head, score in enumerate(scores(sums_of(answer, problem, penalties), penalties)):
        z = answer[:, head].flatten()
        best = []
        for form in ("current", "previous", "first"):
            d = found[:, head, ..., row("copy", form)].flatten()
            eta = float(torch.linalg.lstsq(d[:, None], z[:, None]).solution)
            best.append((1 - float((z - eta * d).square().sum() / z.square().sum()), form, eta))
        share, form, eta = max(best)
        one = score.groups["copy"]
        assert (one.form, one.constant) == (form, pytest.approx(eta))
        assert one.value == pytest.approx(share) and one.share.value == pytest.approx(share)


def test_a_planted_solver_is_explained_and_its_constant_found() -> None:
    problem = pose(heads(), AT)
    penalties = penalties_for(problem)
    for score, middle in zip(
        scores(sums_of(planted_ridge(problem, penalties), problem, penalties), penalties),
        penalties.middle.tolist(),
        strict=True,
    ):
        assert score.groups["ridge"].value > 0.995
        assert abs(math.log(score.groups["ridge"].constant / middle)) < 0.5
        assert score.shuffled["ridge"].value < 0.5
    for score in scores(sums_of(0.7 * planted_step(problem), problem, penalties), penalties):
        assert score.groups["step"].value == pytest.approx(1)
        assert score.groups["step"].constant == pytest.approx(0.7)
        assert score.shuffled["step"].value < 0.5


def test_a_head_that_answers_nothing_is_silent() -> None:
    problem = pose(heads(), AT)
    penalties = penalties_for(problem)
    answer = torch.zeros(BATCH, HEADS, len(AT), WIDTH, dtype=torch.float64)
    assert all(score.silent for score in scores(sums_of(answer, problem, penalties), penalties))
    spoken = answers(heads(), AT)
    assert not any(s.silent for s in scores(sums_of(spoken, problem, penalties), penalties))
