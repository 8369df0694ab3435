"""SequenceTransformer as a GPT-2 backbone on continuous tokens: norms, biases, positions."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from garg_writer import GargModel
from hypothesis import given
from hypothesis import strategies as st

from analyses.linearization import Linearization
from analyses.weight_refit import WeightRefit
from analyses.weights import Weights
from probe.audit import audit
from probe.capture import capture
from probe.checkpoints.base import Subject
from probe.errors import InputError
from probe.models.attention import LinearAttention, SoftmaxAttention
from probe.models.norm import LayerNorm
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.plan import Plan
from probe.planted.base import Planted, families_planted
from probe.planted.disguises.base import is_linear_in_stream
from probe.sampling import generator_for, normal
from probe.tasks.base import find_task
from probe.token_binding.attention import contributions, mixing_weights, without
from probe.token_binding.window import LagWindow
from probe.transplant.run import Refusal, transplant
from probe.views import permuted_twin

LAYERS, HEADS, D_MODEL, D_IN, N_CTX = 3, 2, 12, 5, 16


def gpt2_config(**changed: Any) -> ModelConfig:
    block = BlockConfig(SoftmaxAttention(HEADS, D_MODEL // HEADS), d_mlp=4 * D_MODEL)
    shape = ModelConfig(
        D_IN, D_MODEL, 1, (block,) * LAYERS, True, n_ctx=N_CTX, norm=LayerNorm(), biased=True
    )
    return replace(shape, **changed)


def drawn(config: ModelConfig, seed: int = 0, std: float = 0.3) -> SequenceTransformer:
    """Every parameter is drawn, gains and biases too."""
    model = SequenceTransformer(config)
    generator = generator_for(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith(".w")), std, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> SequenceTransformer:
    return drawn(gpt2_config())


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return normal(generator_for(7), 4, N_CTX, D_IN).float()


def apart(model: SequenceTransformer, tokens: torch.Tensor, expected: torch.Tensor) -> float:
    return float((model(tokens) - expected).abs().max())


def test_it_is_the_gpt2_of_transformers(model, tokens) -> None:
    expected = GargModel(model)(tokens)
    assert float(expected.std()) > 0.1
    assert apart(model, tokens, expected) <= 1e-5


PARTS = ("attn.b_Q", "attn.b_V", "attn.b_O", "mlp.b_in", "mlp.b_out", "ln1.b", "ln2.w")
VECTORS = ["b_E", "b_U", "ln_final.b", "ln_final.w", "W_pos", *(f"blocks.1.{p}" for p in PARTS)]


@pytest.mark.parametrize("name", VECTORS)
def test_one_wrong_vector_is_seen(name: str, model, tokens) -> None:
    expected = GargModel(model)(tokens)
    wrong = drawn(model.config)
    wrong.get_parameter(name).zero_()
    assert apart(wrong, tokens, expected) > 1e-3


def test_a_bias_of_the_keys_changes_no_softmax(model, tokens) -> None:
    same = drawn(model.config)
    same.get_parameter("blocks.1.attn.b_K").zero_()
    assert apart(same, tokens, model(tokens)) < 1e-5


def test_another_eps_is_seen(model, tokens) -> None:
    other = drawn(replace(model.config, norm=LayerNorm(1e-2)))
    assert apart(other, tokens, GargModel(model)(tokens)) > 1e-3


def test_a_new_model_has_unit_norms_and_no_biases() -> None:
    fresh = SequenceTransformer(gpt2_config())
    fresh.initialise(0.2, generator_for(0))
    for name, parameter in fresh.requires_grad_(False).named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf.startswith("W_"):
            assert 0.1 < float(parameter.std()) < 0.3, name
        else:
            assert bool((parameter == float(leaf == "w")).all()), name


# ---- The contract of a HookedModel


def test_the_stream_adds_up_and_resumes(model, tokens) -> None:
    said, cache = model.run_with_cache(tokens)
    for identity in model.residual_sums():
        total = torch.stack([cache[part] for part in identity.parts]).sum(0)
        assert torch.allclose(total, cache[identity.after], atol=1e-5)
    for layer, site in enumerate(model.layer_sites()):
        assert torch.allclose(model.resume(cache[site], layer), said, atol=1e-5)
    assert torch.equal(model.read_out(cache["hook_resid_final"]), said)


def test_streams_are_not_normalised_but_what_is_read_of_them_is(model, tokens) -> None:
    _, cache = model.run_with_cache(tokens)
    for layer in range(LAYERS):
        stream, read = (
            cache[f"blocks.{layer}.{site}"] for site in ("hook_resid_pre", "ln1.hook_normalized")
        )
        norm = model.blocks[layer].ln1
        centred = stream - stream.mean(-1, keepdim=True)
        want = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(read, want * norm.w + norm.b, atol=1e-5)
        assert float((stream - read).abs().max()) > 0.1
    assert "ln_final.hook_normalized" in cache


def test_heads_mix_to_what_they_gathered(model, tokens) -> None:
    _, cache = model.run_with_cache(tokens)
    heads = model.heads(1, cache)
    assert torch.allclose(model.mix(1, heads), heads.gathered, atol=1e-6)
    swapped = replace(heads, queries=heads.keys, keys=heads.queries)
    assert float((model.mix(1, swapped) - heads.gathered).abs().max()) > 1e-2
    read = cache["blocks.1.ln1.hook_normalized"]
    attention = model.blocks[1].attn
    want = torch.einsum("btm,hmd->bthd", read, attention.W_Q) + attention.b_Q
    assert torch.allclose(heads.queries, want, atol=1e-5)


def test_bits_do_not_depend_on_the_batch_size(model) -> None:
    tokens = normal(generator_for(8), 72, N_CTX, D_IN).float()
    one, other = (capture(model, tokens, size) for size in (16, 64))
    for part in ("output", "layers", "updates", "readouts"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part
    assert all(check.ok for check in audit(model, tokens))
    assert torch.allclose(one.readouts[-1], one.output, atol=1e-6)


def test_more_tokens_than_positions_are_refused(model) -> None:
    with pytest.raises(InputError, match="17 tokens; the model has 16 positions"):
        model(torch.zeros(1, N_CTX + 1, D_IN))


# ---- The description


def test_bare_models_are_described_as_before() -> None:
    bare = gpt2_config(norm=None, biased=False)
    assert {"norm", "biased"}.isdisjoint(bare.to_dict())
    assert bare.bare
    assert not gpt2_config(norm=None).bare
    assert not gpt2_config(biased=False).bare
    assert not {n for n, _ in SequenceTransformer(bare).named_parameters() if "W_" not in n}


@given(
    norm=st.none() | st.builds(LayerNorm, st.floats(1e-12, 0.5)),
    biased=st.booleans(),
)
def test_descriptions_round_trip(norm: LayerNorm | None, biased: bool) -> None:
    config = gpt2_config(norm=norm, biased=biased)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


JUNK_NORMS = (1e-5, "layer", True, [], {}, {"eps": None}, {"eps": True}, {"eps": "1e-5"})
WRONG = (
    *(("norm", junk) for junk in JUNK_NORMS),
    *(("norm", {"eps": eps}) for eps in (0, -1e-5, 1, 10**400, float("nan"), [])),
    ("norm", {"eps": 1e-5, "unheard": 1}),
    *(("biased", junk) for junk in (None, 1, "yes", [])),
)


@pytest.mark.parametrize(("field", "junk"), WRONG, ids=lambda part: str(part)[:40])
def test_wrong_descriptions_are_refused(field: str, junk: Any) -> None:
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict({**gpt2_config().to_dict(), field: junk})
    assert field in str(caught.value) or "eps" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- What reads weights


def test_contributions_are_exact_with_biases(model, tokens) -> None:
    """The sum over all tokens, and the bias of the output map, are what attention adds."""
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        q, k, v = (cache[f"blocks.{layer}.attn.hook_{role}"] for role in "qkv")
        weights = mixing_weights(block.attn, q, k)
        read = cache[f"blocks.{layer}.ln1.hook_normalized"]
        values = torch.einsum("bjm,hmd->bjhd", read, block.attn.W_V) + block.attn.b_V
        added = torch.einsum("bhtj,bjhc,hcm->btm", weights, values, block.attn.W_O)
        want = cache[f"blocks.{layer}.hook_attn_out"]
        assert torch.allclose(added + block.attn.b_O, want, atol=1e-5)
        assert torch.allclose(v, values, atol=1e-5)
    window = LagWindow.late(N_CTX)
    found = contributions(model, tokens, window)
    assert all(bool((c.total > 0).all()) for c in found)


def test_without_all_tokens_only_the_bias_is_left(model, tokens) -> None:
    said = without(model, tokens, 1, range(N_CTX))
    silent = drawn(model.config)
    silent.get_parameter("blocks.1.attn.W_O").zero_()
    assert torch.allclose(said, silent(tokens), atol=1e-5)
    silent.get_parameter("blocks.1.attn.b_O").zero_()
    assert float((said - silent(tokens)).abs().max()) > 1e-3


def subject_of(model: SequenceTransformer) -> Subject:
    return Subject("gpt2", "native", model, None, "0" * 64, ())


@pytest.mark.parametrize("changed", [{"norm": LayerNorm()}, {"biased": True}])
def test_analyses_of_bare_weights_decline(changed: dict[str, Any]) -> None:
    task = find_task("linear-constructed")
    d, d_out = task.width_in, task.width_out
    linear = ModelConfig(d, d, d_out, (BlockConfig(LinearAttention(2, 4)),), projected=False)
    softmax = replace(linear, blocks=(BlockConfig(SoftmaxAttention(2, 4)),))
    for analysis, config in (
        (Weights(), linear),
        (WeightRefit(), linear),
        (Linearization(), softmax),
    ):
        bare = subject_of(SequenceTransformer(config))
        assert analysis.lacks(bare, task) is None
        other = subject_of(SequenceTransformer(replace(config, **changed)))
        assert "norms or" in str(analysis.lacks(other, task))
        assert "bias" in str(analysis.lacks(other, task))


@pytest.mark.parametrize("changed", [{}, {"norm": LayerNorm()}, {"biased": True}])
def test_no_layer_is_transplanted_behind_a_norm_or_bias(changed: dict[str, Any]) -> None:
    task = find_task("linear-narrow-constructed")
    planted = families_planted()["gradient_descent"].draw(task, generator_for(3))
    model = SequenceTransformer(replace(planted.model.config, **changed))
    model.load_state_dict(planted.model.state_dict(), strict=False)
    verdict = {"class": "least_squares", "instruments_ok": True, "evidence_level": 1}
    found = transplant(subject_of(model.eval()), Plan(task, 256, 0), verdict)
    assert isinstance(found, Refusal) == bool(changed)
    assert not isinstance(found, Refusal) or "norms or biases" in found.reason


def test_no_disguise_turns_a_stream_that_is_normalised() -> None:
    task = find_task("linear-constructed")
    planted: Planted = families_planted()["gradient_descent"].draw(task, generator_for(0))
    assert is_linear_in_stream(planted)
    for changed in ({"norm": LayerNorm()}, {"biased": True}):
        other = SequenceTransformer(replace(planted.model.config, **changed))
        assert not is_linear_in_stream(replace(planted, model=other))


def test_the_twin_has_the_same_numbers_in_other_places(model, tokens) -> None:
    twin = permuted_twin(model, 0)
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(own.flatten().sort().values, other.flatten().sort().values), name
    said = twin(tokens)
    assert bool(said.isfinite().all())
    assert float((said - model(tokens)).abs().max()) > 0.1
