"""Streaming moments: what is summed batch by batch is what all tokens together give."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probe.capture import read_sites
from probe.errors import InputError
from probe.linear_probe import RidgeProbe
from probe.models.bridge import BridgedModel
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for, normal
from probe.stream_probes import stream_probes
from probe.streaming import (
    NOTHING,
    StreamSums,
    Targets,
    next_token,
    site_groups,
    stream_groups,
    stream_sums,
)

Model = Callable[..., SequenceTransformer]
FIRST_THREE = Targets(lambda tokens: tokens[:, 1:, :3], 3, slice(None, -1))
EXACT = 1e-6  # of sqrt(xx_ii xx_jj), as promised
WORDS = 23


@pytest.fixture(scope="module")
def gpt2() -> BridgedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=16,
        n_embd=48,
        n_layer=3,
        n_head=2,
        attn_implementation="eager",
    )
    return BridgedModel(GPT2LMHeadModel(config))


def sequences(count: int, seed: int = 0) -> torch.Tensor:
    return normal(generator_for(seed, count), count, 7, 3).float()


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(WORDS, shape, generator=generator_for(seed, 9))


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    """The largest error of a second moment, in units of sqrt(xx_ii xx_jj)."""
    true = x.double().T @ x.double()
    size = true.diagonal().sqrt().clamp_min(1e-300)
    return float(((found - true).abs() / size / size[:, None]).max())


def blocks_run(model: torch.nn.Module, count: list[int]) -> list[object]:
    def note(index: int) -> Callable[..., None]:
        return lambda *_: count.append(index)

    return [block.register_forward_pre_hook(note(i)) for i, block in enumerate(model.blocks)]


@given(
    rows=st.integers(1, 700),
    d=st.sampled_from([1, 5, 255, 256, 300, 600]),
    k=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    offset=st.sampled_from([0.0, 30.0]),
)
def test_sums_are_exact_to_1e6(
    rows: int, d: int, k: int, dtype: torch.dtype, offset: float
) -> None:
    x = (normal(generator_for(rows, d), rows, d) + offset).to(dtype)
    y = normal(generator_for(rows, d, 7), rows, k).float()
    sums = StreamSums.empty(d, k, x.device)
    sums.add_(x, y)
    moments = sums.moments()
    assert int(sums.rows) == rows
    assert error(moments.xx, x) < EXACT
    assert torch.equal(moments.xx, moments.xx.T)
    assert torch.allclose(sums.x, x.double().sum(0), rtol=EXACT, atol=1e-9)
    cross = x.double().T @ y.double()
    size = x.double().norm(dim=0)[:, None] * y.double().norm(dim=0)
    assert bool(((moments.xy - cross).abs() <= EXACT * size).all())
    assert torch.allclose(moments.yy, y.double().square().sum(0))
    if rows > 1:  # control
        assert error(moments.xx, x[:-1]) > 1e-3 / rows


def test_rounding_does_not_grow_with_tokens() -> None:
    """300,000 tokens of one sign; a sum in float32 is off by far more."""
    x = normal(generator_for(0), 4096, 8).float().abs() + 1
    sums, narrow = StreamSums.empty(8, 0, x.device), torch.zeros(8, 8)
    for _ in range(75):
        sums.add_(x, x[:, :0])
        for part in x.split(16):
            narrow += part.T @ part
    assert error(sums.moments().xx / 75, x) < EXACT
    assert error(narrow.double() / 75, x) > EXACT


def test_the_stream_of_a_narrow_model_is_near_the_wide_one(gpt2: BridgedModel) -> None:
    """Rounding to 8 bits: 2^-9 per entry at each write to the stream, here below 2^-6 in all."""
    from copy import deepcopy

    tokens = words(20, 16)
    narrow = deepcopy(gpt2).to(torch.bfloat16)
    wide = stream_sums(gpt2, [tokens], gpt2.layer_sites())
    for site, sums in stream_sums(narrow, [tokens], narrow.layer_sites()).items():
        true, found = wide[site].moments().xx, sums.moments().xx
        assert 1e-5 < float((true - found).norm() / true.norm()) < 2**-6
    assert next(narrow.parameters()).dtype == torch.bfloat16


@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kind=st.sampled_from(["linear", "softmax", "mesa"]),
)
def test_sums_are_those_of_all_tokens(tiny_model: Model, cuts: list[int], kind: str) -> None:
    model, tokens = tiny_model(kind), sequences(sum(cuts))
    sites = model.layer_sites()
    streamed = stream_sums(model, tokens.split(cuts), sites, FIRST_THREE)
    _, cache = model.run_with_cache(tokens)
    y = tokens[:, 1:].flatten(0, 1).double()
    for site in sites:
        x = cache[site][:, :-1].flatten(0, 1)
        moments = streamed[site].moments()
        assert error(moments.xx, x) < 1e-5
        assert torch.allclose(moments.xy, x.double().T @ y, atol=1e-4)
        centred = streamed[site].centred()
        spread = x.double() - x.double().mean(0)
        assert torch.allclose(centred.centred.xx, spread.T @ spread, atol=1e-4)
        assert torch.allclose(centred.mean_x, x.double().mean(0), atol=1e-6)
    _, other = model.run_with_cache(sequences(sum(cuts), seed=1))  # control
    assert error(streamed[sites[1]].moments().xx, other[sites[1]][:, :-1].flatten(0, 1)) > 1e-2


@given(held=st.integers(1, 5))
def test_groups_give_what_one_pass_gives(gpt2: BridgedModel, held: int) -> None:
    sites, batches = gpt2.layer_sites(), [words(3, 9, seed=i) for i in range(2)]
    bound = held * StreamSums.size(gpt2.d_model, 0)
    groups = list(stream_groups(gpt2, batches, sites, bound=bound))
    assert [len(group) for group in groups] == [
        len(sites[i : i + held]) for i in range(0, len(sites), held)
    ]
    whole = stream_sums(gpt2, batches, sites)
    joined = {site: sums for group in groups for site, sums in group.items()}
    assert list(joined) == list(sites)
    for site in sites:
        assert torch.equal(joined[site].products.xx, whole[site].products.xx)
    assert not torch.equal(joined[sites[0]].products.xx, whole[sites[1]].products.xx)


@given(first=st.integers(1, 6), second=st.integers(1, 6))
def test_states_merge(gpt2: BridgedModel, first: int, second: int) -> None:
    site = gpt2.layer_sites()[2:3]
    parts = [words(count, 8, seed=seed) for seed, count in enumerate((first, second))]
    one, other = (stream_sums(gpt2, [part], site)[site[0]] for part in parts)
    both = stream_sums(gpt2, parts, site)[site[0]]
    merged = one.merge(other)
    assert int(merged.rows) == 8 * (first + second)
    assert torch.allclose(merged.products.xx, both.products.xx, rtol=1e-6, atol=1e-7)
    assert torch.allclose(merged.x, both.x, atol=1e-5)
    wrong = one.merge(one)  # control
    assert not torch.allclose(wrong.products.xx, both.products.xx, rtol=1e-3)


def test_layers_of_different_sites_do_not_merge_unseen(gpt2: BridgedModel) -> None:
    """The control of the groups: sums of a site that is left out are not those of another."""
    sites = gpt2.layer_sites()
    sums = stream_sums(gpt2, [words(4, 8)], sites[:-1])
    assert set(sums) == set(sites[:-1])
    with pytest.raises(KeyError):
        sums[sites[-1]]


@pytest.mark.parametrize("deepest", range(3))
def test_no_block_above_the_deepest_site_is_run(
    tiny_model: Model, gpt2: BridgedModel, deepest: int
) -> None:
    for model, tokens, most in ((tiny_model("linear"), sequences(2), 2), (gpt2, words(2, 8), 3)):
        count: list[int] = []
        handles = blocks_run(model if most == 2 else model.bridge, count)
        seen: list[str] = []
        sites = model.layer_sites()[: deepest + 1]
        notes = {
            site: partial(lambda into, site, _: into.append(site), seen, site) for site in sites
        }
        read_sites(model, tokens, notes)
        for handle in handles:
            handle.remove()
        assert seen == list(sites)
        # The stream before a block is seen by a hook inside of it.
        assert max(count) <= min(deepest, most - 1)
        assert len(count) == len(set(count))
    plain: list[int] = []
    handles = blocks_run(model.bridge, plain)
    model(tokens)  # control: the model itself runs them all
    for handle in handles:
        handle.remove()
    assert plain == [0, 1, 2]


def test_no_hook_stays_behind(gpt2: BridgedModel) -> None:
    tokens = words(2, 8)
    before, calls = gpt2(tokens), []
    read_sites(gpt2, tokens, {gpt2.layer_sites()[1]: calls.append})
    assert torch.equal(gpt2(tokens), before)
    assert len(calls) == 1
    with pytest.raises(ZeroDivisionError):
        read_sites(gpt2, tokens, {gpt2.layer_sites()[1]: lambda _: 1 / 0})
    assert torch.equal(gpt2(tokens), before)


def test_a_site_that_is_not_passed_is_named(tiny_model: Model) -> None:
    model = tiny_model("linear")
    site = "blocks.1.hook_mlp_out"  # the last block has no MLP
    with pytest.raises(InputError, match=site):
        read_sites(model, sequences(1), {site: lambda _: None})


def test_a_block_may_lie_on_the_disk(tiny_model: Model, tmp_path) -> None:
    from accelerate import dispatch_model

    model, tokens = tiny_model("softmax"), sequences(5)
    sites = model.layer_sites()
    whole = stream_sums(model, [tokens], sites)
    places = {"": "cpu", "blocks.0": "cpu", "blocks.1": "disk"}
    split = dispatch_model(tiny_model("softmax"), places, offload_dir=tmp_path, force_hooks=True)
    assert any(parameter.is_meta for parameter in split.parameters())
    for site, sums in stream_sums(split, [tokens], sites).items():
        assert torch.allclose(sums.products.xx, whole[site].products.xx)


def test_streams_that_are_not_finite_are_refused(tiny_model: Model) -> None:
    model, tokens = tiny_model("linear"), sequences(3)
    tokens[0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        stream_sums(model, [tokens], model.layer_sites())


def test_no_tokens_are_refused(tiny_model: Model) -> None:
    model = tiny_model("linear")
    with pytest.raises(InputError, match="no tokens"):
        stream_sums(model, [], model.layer_sites())


def test_a_bound_below_one_site_is_refused() -> None:
    size = StreamSums.size(768, 5)
    assert site_groups(("a", "b", "c"), 768, 5, 2 * size) == (("a", "b"), ("c",))
    with pytest.raises(InputError, match=str(size)):
        site_groups(("a",), 768, 5, size - 1)


def test_batches_that_can_be_read_once_do_for_one_group_only(gpt2: BridgedModel) -> None:
    sites, size = gpt2.layer_sites(), StreamSums.size(gpt2.d_model, 0)

    def batches() -> Iterator[torch.Tensor]:
        yield words(2, 8)

    assert len(list(stream_groups(gpt2, batches(), sites, bound=4 * size))) == 1
    with pytest.raises(InputError, match="2 passes"):
        list(stream_groups(gpt2, batches(), sites, bound=3 * size))


@given(d=st.integers(1, 40), k=st.integers(0, 6))
def test_size_is_what_the_sums_take(d: int, k: int) -> None:
    sums = StreamSums.empty(d, k, torch.device("cpu"))
    held = [sums.rows, sums.x, sums.y, *vars(sums.products).values()]
    assert sum(part.nbytes for part in held) == StreamSums.size(d, k)


def test_probes_are_those_of_all_rows(gpt2: BridgedModel) -> None:
    """Against RidgeProbe on the standardised stream itself."""
    targets = next_token(torch.eye(WORDS)[:, :4])
    fitted, held_out = ([words(8, 16, seed=10 * s + i) for i in range(4)] for s in (1, 2))
    probes = stream_probes(gpt2, fitted, held_out, targets)
    assert [probe.site for probe in probes] == list(gpt2.layer_sites())

    def rows(batches: list[torch.Tensor], site: str) -> tuple[torch.Tensor, torch.Tensor]:
        streams = [gpt2.run_with_cache(part, names_filter=[site])[1][site] for part in batches]
        x = torch.cat(streams)[:, :-1].flatten(0, 1).double()
        return x, torch.cat([targets.of(part) for part in batches]).flatten(0, 1).double()

    for probe in probes[::3]:
        x, y = rows(fitted, probe.site)
        scale = x.std(0, correction=0)
        direct = RidgeProbe().fit((x / scale).float().numpy(), y.float().numpy())
        weights = torch.from_numpy(direct.coef_).T / scale[:, None]
        assert torch.allclose(probe.weights, weights, atol=1e-3 * float(weights.abs().max()))
        x, y = rows(held_out, probe.site)
        left = (y - x @ probe.weights - probe.offset).square().sum(0)
        r2 = 1 - left / (y - y.mean(0)).square().sum(0)
        assert torch.allclose(probe.r2, r2, atol=1e-4)


def test_probes_read_what_a_layer_holds_and_nothing_else(gpt2: BridgedModel) -> None:
    """A fixed map of the token stands in the first stream; the next random token nowhere."""
    vectors = normal(generator_for(4), WORDS, 2).float()
    own = Targets(lambda tokens: vectors[tokens], 2)
    batches = [[words(16, 16, seed=10 * s + i) for i in range(4)] for s in (3, 4)]
    size = StreamSums.size(gpt2.d_model, 2)
    held = stream_probes(gpt2, *batches, own, bound=2 * size)
    absent = stream_probes(gpt2, *batches, next_token(vectors))
    assert float(held[0].r2.min()) > 0.9
    assert float(torch.stack([probe.r2 for probe in absent]).max()) < 0.1
    assert NOTHING.width == 0
