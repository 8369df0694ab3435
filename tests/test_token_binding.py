"""Token binding: each measure against another computation, planted models, and published ones."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from analyses.token_binding import TokenBinding
from probe.analysis import Bench, Setting
from probe.capture import Capture, capture
from probe.checkpoints.base import Subject, load
from probe.findings import Finding
from probe.models.attention import MesaAttention
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.plan import Plan
from probe.planted.base import families_planted
from probe.planted.disguises.base import disguises
from probe.planted.frame import Frame
from probe.planted.slots import Head, Layer
from probe.report.figures import render
from probe.sampling import generator_for, normal
from probe.statistics import Interval
from probe.sweep import Sweep
from probe.tasks.base import Task, find_task
from probe.tasks.linear_dynamics import ConstructedTokens, LinearDynamics
from probe.tasks.teachers import Contracting, Orthogonal
from probe.token_binding.attention import contributions, mixing_weights, without
from probe.token_binding.decoding import Decoding, LayerLags, TokenLags, decodings
from probe.token_binding.measure import measure
from probe.token_binding.reading import contrast, read
from probe.token_binding.sensitivity import sensitivity
from probe.token_binding.window import LagWindow
from probe.views import ANOTHER, SUBJECT, TWIN, permuted_twin

RAW = LinearDynamics("raw", Orthogonal(), width=4, length=20)
CONSTRUCTED = replace(RAW, name="constructed", layout=ConstructedTokens())
KINDS = ("linear", "softmax", "mesa")


def subject_of(model: SequenceTransformer) -> Subject:
    return Subject("planted", "none", model, None, "", ())


def finding_of(model: SequenceTransformer, task: Task = RAW, seed: int = 0) -> Finding:
    plan = Plan(task, 256, seed, workers=1)
    setting = Setting(task, len(model.blocks), task.windows, (1.0, 2.0), 2.0, 1.0, 0.01)
    return TokenBinding().run(Bench(subject_of(model), plan, setting, {}))


def planted(family: str, task: Task, seed: int = 2) -> SequenceTransformer:
    return families_planted()[family].draw(task, generator_for(seed)).model


# --- The measures. ---


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_weights_rebuild_what_attention_adds(kind, tiny_model, small_task):
    model = tiny_model(kind)
    tokens = small_task.sample(3, generator_for(1)).tokens
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        q, k, v = (cache[f"blocks.{layer}.attn.hook_{role}"] for role in "qkv")
        weights = mixing_weights(block.attn, q, k)
        added = torch.einsum("bhtj,bjhc,hcm->btm", weights, v, block.attn.W_O)
        assert torch.allclose(added, cache[f"blocks.{layer}.hook_attn_out"], atol=1e-4)
        if kind != "mesa":
            pattern = cache[f"blocks.{layer}.attn.mixer.hook_pattern"]
            assert torch.allclose(weights, pattern, atol=1e-6)
        assert float(weights.triu(1).abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_token_a_block_adds_nothing(kind, tiny_model, small_task):
    model = tiny_model(kind)
    tokens = small_task.sample(2, generator_for(1)).tokens
    silent = [("blocks.0.hook_attn_out", lambda added, hook: torch.zeros_like(added))]
    expected = model.run_with_hooks(tokens, fwd_hooks=silent)
    left = without(model, tokens, 0, range(small_task.length))
    assert torch.allclose(left, expected, atol=1e-3)
    assert torch.allclose(without(model, tokens, 0, []), model(tokens), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_are_norms_of_weighted_ov_circuits(kind, tiny_model, small_task):
    model, window = tiny_model(kind), LagWindow.late(small_task.length)
    tokens = small_task.sample(2, generator_for(1)).tokens
    _, cache = model.run_with_cache(tokens)
    found = contributions(model, tokens, window)[1]
    attention, sequence, head, lag = model.blocks[1].attn, 1, 0, 3
    q, k, v = (cache[f"blocks.1.attn.hook_{role}"] for role in "qkv")
    weights = mixing_weights(attention, q, k)
    norms = [
        float(weights[sequence, head, t, t - lag].abs())
        * float((v[sequence, t - lag, head] @ attention.W_O[head]).norm())
        for t in range(window.first, window.stop)
    ]
    expected = sum(norms) / len(norms)
    assert float(found.by_lag[sequence, head, lag]) == pytest.approx(expected, rel=1e-4)
    assert bool((found.by_lag.sum(-1) <= found.total * (1 + 1e-5)).all())


def unpaired_mesa() -> SequenceTransformer:
    blocks = (BlockConfig(MesaAttention(2, 4, unpaired=1)),)
    model = SequenceTransformer(ModelConfig(3, 6, 3, blocks, projected=True))
    model.initialise(0.5, generator_for(3))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", [*KINDS, "unpaired mesa"])
def test_derivatives_equal_those_of_reverse_mode(kind, tiny_model, small_task):
    model = unpaired_mesa() if kind == "unpaired mesa" else tiny_model(kind)
    model = deepcopy(model).double()
    tokens = small_task.sample(2, generator_for(1)).tokens.double()
    source, lags = 1, 4
    found = sensitivity(model, tokens, source, lags)
    sites = model.layer_sites()

    def streams(token: torch.Tensor) -> torch.Tensor:
        changed = tokens[1:].clone()
        changed[0, source] = token
        later, seen = slice(source, source + lags), []
        keep = [(site, lambda x, hook: seen.append(x[0, later].flatten())) for site in sites]
        output = model.run_with_hooks(changed, fwd_hooks=keep)
        return torch.cat([*seen, output[0, later].flatten()])

    expected = jacobian(streams, tokens[1, source])
    d_model, count = model.config.d_model, len(sites) * lags
    stream = expected[: count * d_model].reshape(len(sites), lags, -1).norm(dim=-1)
    output = expected[count * d_model :].reshape(lags, -1).norm(dim=-1)
    assert torch.allclose(found.stream[1], stream, rtol=1e-6, atol=1e-9)
    assert torch.allclose(found.output[1], output, rtol=1e-6, atol=1e-9)


def decoded(layers, task: Task, sequences: int = 512) -> tuple[dict[str, Decoding], LagWindow]:
    """Decodings of a stream that is made of the observations."""

    def view(context, captures):
        stream = torch.stack(layers(context.sequences.observations[:, :-1]))
        stream = stream @ normal(generator_for(1), stream.shape[-1], stream.shape[-1]).float()
        return context, Capture(stream[-1], stream, stream[1:], stream)

    window = LagWindow.late(task.length)
    stages = LayerLags(window, task.width_out), TokenLags(window, task.width_out)
    plan = Plan(task, sequences, 0, workers=1)
    views = dict.fromkeys((SUBJECT, TWIN, ANOTHER), view)
    return decodings(Sweep(plan, {}, views, capture).run(stages), *stages), window


def lagged(tokens: torch.Tensor, lag: int) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, 0, lag, 0))[:, : tokens.shape[1]]


def test_a_token_that_others_tell_is_not_held_by_them():
    """Contracting maps have a mean, so s_t tells s_{t-1} and that tells s_{t-2}."""
    task = replace(RAW, teacher=Contracting(), clip=2.0)

    def layers(tokens):
        nothing = torch.zeros_like(tokens)
        alone, pair, later = nothing, lagged(tokens, 1), lagged(tokens, 2)
        return [torch.cat([tokens, second], -1) for second in (alone, pair, later)]

    found = decoded(layers, task, 4096)[0][SUBJECT]
    assert found.r2(0, 1).value > 0.3 and found.r2(1, 2).value > 0.3
    held = [[found.held(layer, lag).value for lag in (1, 2)] for layer in range(3)]
    assert held[0][0] == pytest.approx(0, abs=0.02) and held[0][1] < 0.01
    assert held[1][0] > 0.9999 and held[1][1] == pytest.approx(0, abs=0.02)
    assert held[2][1] > 0.9999 and held[2][0] < 0.9


def test_innovations_are_errors_of_least_squares_on_the_more_recent_tokens():
    found, window = decoded(lambda tokens: [tokens, tokens], RAW)
    plan = Plan(RAW, 512, 0)
    fit, test = (
        torch.cat([plan.draw(split, i, n).observations for i, (_, n) in enumerate(cut)])
        for split, cut in ((2, plan.shards(2)), (3, plan.shards(3)))
    )
    lag = 3
    x, y = (window.earlier(part).double().flatten(0, 1) for part in (fit, test))
    weights = torch.linalg.lstsq(x[:, :lag].flatten(1), x[:, lag]).solution
    left = (y[:, lag] - y[:, :lag].flatten(1) @ weights).square().sum()
    assert float(found[SUBJECT].innovation[:, lag].sum()) == pytest.approx(float(left), rel=0.02)
    square = y[:, lag].square().mean()
    assert found[SUBJECT].mean_square(0, lag).value == pytest.approx(float(square), rel=0.02)


def test_contrast_sets_the_weakest_named_lag_against_the_strongest_other():
    by_lag = torch.tensor([9.0, 6.0, 4.0, 2.0, 1.0]).expand(64, 5)
    assert contrast(by_lag, [1, 2]) == Interval(2.0, 2.0, 2.0)
    assert contrast(by_lag, [2]).value == pytest.approx(4 / 6)
    assert contrast(by_lag, [1, 2, 3, 4]).value == float("inf")


@given(st.integers(2, 300))
def test_every_position_of_a_window_has_all_its_lags(length):
    window = LagWindow.late(length)
    assert 1 <= window.lags <= 16 and window.stop == length
    assert int(window.sources.min()) >= 0 and window.first < window.stop
    assert window.stop - window.first <= 32


# --- Planted models. ---


LEARNERS = ("gradient_descent", "ridge")


@pytest.mark.parametrize("disguise", [None, "rotation"])
@pytest.mark.parametrize("family", LEARNERS)
def test_the_copying_layer_of_a_learner_is_found(family, disguise):
    made = families_planted()[family].draw(RAW, generator_for(2))
    if disguise:
        made = disguises()[disguise].apply(made, generator_for(3))
    found = finding_of(made.model)
    assert found.outcome == "supports"
    assert found.metrics["copying_layer"].value == found.metrics["horizon"].value == 1
    assert found.metrics["held"].lo > 0.999 and found.metrics["gain"].lo > 0.9
    assert found.metrics["attention_contrast"].lo > 100
    assert found.metrics["derivative_contrast"].lo > 100
    assert found.metrics["use"].lo > 0.1
    assert "Attention and derivatives agree" in found.statement
    assert found.bearing.startswith("Layer 1 sets s_{t-1} beside s_t")
    assert found.controls["permuted_twin_held"].hi < 0.5
    assert found.controls["another_sequence_r2"].hi < 0.05


@pytest.mark.parametrize("disguise", [None, "rotation"])
@pytest.mark.parametrize("family", ["two_lag_copy", "context_free"])
def test_a_copy_that_looks_no_further_back_speaks_against_a_learner(family, disguise):
    made = families_planted()[family].draw(RAW, generator_for(2))
    if disguise:
        made = disguises()[disguise].apply(made, generator_for(3))
    found = finding_of(made.model)
    assert found.metrics["copying_layer"].value == found.metrics["horizon"].value == 1
    assert found.metrics["reach"].hi < 1e-3
    assert found.outcome == "contradicts" and "nothing is learned" in found.bearing


def test_a_second_copying_layer_moves_the_horizon():
    frame = Frame.of(RAW, {"before": RAW.width})
    first = frame.front[0].heads[0]
    read, write = frame.slots.read, frame.slots.write
    again = Head(first.query, first.key, read("prev"), write("before"))
    found = finding_of(frame.build((Layer(frame.front[0].kind, (again,)),)))
    assert found.metrics["copying_layer"].value == 1 and found.metrics["horizon"].value == 2
    assert "Layer 2 sets s_{t-2} beside s_t" in found.statement


def test_a_copy_that_nothing_reads_does_not_support():
    """A mean of values looks back over all tokens, but not at the keys beside them."""
    found = finding_of(planted("mean", RAW))
    assert found.metrics["copying_layer"].value == 1 and found.metrics["reach"].lo > 0.5
    assert found.metrics["use"].hi < 1e-9 and found.outcome == "inconclusive"
    assert "does not clearly need it" in found.bearing


@pytest.mark.parametrize("family", ["gradient_descent", "context_free"])
def test_pairs_of_constructed_tokens_are_bound_in_the_tokens(family):
    found = finding_of(planted(family, CONSTRUCTED), CONSTRUCTED)
    assert "copying_layer" not in found.metrics and found.metrics["horizon"].value == 1
    assert "The tokens themselves set s_{t-1} beside s_t" in found.statement
    assert found.outcome == ("inconclusive" if family == "gradient_descent" else "contradicts")


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_binds_nothing(seed):
    found = finding_of(planted("untrained", RAW, seed))
    assert found.metrics["horizon"].value == 0 and found.outcome != "supports"
    assert found.bearing.startswith("No layer")


def test_permuted_weights_bind_nothing():
    twin = permuted_twin(planted("gradient_descent", RAW), 0)
    found = finding_of(twin)
    assert found.metrics["horizon"].value == 0 and found.outcome != "supports"


def test_a_model_of_single_tokens_contradicts(tiny_model):
    """Linear attention that writes nothing leaves nothing to mix."""
    model = planted("gradient_descent", RAW)
    for block in model.blocks:
        block.attn.W_O.zero_()
    linear = [replace(b, attention=replace_kind(b)) for b in model.config.blocks]
    config = replace(model.config, blocks=tuple(linear))
    still = SequenceTransformer(config)
    still.load_state_dict(model.state_dict())
    found = finding_of(still.eval().requires_grad_(False))
    assert found.outcome == "contradicts" and "no pairs to learn from" in found.bearing


def replace_kind(block: BlockConfig):
    from probe.models.attention import LinearAttention

    return LinearAttention(block.attention.heads, block.attention.d_head)


# --- The analysis as a whole. ---


def test_it_is_not_asked_where_tokens_hold_whole_pairs(tiny_subject, small_task):
    analysis = TokenBinding()
    assert "whole pairs" in analysis.lacks(tiny_subject, find_task("regression"))
    assert "too short" in analysis.lacks(tiny_subject, replace(small_task, length=3))
    assert analysis.lacks(tiny_subject, small_task) is None


def test_bits_do_not_depend_on_batches_or_workers(tiny_model, small_task):
    model = tiny_model("mesa")
    one, other = (
        measure(model, Plan(small_task, 256, 5, batch, workers), lambda done, total: None)
        for batch, workers in ((256, 1), (16, 2))
    )
    for view in one.decoded:
        assert torch.equal(one.decoded[view].error, other.decoded[view].error)
    assert torch.equal(one.middle.output, other.middle.output)
    assert read(one) == read(other)


def test_tables_and_figures(tiny_model, small_task):
    found = finding_of(tiny_model("linear"), small_task)
    decoded_rows, heads, derivatives = (table.frame for table in found.tables)
    assert len(decoded_rows) == 3 * 6 and len(heads) == 2 * 2 * 6 and len(derivatives) == 4 * 6
    first = decoded_rows[(decoded_rows.layer == 0) & (decoded_rows.lag == 0)]
    assert first.r2.item() == pytest.approx(1, abs=1e-4)
    assert all("<svg" in render(figure) for figure in found.figures)
    assert len({figure.name for figure in found.figures}) == 5


# --- Published models. ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "preset", "horizon", "held"),
    [
        ("linear_seq_fully/model_sm_7l_fullfledged.pkl", "softmax-7l", 1, 0.985),
        ("linear_seq_fully/model_mesa_fullfledged.pkl", "hybrid-mesa", 1, 0.986),
        ("linear_seq_partial/model_sm_7l_fullfledged.pkl", "partial-softmax-7l", 3, 0.999),
    ],
)
def test_published_models_copy_in_their_first_block(paper_data, file, preset, horizon, held):
    subject = load(paper_data / file, f"von-oswald-2023/{preset}")
    task = find_task(subject.task)
    setting = Setting(task, 2, task.windows, (1.0, 2.0), 2.0, 1.0, 0.01)
    found = TokenBinding().run(Bench(subject, Plan(task, 1024, 0, workers=1), setting, {}))
    assert found.outcome == "supports" and "derivatives agree" in found.statement
    assert found.metrics["copying_layer"].value == 1
    assert found.metrics["horizon"].value == horizon
    assert found.metrics["held"].value == pytest.approx(held, abs=0.01)
    assert found.controls["permuted_twin_held"].hi < 0.15


def test_a_published_model_that_copies_nothing(paper_data):
    file = paper_data / "linear_seq_fully/tokenanalysis_full_params.pkl#state_just_mesa"
    subject = load(file, "von-oswald-2023/linear-mesa")
    found = finding_of(subject.model, find_task(subject.task))
    assert found.outcome == "inconclusive" and found.metrics["horizon"].value == 0


@pytest.mark.parametrize(
    ("tree", "preset", "name"),
    [
        ("state_tf", "softmax-7l", "fully_dict_sm"),
        ("state_mesa", "hybrid-mesa", "fully_dict_mesa"),
    ],
)
def test_the_published_protocol_gives_the_published_token_binding(paper_data, tree, preset, name):
    from probe.reproduction.protocol import published_protocol
    from probe.reproduction.published import BINDING, Claim
    from probe.reproduction.sources import Source

    file = f"linear_seq_fully/tokenanalysis_full_params.pkl#{tree}"
    subject = load(paper_data / file, f"von-oswald-2023/{preset}")
    found = published_protocol(subject.model, find_task(subject.task), seed=0)
    ours = found.tables[1].frame
    assert list(ours.lag) == [7, 6, 5, 4, 3, 2, 1, 0]
    claim = Claim(BINDING, "linear_seq_fully/tokenanalysis_results.pkl", (name,))
    published = Source(paper_data).read(claim)
    ours_at = torch.tensor(ours.mean_square.to_numpy())
    away = (ours_at - published.mean[:, 0]).abs()
    # Five samples estimate a spread poorly: one published spread is a third of ours. So the
    # spread of a difference of two such samples decides.
    spread = (
        published.spread[:, 0].square() + torch.tensor(ours.spread.to_numpy()).square()
    ).sqrt()
    assert bool((away <= 3 * spread).all())
    assert int((away <= 3 * published.spread[:, 0]).sum()) >= 7
    assert bool((away[:-1] <= 0.1 * published.mean[:-1, 0]).all())
    assert found.metrics["token_binding_lag_1"].value == float(ours.mean_square[6])
