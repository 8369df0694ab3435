"""Disguises: what must stay the same to rounding, what must change, and what breaks the label.

Exactness is tested in float64, where nothing but a mistake could tell two bases apart.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from probe.planted.base import Planted, error_against_solver, families_planted
from probe.planted.disguises.base import disguises, label_holds, output_of
from probe.planted.disguises.fine_tuned import FineTuned, relative_movement
from probe.problem import prefix_moments
from probe.sampling import generator_for, normal
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.regression import InContextRegression
from probe.tasks.teachers import Gaussian, Orthogonal

RAW = LinearDynamics("raw", Orthogonal(), width=4, length=16)
CONSTRUCTED = replace(RAW, name="constructed", layout=ConstructedTokens())
REGRESSION = InContextRegression("regression", Gaussian(), width=4, pairs=12, queries=6)
PLANTED = [
    ("gradient_descent", CONSTRUCTED),
    ("gradient_descent", RAW),
    ("momentum", CONSTRUCTED),
    ("ridge", RAW),
    ("kernel_smoother", CONSTRUCTED),
    ("mixture", RAW),
    ("newton", REGRESSION),
    ("gradient_descent_pp", REGRESSION),
]
IDS = [f"{family}-{task.name}" for family, task in PLANTED]
BASES, WIDER = ("rotation", "change_of_basis"), ("distractors", "idle_layers")


def plant(family: str, task: object, seed: int = 2, double: bool = True) -> Planted:
    planted = families_planted()[family].draw(task, generator_for(seed))  # type: ignore[arg-type]
    model = deepcopy(planted.model)
    return replace(planted, model=model.double() if double else model)


def difference(one: Planted, other: Planted, seed: int = 8) -> float:
    tokens = one.task.sample(24, generator_for(seed)).tokens
    expected = output_of(one.model, tokens)
    scale = max(1.0, float(expected.square().mean().sqrt()))
    return float((output_of(other.model, tokens) - expected).abs().max()) / scale


def broken(planted: Planted, name: str) -> Planted:
    """The model with one parameter turned round: the inverse of a basis gone wrong, say."""
    model = deepcopy(planted.model)
    parameter = model.get_parameter(name)
    with torch.no_grad():
        parameter.copy_(parameter.flip(-2))
    return replace(planted, model=model)


@pytest.mark.parametrize("name", BASES + WIDER)
@pytest.mark.parametrize(("family", "task"), PLANTED, ids=IDS)
def test_exact_disguises_leave_the_predictions(family: str, task: object, name: str) -> None:
    planted = plant(family, task)
    disguised = disguises()[name].apply(planted, generator_for(3))
    assert difference(planted, disguised) < 1e-6
    assert disguised.exact and disguised.disguises == (name,)
    assert difference(planted, broken(disguised, "W_U")) > 1e-2
    single = disguises()[name].apply(plant(family, task, double=False), generator_for(3))
    assert label_holds(single, generator_for(4)) > 0.9999


def test_a_change_of_basis_is_what_it_says() -> None:
    """On constructed tokens W_E is the identity, so what it becomes is the basis."""
    planted = plant("gradient_descent", CONSTRUCTED)
    eye = torch.eye(planted.model.config.d_model, dtype=torch.float64)
    assert torch.equal(planted.model.W_E, eye)
    turned, skewed = (disguises()[n].apply(planted, generator_for(3)).model.W_E for n in BASES)
    assert torch.allclose(turned @ turned.mT, eye, atol=1e-12)
    assert 1.5 < float(torch.linalg.cond(skewed)) <= 5
    assert not torch.allclose(turned, eye, atol=0.1)


def stream(planted: Planted, tokens: torch.Tensor, site: str) -> torch.Tensor:
    tokens = tokens.to(next(planted.model.parameters()))
    _, cache = planted.model.run_with_cache(tokens, names_filter=[site])
    return cache[site]


def test_distractors_compute_but_touch_no_slot() -> None:
    planted = plant("gradient_descent", CONSTRUCTED)
    disguised = disguises()["distractors"].apply(planted, generator_for(3))
    own, more = planted.model.config, disguised.model.config
    assert 4 <= more.d_model - own.d_model <= 8
    pairs = zip(own.blocks, more.blocks, strict=True)
    assert {b.attention.heads - a.attention.heads for a, b in pairs} <= {1, 2}
    tokens = planted.task.sample(64, generator_for(5)).tokens
    for layer in range(len(own.blocks)):
        site = f"blocks.{layer}.hook_attn_out"
        plain, busy = stream(planted, tokens, site), stream(disguised, tokens, site)
        assert torch.allclose(busy[..., : own.d_model], plain, atol=1e-10)
        extra = busy[..., own.d_model :]
        assert float(extra.square().mean()) > 1e-3
        # What is written depends on the context, not on the token alone.
        mixed = tokens.clone()
        mixed[:, 1:6] = tokens[:, 1:6].roll(1, 0)
        moved = stream(disguised, mixed, site)[:, -1, own.d_model :] - extra[:, -1]
        assert float(moved.abs().max()) > 1e-3


def test_idle_layers_are_of_no_consequence_and_states_move_up() -> None:
    planted = plant("gradient_descent", CONSTRUCTED)
    found = [disguises()["idle_layers"].apply(planted, generator_for(s)) for s in range(6)]
    depth = len(planted.model.config.blocks)
    added = {len(d.model.config.blocks) - depth for d in found}
    assert added <= {1, 2, 3} and len(added) > 1
    silent = [
        bool((d.model.get_parameter(f"blocks.{layer}.attn.W_O")[..., :-4] == 0).all())
        for d in found
        for layer in range(len(d.model.config.blocks))
    ]
    assert sum(silent) == sum(len(d.model.config.blocks) - depth for d in found)
    for disguised in found:
        layers = [state.layer for state in disguised.states]
        assert layers == list(range(len(layers))) and len(layers) >= depth


@pytest.mark.parametrize("name", [*BASES, *WIDER, "pruned"])
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("gradient_descent", CONSTRUCTED),
        ("richardson", RAW),
        ("momentum", CONSTRUCTED),
        ("newton", REGRESSION),
    ],
)
def test_states_are_where_they_are_said_to_be(family: str, task: object, name: str) -> None:
    planted = plant(family, task)
    if not disguises()[name].fits(planted):
        assert (family, name) == ("newton", "pruned")
        return
    disguised = disguises()[name].apply(planted, generator_for(6))
    sequences = disguised.task.sample(16, generator_for(7))
    moments = prefix_moments(disguised.task.problem(sequences))
    gram, cross = moments.gram[:, -2], moments.cross[:, -2]
    mu, basis = torch.linalg.eigh(gram)
    change = normal(generator_for(4), 16, gram.shape[-1])
    before = difference(disguised, disguised)
    assert before == 0 and disguised.states
    for state in disguised.states:
        plain = stream(disguised, sequences.tokens, disguised.model.layer_sites()[state.layer])
        read = (plain @ state.read)[:, -2]
        edited = plain.clone()
        edited[:, -2] += change @ state.write
        assert torch.allclose((edited @ state.read)[:, -2] - read, change, atol=1e-9)
        moved = disguised.model.resume(edited, state.layer) - disguised.model.resume(
            plain, state.layer
        )
        turned = (basis.mT @ change[..., None])[..., 0] * state.remaining(mu.clamp(min=0))
        expected = (cross @ basis @ turned[..., None])[..., 0]
        error = float((moved[:, -2] - expected).abs().max())
        assert error < 1e-6 * max(1.0, float(expected.abs().max()))
        assert float((moved[:, -2] - 1.1 * expected).abs().max()) > 1e-4
    first = disguised.states[0]
    queries = disguised.task.problem(sequences).queries.double()
    held = stream(disguised, sequences.tokens, "blocks.0.hook_resid_pre")
    assert torch.allclose(held @ first.read, queries, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["gradient_descent", "richardson", "chebyshev", "momentum"])
def test_a_pruned_iteration_is_one_step_shorter(family: str, seed: int) -> None:
    planted = plant(family, RAW, seed)
    if planted.truth.degree == 1:
        assert not disguises()["pruned"].fits(planted)
        return
    pruned = disguises()["pruned"].apply(planted, generator_for(seed))
    assert pruned.truth.degree == planted.truth.degree - 1
    assert len(pruned.model.config.blocks) == len(planted.model.config.blocks) - 1
    assert error_against_solver(pruned, 64, generator_for(5)) < 1e-6
    assert error_against_solver(replace(pruned, solver=planted.solver), 64, generator_for(5)) > 1e-3
    if family == "chebyshev" and pruned.truth.degree > 1:
        assert pruned.truth.family == "polynomial"
    if pruned.truth.degree == 1:
        assert pruned.truth.family == "gradient_descent"


def test_what_has_no_single_step_is_not_pruned() -> None:
    for family, task in PLANTED:
        if family not in ("gradient_descent", "momentum"):
            assert not disguises()["pruned"].fits(plant(family, task))
    turned = disguises()["rotation"].apply(plant("momentum", RAW), generator_for(1))
    assert not disguises()["pruned"].fits(turned)


def loss(planted: Planted) -> float:
    """The task loss at judged positions, on sequences that no disguise has seen."""
    sequences = planted.task.sample(8192, generator_for(99))
    judged = slice(*planted.task.windows.judged)
    targets = planted.task.problem(sequences).targets[:, judged]
    error = output_of(planted.model, sequences.tokens)[:, judged] - targets
    return float(error.square().sum(-1).mean() / 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"),
    [("momentum", CONSTRUCTED), ("mixture", RAW), ("gradient_descent_pp", REGRESSION)],
)
def test_noise_costs_what_it_says(family: str, task: object) -> None:
    planted = plant(family, task, double=False)
    before, labels = loss(planted), []
    assert loss(replace(planted, model=deepcopy(planted.model))) == before
    for name, share in (("noise_1", 0.01), ("noise_5", 0.05), ("noise_20", 0.2)):
        own = disguises()[name]
        noisy = own.apply(planted, generator_for(3))
        assert not noisy.exact
        # Queries share contexts: 10,000 of them are 1,700 contexts, which leave half a per cent.
        assert loss(noisy) / before - 1 == pytest.approx(share, rel=0.35, abs=0.005)
        exacter = replace(own, positions=50_000).apply(planted, generator_for(3))
        assert loss(exacter) / before - 1 == pytest.approx(share, rel=0.2)
        labels.append(label_holds(noisy, generator_for(4)))
    assert 1 > labels[0] > labels[1] > labels[2]


def test_a_little_training_moves_the_weights_and_keeps_the_label() -> None:
    planted = plant("gradient_descent", CONSTRUCTED, double=False)
    written = {n: p for n, p in planted.model.named_parameters() if p.any()}

    def movement(tuned: Planted) -> float:
        return relative_movement(written, dict(tuned.model.named_parameters()))

    tuned = FineTuned(steps=40).apply(planted, generator_for(3))
    assert not tuned.exact and tuned.disguises == ("fine_tuned",)
    assert 0.005 < movement(tuned) < 0.03
    assert 0.98 < label_holds(tuned, generator_for(4)) < 1 - 1e-5
    bold = FineTuned(steps=40, rate=0.02, moved=1.0, least_r2=-torch.inf)
    wild = bold.apply(planted, generator_for(3))  # control: nobody watches the label
    assert movement(wild) > 0.1
    assert label_holds(wild, generator_for(4)) < 0.95
    held = replace(bold, least_r2=0.985).apply(planted, generator_for(3))
    assert label_holds(held, generator_for(4)) > 0.98


def test_the_label_is_that_of_its_own_solver() -> None:
    planted = plant("gradient_descent", RAW, seed=0)
    assert label_holds(planted, generator_for(1)) > 1 - 1e-9
    other = plant("ridge", RAW).solver
    assert label_holds(replace(planted, solver=other), generator_for(1)) < 0.99


def test_disguises_add_up_and_leave_the_given_model_alone() -> None:
    planted = plant("gradient_descent", RAW)
    before = {n: p.clone() for n, p in planted.model.named_parameters()}

    def layered(seed: int) -> Planted:
        disguised = planted
        for name in ("pruned", "distractors", "idle_layers", "change_of_basis"):
            disguised = disguises()[name].apply(disguised, generator_for(seed))
        return disguised

    once, again, other = layered(1), layered(1), layered(2)
    assert once.disguises == ("pruned", "distractors", "idle_layers", "change_of_basis")
    assert error_against_solver(once, 32, generator_for(3)) < 1e-6
    assert all(torch.equal(p, before[n]) for n, p in planted.model.named_parameters())
    same = zip(once.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(once.model.W_U[:4], other.model.W_U[:4])


def test_clipped_and_unprojected_streams_are_left_alone() -> None:
    planted = plant("gradient_descent", CONSTRUCTED)
    config = planted.model.config
    clipped = replace(config, blocks=tuple(replace(b, clip=9.0) for b in config.blocks))
    for changed in (clipped, replace(config, projected=False)):
        model = type(planted.model)(changed)
        for name in BASES + WIDER:
            assert disguises()[name].fits(planted)
            assert not disguises()[name].fits(replace(planted, model=model))
