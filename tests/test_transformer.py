"""SequenceTransformer: hooks, the stream, each kind of attention, and its description."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import InputError
from probe.mesa_layer import mesa_layer
from probe.models.attention import (
    KINDS,
    LinearAttention,
    MesaAttention,
    MixedAttention,
    SoftmaxAttention,
    sinusoids,
)
from probe.models.hooked import HookedModel
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.sampling import generator_for, normal

Model = Callable[..., SequenceTransformer]
KIND_NAMES = sorted(KINDS)
each_kind = pytest.mark.parametrize("kind", KIND_NAMES)


def tokens(batch: int = 2, length: int = 7, width: int = 3, seed: int = 0) -> torch.Tensor:
    return normal(generator_for(seed), batch, length, width).float()


def heads(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = generator_for(2)
    return tuple(normal(generator, *shape) for _ in range(3))  # type: ignore[return-value]


# The stream and its hooks


@each_kind
def test_models_are_tiny(kind: str, tiny_model: Model) -> None:
    assert sum(p.numel() for p in tiny_model(kind).parameters()) < 2_000


@each_kind
def test_hook_names(kind: str, tiny_model: Model) -> None:
    _, cache = tiny_model(kind).run_with_cache(tokens())
    block = ["hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"]
    block += ["hook_attn_out", "hook_resid_post"]
    mixer = "attn.mixer.rules.softmax" if kind == "mixed" else "attn.mixer"
    block += [] if kind == "mesa" else [f"{mixer}.hook_attn_scores", f"{mixer}.hook_pattern"]
    want = {"hook_embed", "hook_resid_final"}
    want |= {f"blocks.{layer}.{name}" for layer in (0, 1) for name in block}
    want |= {"blocks.0.hook_mlp_out", "blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_post"}
    assert set(cache) == want


@each_kind
def test_layer_sites_exist_and_start_the_blocks(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind)
    _, cache = model.run_with_cache(tokens())
    assert model.layer_sites() == (
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "hook_resid_final",
    )
    assert torch.equal(cache["hook_embed"], cache["blocks.0.hook_resid_pre"])
    assert set(model.layer_sites()) <= set(cache)


@each_kind
def test_the_stream_adds_up(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind)
    x = 3 * tokens(4)
    output, cache = model.run_with_cache(x)
    first, second = (
        {n: cache[f"blocks.{b}.{n}"] for n in _STREAM if b == 0 or "mlp" not in n} for b in (0, 1)
    )
    total = first["hook_resid_pre"] + first["hook_attn_out"] + first["hook_mlp_out"]
    assert torch.allclose(total, first["hook_resid_post"], atol=1e-5)
    # Block 0 clips at 2, after hook_resid_post.
    assert first["hook_resid_post"].abs().max() > 2
    assert torch.equal(first["hook_resid_post"].clamp(-2, 2), second["hook_resid_pre"])
    total = second["hook_resid_pre"] + second["hook_attn_out"]
    assert torch.allclose(total, second["hook_resid_post"], atol=1e-5)
    assert torch.equal(cache["hook_resid_final"], second["hook_resid_post"])
    assert torch.allclose(output, cache["hook_resid_final"] @ model.W_U, atol=1e-6)
    assert torch.allclose(cache["hook_embed"], x @ model.W_E, atol=1e-6)
    without = first["hook_resid_pre"] + first["hook_attn_out"]  # control: a part left out
    assert (without - first["hook_resid_post"]).abs().max() > 0.01


_STREAM = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


def test_bidirectional_attention_sees_the_future(tiny_model: Model) -> None:
    model, x = tiny_model("linear-bidirectional"), tokens()
    changed = x.clone()
    changed[:, -1] += 1.0
    assert (model(changed)[:, 0] - model(x)[:, 0]).abs().max() > 1e-5


def test_trained_positions_are_added_to_the_stream() -> None:
    block = BlockConfig(LinearAttention(1, 2))
    model = SequenceTransformer(ModelConfig(6, 6, 6, (block,), projected=False, n_ctx=9))
    model.initialise(0.1, torch.Generator().manual_seed(0))
    x = tokens(width=6)
    _, cache = model.run_with_cache(x)
    assert torch.equal(cache["hook_embed"], x + model.W_pos[: x.shape[1]])
    with pytest.raises(InputError, match="9 positions"):
        model(torch.zeros(1, 10, 6))


@each_kind
@pytest.mark.parametrize("layer", [0, 1])
def test_a_changed_last_token_is_followed_alone(kind: str, layer: int, tiny_model: Model) -> None:
    model = tiny_model(kind)
    _, cache = model.run_with_cache(tokens())
    streams = torch.stack([cache[site] for site in model.layer_sites()[:-1]])
    before = streams[:, :, :-1]
    last = streams[layer, :, -1] + torch.tensor([0.5, -1.0])[:, None, None]
    whole = streams[layer].repeat(2, 1, 1)
    whole[:, -1] = last.flatten(0, 1)
    want = model.resume(whole, layer)[:, -1].unflatten(0, last.shape[:2])
    assert torch.allclose(model.resume_last(before, last, layer), want, atol=1e-5)
    assert torch.equal(HookedModel.resume_last(model, before, last, layer), want)
    other = model.resume_last(before.roll(1, 1), last, layer)  # Control: after other tokens.
    assert not torch.allclose(other, want, atol=1e-3)


@each_kind
def test_attention_output_is_z_times_w_o(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind)
    _, cache = model.run_with_cache(tokens())
    by_head = torch.einsum(
        "bthd,hdm->bthm", cache["blocks.1.attn.hook_z"], model.blocks[1].attn.W_O
    )
    assert torch.allclose(by_head.sum(2), cache["blocks.1.hook_attn_out"], atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
@given(at=st.integers(1, 6))
def test_causality(kind: str, tiny_model: Model, at: int) -> None:
    """A changed future token changes nothing before it, and the token itself matters."""
    model = tiny_model(kind)
    x = tokens()
    changed = x.clone()
    changed[:, at:] += 1.0
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at] - after[:, at]).abs().max() > 1e-3
    earlier = x.clone()
    earlier[:, 0] += 1.0  # control: the past is read
    assert (model(earlier)[:, at] - before[:, at]).abs().max() > 1e-5


@each_kind
def test_sequences_do_not_see_each_other(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind)
    x = tokens(4)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-6)


# Mixers


def test_linear_attention_equals_a_loop() -> None:
    q, k, v = heads(2, 6, 3, 4)
    got = LinearAttention(3, 4).build()(q, k, v)
    want = torch.zeros_like(v)
    for t in range(6):
        for j in range(t + 1):
            want[:, t] += (q[:, t] * k[:, j]).sum(-1, keepdim=True) * v[:, j]
    assert torch.allclose(got, want)


def test_softmax_attention_equals_torch() -> None:
    q, k, v = heads(2, 6, 3, 4)
    got = SoftmaxAttention(3, 4).build()(q, k, v)
    scaled_dot = torch.nn.functional.scaled_dot_product_attention
    want = scaled_dot(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    assert torch.allclose(got, want)
    open_ = scaled_dot(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert not torch.allclose(got, open_, atol=0.01)  # control: no mask


def test_patterns(tiny_model: Model) -> None:
    """Softmax rows sum to one, linear rows do not; both are zero in the future."""
    for kind, normalised in (("softmax", True), ("linear", False)):
        _, cache = tiny_model(kind).run_with_cache(tokens())
        pattern = cache["blocks.0.attn.mixer.hook_pattern"]
        assert pattern.shape == (2, 2, 7, 7)
        assert pattern.triu(1).eq(0).all()
        rows = pattern.sum(-1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-6) is normalised
        if normalised:
            assert pattern.min() >= 0


def test_mesa_mixer_is_the_mesa_layer() -> None:
    q, k, v = heads(2, 6, 3, 4)
    mixer = MesaAttention(3, 4).build()
    ridge = torch.tensor([0.3, 1.0, 2.5]).double()
    mixer.log_ridge.data = ridge.log()
    assert torch.allclose(mixer(q, k, v), mesa_layer(k, v, q, ridge))
    assert not torch.allclose(mixer(q, k, v), mesa_layer(v, k, q, ridge), atol=0.01)


def test_mixed_heads_follow_their_own_rules() -> None:
    q, k, v = heads(2, 6, 4, 3)
    mixed = MixedAttention(4, 3, linear=1, mesa=2).build()
    apart = (SoftmaxAttention(1, 3), LinearAttention(1, 3), MesaAttention(2, 3))
    parts = zip(apart, *(t.split([1, 1, 2], 2) for t in (q, k, v)), strict=True)
    want = torch.cat([kind.build()(*part) for kind, *part in parts], 2)
    assert torch.allclose(mixed(q, k, v), want)
    other = MixedAttention(4, 3, linear=2, mesa=1).build()
    assert not torch.allclose(other(q, k, v), want, atol=0.01)


def test_mixed_heads_are_counted() -> None:
    with pytest.raises(InputError, match="more linear and mesa heads"):
        MixedAttention(2, 3, linear=2, mesa=1)


@each_kind
def test_projections_by_head(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind)
    _, cache = model.run_with_cache(tokens())
    attn = model.blocks[1].attn
    x = cache["blocks.1.hook_resid_pre"]
    for head in range(2):
        for weight, hook in ((attn.W_Q, "hook_q"), (attn.W_K, "hook_k"), (attn.W_V, "hook_v")):
            got, raw = cache[f"blocks.1.attn.{hook}"][:, :, head], x @ weight[head]
            unit = hook != "hook_v"  # this block normalises queries and keys
            want = raw / raw.norm(dim=-1, keepdim=True) if unit else raw
            assert torch.allclose(got, want, atol=1e-5)
            assert not (unit and torch.allclose(got, raw, atol=1e-2))


def test_positions_reach_queries_and_keys_only(tiny_model: Model) -> None:
    model = tiny_model("linear")
    _, cache = model.run_with_cache(tokens())
    attn, x = model.blocks[0].attn, cache["blocks.0.hook_resid_pre"]
    placed = torch.cat([x, sinusoids(7, 6).expand(2, -1, -1)], -1)
    q = torch.einsum("btm,hmd->bthd", placed, attn.W_Q)
    v = torch.einsum("btm,hmd->bthd", x, attn.W_V)
    assert torch.allclose(cache["blocks.0.attn.hook_q"], q, atol=1e-5)
    assert torch.allclose(cache["blocks.0.attn.hook_v"], v, atol=1e-5)
    assert attn.W_Q.shape == (2, 12, 4)
    assert attn.W_V.shape == (2, 6, 4)


def test_sinusoids_known_values() -> None:
    """Channel 2i is sin(t / 10000^(2i/width)), channel 2i+1 the cosine (Vaswani et al., 3.5)."""
    table = sinusoids(50, 40)
    for t in (0, 1, 7, 49):
        for i in (0, 1, 9, 19):
            angle = t / 10000 ** (2 * i / 40)
            assert float(table[t, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(table[t, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-5)
    assert table[0].tolist() == [0.0, 1.0] * 20


# Options of a block and of the model


def plain_model(**options: Any) -> SequenceTransformer:
    block = BlockConfig(LinearAttention(2, 4), clip=options.pop("clip", None))
    model = SequenceTransformer(ModelConfig(6, 6, 3, (block,), projected=False, **options))
    model.initialise(0.5, generator_for(1))
    return model.requires_grad_(False)


def test_without_projections_the_token_is_the_stream() -> None:
    model = plain_model()
    x = tokens(width=6)
    output, cache = model.run_with_cache(x)
    assert model.W_E is None
    assert torch.equal(cache["hook_embed"], x)
    assert torch.equal(output, cache["hook_resid_final"][..., :3])


def test_masking_hides_the_first_channels() -> None:
    masked, x = plain_model(masked=2), tokens(width=6)
    _, cache = masked.run_with_cache(x)
    assert cache["hook_embed"][..., :2].eq(0).all()
    assert torch.equal(cache["hook_embed"][..., 2:], x[..., 2:])
    other = x.clone()
    other[..., :2] += 5.0
    assert torch.equal(masked(x), masked(other))
    assert not torch.equal(plain_model()(x), plain_model()(other))  # control: without a mask


def test_clip_bounds_the_stream() -> None:
    x = 5 * tokens(width=6)
    _, clipped = plain_model(clip=1.5).run_with_cache(x)
    _, free = plain_model().run_with_cache(x)
    assert float(clipped["hook_resid_final"].abs().max()) == 1.5
    assert float(free["hook_resid_final"].abs().max()) > 1.5
    assert torch.equal(clipped["blocks.0.hook_resid_post"], free["blocks.0.hook_resid_post"])


def test_mlp_is_tanh_gelu(tiny_model: Model) -> None:
    model = tiny_model("linear")
    _, cache = model.run_with_cache(tokens())
    x = (cache["blocks.0.hook_resid_pre"] + cache["blocks.0.hook_attn_out"]).double().numpy()
    mlp = model.blocks[0].mlp
    inner = x @ mlp.W_in.double().numpy()
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    want = gelu @ mlp.W_out.double().numpy()
    np.testing.assert_allclose(cache["blocks.0.hook_mlp_out"], want, atol=1e-5)


@each_kind
def test_initialise_is_seeded(kind: str, tiny_model: Model) -> None:
    x = tokens()
    assert torch.equal(tiny_model(kind, 1)(x), tiny_model(kind, 1)(x))
    assert not torch.equal(tiny_model(kind, 1)(x), tiny_model(kind, 2)(x))


@each_kind
def test_gradients_reach_every_parameter(kind: str, tiny_model: Model) -> None:
    model = tiny_model(kind).requires_grad_(True)
    model(tokens()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# The description


@each_kind
def test_description_round_trip(kind: str, tiny_config: Callable[[str], ModelConfig]) -> None:
    config = tiny_config(kind)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict(config.to_dict()) == config


@given(
    kinds=st.lists(st.sampled_from(KIND_NAMES), min_size=1, max_size=4),
    sizes=st.tuples(*(st.integers(1, 50) for _ in range(4))),
    clip=st.none() | st.floats(0.1, 100),
    unit=st.sets(st.sampled_from("qkv")),
)
def test_any_description_round_trips(
    kinds: list[str], sizes: tuple[int, int, int, int], clip: float | None, unit: set[str]
) -> None:
    d_in, d_model, d_out, n = sizes
    blocks = tuple(
        BlockConfig(KINDS[kind](n, n), positions=2 * n, unit=tuple(unit), d_mlp=n, clip=clip)
        for kind in kinds
    )
    config = ModelConfig(d_in, d_model, d_out, blocks, projected=True)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert [type(b.attention) for b in again.blocks] == [KINDS[kind] for kind in kinds]


def damaged(config: ModelConfig, *path: Any, value: Any) -> dict[str, Any]:
    """A description with one entry replaced, or dropped where the value is ..."""
    plain = json.loads(json.dumps(config.to_dict()))
    place = plain
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return plain


JUNK = (None, "4", 4.0, True, [], {}, [[1]], -1, 10**12, 10**30, float("nan"))
BROKEN = (
    *((("d_in",), junk) for junk in (*JUNK, 0, ...)),
    *((("d_model",), junk) for junk in (*JUNK, 0, ...)),
    *((("d_out",), junk) for junk in (*JUNK, 0, ...)),
    *((("masked",), junk) for junk in (None, "4", 4.0, True, [], -1, 10**12, 6)),
    *((("projected",), junk) for junk in (None, "yes", 1, [], ...)),
    *((("blocks",), junk) for junk in (None, "block", 4, [], {}, [None], [[]], [{}], ["x"], ...)),
    (("unheard",), 1),
    (("blocks", 0, "unheard"), 1),
    *((("blocks", 0, "attention"), junk) for junk in (None, "linear", [], {}, 3, ...)),
    *((("blocks", 0, "attention", "kind"), junk) for junk in (None, "lineer", [], {}, 3, ...)),
    *((("blocks", 0, "attention", "heads"), junk) for junk in (*JUNK, 0, ...)),
    *((("blocks", 0, "attention", "d_head"), junk) for junk in (*JUNK, 0, ...)),
    (("blocks", 0, "attention", "unheard"), 1),
    *((("blocks", 0, "positions"), junk) for junk in (*JUNK, 3)),
    *((("blocks", 0, "d_mlp"), junk) for junk in JUNK),
    *((("blocks", 0, "unit"), junk) for junk in (None, "q", 4, {}, ["x"], [["q"]], [None])),
    *(
        (("blocks", 0, "clip"), junk)
        for junk in ("4", True, [], {}, 0, -1.0, 10**400, float("nan"), float("inf"))
    ),
)


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=lambda part: str(part)[:40])
def test_broken_descriptions_are_refused_in_one_line(
    path: tuple[Any, ...], value: Any, tiny_config: Callable[[str], ModelConfig]
) -> None:
    plain = damaged(tiny_config("mesa"), *path, value=value)
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict(plain)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 300


def test_errors_name_the_fault(tiny_config: Callable[[str], ModelConfig]) -> None:
    config = tiny_config("linear")
    for path, value, expected in (
        (("blocks", 0, "attention", "kind"), "lineer", "'lineer'; known: linear, "),
        (("d_model",), 10**12, "d_model is 1000000000000"),
        (("d_in",), ..., "missing d_in"),
        (("unheard",), 1, "unknown 'unheard'"),
        (("blocks",), [], "model without blocks"),
        (("blocks", 0, "unit"), ["x"], "unit names"),
    ):
        with pytest.raises(InputError, match=expected):
            ModelConfig.from_dict(damaged(config, *path, value=value))


def test_too_many_blocks_are_refused(tiny_config: Callable[[str], ModelConfig]) -> None:
    plain = tiny_config("linear").to_dict()
    plain["blocks"] = list(plain["blocks"]) * 101
    with pytest.raises(InputError, match="at most 200"):
        ModelConfig.from_dict(plain)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_nested_junk_is_refused(junk: Any) -> None:
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict({"blocks": junk} if not isinstance(junk, dict) else junk)
    assert len(str(caught.value).splitlines()) == 1


def test_shapes_that_fit_no_tensor_are_refused(tiny_config: Callable[[str], ModelConfig]) -> None:
    bare = replace(tiny_config("linear"), projected=True)
    with pytest.raises(InputError, match="d_in 3 must equal d_model 6"):
        replace(bare, projected=False)
    with pytest.raises(InputError, match="d_out 7 exceeds d_model 6"):
        replace(bare, d_in=6, d_out=7, projected=False)


def test_misshapen_tokens_are_refused(tiny_model: Model) -> None:
    with pytest.raises(TypeError, match="tokens"):
        tiny_model("linear")(torch.zeros(7, 3))
