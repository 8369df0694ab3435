"""MesaNets: the model against its equations, what it offers the instrument, and its heads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mesa_net_reference
import pytest
import torch
from mesa_net_folder import described, random_tensors, write_mesa_net
from torch import Tensor

from probe.checkpoints.base import load
from probe.mesa_layer import ForgetData, mesa_layer
from probe.models.hooked import Heads, LanguageModel
from probe.models.mesa_net import MesaNet

LENGTH = 70  # more than a chunk of the solver


@pytest.fixture
def mesa_net(tmp_path: Path) -> MesaNet:
    model = load(write_mesa_net(tmp_path / "net")).model
    assert isinstance(model, MesaNet)
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 50, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def error(model: MesaNet, tokens: Tensor, tensors: dict[str, Tensor], config: Any) -> float:
    """Largest distance of the logits from the reference, in units of their standard deviation."""
    expected = torch.stack([mesa_net_reference.logits(row, tensors, config) for row in tokens])
    return float((model(tokens) - expected).abs().max() / expected.std())


@pytest.mark.parametrize("output_gate", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_equations(
    tmp_path: Path, tokens: Tensor, output_gate: bool, tied: bool
) -> None:
    config = described(use_output_gate=output_gate, tie_word_embeddings=tied)
    tensors = random_tensors(config)
    model = load(write_mesa_net(tmp_path / "net", config, tensors)).model
    assert isinstance(model, MesaNet)
    assert error(model, tokens[:2], tensors, config) < 3e-5


def _swapped(first: str, second: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def swap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {
            n: n.replace(first, "?").replace(second, first).replace("?", second) for n in tensors
        }
        return {name: tensors[other] for name, other in names.items()}

    return swap


def _filled(part: str, value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """With a gate that is constant, or a penalty that is the same for all."""

    def fill(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {n: torch.zeros_like(t) for n, t in tensors.items() if part in n}
        last = {n: t + value for n, t in given.items() if "weight" not in n}
        return tensors | given | last

    return fill


@pytest.mark.parametrize(
    "wrong",
    [
        _swapped("a_proj", "b_proj"),
        _swapped("q_proj", "k_proj"),
        _swapped("q_conv1d", "k_conv1d"),
        _swapped("gate_proj", "up_proj"),
        _filled("a_proj", 30.0),
        _filled("b_proj", 30.0),
        _filled("lambda_params", 0.5),
    ],
    ids=["gates", "queries", "convolutions", "mlp", "nothing forgotten", "all written", "penalty"],
)
def test_other_equations_give_other_logits(
    mesa_net: MesaNet, tokens: Tensor, wrong: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    assert error(mesa_net, tokens[:1], wrong(random_tensors(described())), described()) > 0.05


@torch.no_grad()
def test_sites_hold_the_stream(mesa_net: MesaNet, tokens: Tensor) -> None:
    logits, cache = mesa_net.run_with_cache(tokens)
    assert isinstance(mesa_net, LanguageModel)
    assert (mesa_net.vocabulary, mesa_net.longest, mesa_net.layers) == (50, None, 2)
    sites = mesa_net.layer_sites()
    assert len(sites) == mesa_net.layers + 1
    for layer, site in enumerate(sites):
        assert cache[site].shape == (3, LENGTH, mesa_net.d_model)
        assert torch.equal(mesa_net.resume(cache[site], layer), logits)
    assert torch.equal(mesa_net.read_out(cache[sites[-1]]), logits)
    for identity in mesa_net.residual_sums():
        total = torch.stack([cache[part] for part in identity.parts]).sum(0)
        assert torch.allclose(total, cache[identity.after], atol=1e-5)
    assert all(cache[site].shape == cache[sites[0]].shape for site in mesa_net.update_sites())


@torch.no_grad()
def test_resuming_from_another_block_is_not_the_same(mesa_net: MesaNet, tokens: Tensor) -> None:
    logits, cache = mesa_net.run_with_cache(tokens)
    assert float((mesa_net.resume(cache[mesa_net.layer_sites()[0]], 1) - logits).abs().max()) > 0.1


def heads_of(model: MesaNet, layer: int, tokens: Tensor) -> Heads:
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=list(model.head_sites(layer).seen))
        return model.heads(layer, cache)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_mixing_repeats_what_was_gathered(mesa_net: MesaNet, tokens: Tensor, layer: int) -> None:
    heads = heads_of(mesa_net, layer, tokens)
    assert heads.write is not None
    assert heads.forget is not None
    size = heads.gathered.abs().max()
    assert (mesa_net.mix(layer, heads) - heads.gathered).abs().max() < 1e-5 * size
    for wrong in (
        replace(heads, queries=heads.keys, keys=heads.queries),
        replace(heads, write=heads.forget, forget=heads.write),
        replace(heads, forget=None),
        replace(heads, write=None),
        replace(heads, values=heads.values.flip(2)),
    ):
        assert (mesa_net.mix(layer, wrong) - heads.gathered).abs().max() > 0.05 * size


@torch.no_grad()
def test_answers_do_not_depend_on_the_batch(mesa_net: MesaNet, tokens: Tensor) -> None:
    heads = heads_of(mesa_net, 0, tokens)
    alone = Heads(**{name: part[1:2] for name, part in vars(heads).items()})
    assert torch.equal(mesa_net.mix(0, alone), mesa_net.mix(0, heads)[1:2])


@torch.no_grad()
def test_the_future_is_not_seen(mesa_net: MesaNet, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 7) % 50
    before, after = mesa_net(tokens), mesa_net(changed)
    assert torch.allclose(before[:, :40], after[:, :40], atol=1e-5)
    assert float((before[:, 40:] - after[:, 40:]).abs().max()) > 0.1


@torch.no_grad()
def test_a_head_without_what_it_gathered_adds_nothing(mesa_net: MesaNet, tokens: Tensor) -> None:
    seen: dict[str, Tensor] = {}

    def silence(gathered: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(gathered)

    def keep(added: Tensor, hook: Any) -> None:
        seen[hook.name] = added

    site, update = mesa_net.head_sites(1).gathered, mesa_net.update_sites()[1]
    with mesa_net.hooks(fwd_hooks=[(site, silence), (update, keep)]):
        silenced = mesa_net(tokens)
    assert not bool(seen[update].any())
    assert float((silenced - mesa_net(tokens)).abs().max()) > 0.1


def test_gradients_reach_every_parameter(mesa_net: MesaNet, tokens: Tensor) -> None:
    mesa_net.requires_grad_(True)
    logits = mesa_net(tokens[:1, :12])
    with torch.no_grad():
        assert torch.allclose(logits, mesa_net(tokens[:1, :12]), atol=1e-4)
    logits.square().mean().backward()
    for name, parameter in mesa_net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_a_gate_that_closes_is_still_a_gate(tmp_path: Path, tokens: Tensor) -> None:
    """Everything is forgotten at every token: each answer is that of the last pair alone."""
    tensors = _filled("a_proj", -200.0)(random_tensors(described()))
    model = load(write_mesa_net(tmp_path / "net", tensors=tensors)).model
    assert isinstance(model, MesaNet)
    heads = heads_of(model, 0, tokens)
    assert heads.write is not None
    lam = model.attention(0).typical_penalty[:, None]
    k, write = heads.keys, heads.write[..., None]
    share = write * (k * heads.queries).sum(-1, keepdim=True)
    expected = share / (lam + write * k.square().sum(-1, keepdim=True)) * heads.values
    assert torch.allclose(heads.gathered, expected, atol=1e-5)


# Its heads as least squares


def explained(heads: Heads, lam: Tensor, gates: bool, rows: slice) -> Tensor:
    """R^2, uncentred, of ridge regression with one lambda per head on its own pairs."""
    part = {name: value[rows].double() for name, value in vars(heads).items() if value is not None}
    answer = mesa_layer(
        part["keys"],
        part["values"],
        part["queries"],
        lam.double(),
        ForgetData(part["forget"]) if gates else None,
        part["write"] if gates else None,
    )
    left = (part["gathered"] - answer).square().sum((0, 1, 3))
    return 1 - left / part["gathered"].square().sum((0, 1, 3))


def held_out(heads: Heads, gates: bool) -> Tensor:
    """Every head's lambda by the first half of the sequences, R^2 on the second."""
    half, count = len(heads.keys) // 2, heads.keys.shape[2]
    grid = torch.logspace(-1.5, 1.5, 31)
    fitted = [explained(heads, lam.expand(count), gates, slice(half)) for lam in grid]
    best = grid[torch.stack(fitted).argmax(0)]
    return explained(heads, best, gates, slice(half, None))


@torch.no_grad()
@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["one penalty", "a penalty per channel"])
def test_heads_read_as_least_squares(tmp_path: Path, spread: float) -> None:
    """One lambda explains a head; without its gates it does not, nor on keys as they were."""
    tensors = random_tensors(described(head_dim=16))
    for name in tensors:
        if "lambda_params" in name:
            tensors[name] = spread * tensors[name]
    model = load(write_mesa_net(tmp_path / "net", described(head_dim=16), tensors)).model
    assert isinstance(model, MesaNet)
    tokens = torch.randint(0, 50, (8, 48), generator=torch.Generator().manual_seed(2))
    for layer in range(model.layers):
        heads = heads_of(model, layer, tokens)
        plain = model.attention(layer).alike
        raw = replace(heads, queries=heads.queries / plain, keys=heads.keys / plain)
        assert bool((held_out(heads, gates=True) > 0.99).all())
        assert bool((held_out(heads, gates=False) < 0.9).all())
        assert bool(((held_out(raw, gates=True) > 0.99) == (spread == 0.0)).all())
