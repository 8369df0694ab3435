"""The atlas names planted heads and no others; its controls take names away."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from published_checkpoints import subject_of

import probe.atlas.read as reading
from analyses.head_atlas import HeadAtlas
from probe.analysis import installed_analyses
from probe.atlas import Atlas, finding_of, read_atlas, work_of
from probe.atlas.causal import causal_weights
from probe.atlas.naming import OPTIMIZERS, Controls, claims, name_of, read_planted, solver_of
from probe.atlas.read import positions_of
from probe.errors import InputError
from probe.findings import CategoryMap, HeatMap
from probe.models.attention import (
    AttentionKind,
    LinearAttention,
    MixedAttention,
    Mixer,
    SoftmaxAttention,
)
from probe.models.hooked import Cache, Heads, LanguageModel
from probe.models.norm import LayerNorm
from probe.models.transformer import BlockConfig, ModelConfig, SequenceTransformer
from probe.sampling import generator_for, normal
from probe.tasks.base import find_task

D_IN, D_HEAD, HEADS, SEQUENCES = 5, 4, 3, 64


def gpt2(*kinds: AttentionKind, time: int, seed: int = 0, std: float = 0.4) -> SequenceTransformer:
    """A GPT-2 backbone with random weights; every matrix, gain and bias is drawn."""
    width = kinds[0].heads * kinds[0].d_head
    blocks = tuple(BlockConfig(kind, d_mlp=2 * width) for kind in kinds)
    shape = ModelConfig(D_IN, width, 2, blocks, True, n_ctx=time, norm=LayerNorm(), biased=True)
    model = SequenceTransformer(shape)
    generator = generator_for(seed, 77)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = float(name.endswith(".w"))
            parameter.normal_(center, 0.1 if center else std, generator=generator)
            if name.endswith("log_ridge"):
                parameter.normal_(0.0, 1.0, generator=generator)
    return model.eval().requires_grad_(False)


def white(time: int):
    return lambda first, count: normal(generator_for(9, first), count, time, D_IN).float()


def atlas_of(model: SequenceTransformer, time: int = 24, seed: int = 0) -> Atlas:
    return read_atlas(model, white(time), SEQUENCES, seed)


SOFT = SoftmaxAttention(HEADS, D_HEAD)
MIXED = MixedAttention(HEADS, D_HEAD, linear=1, mesa=1)


@cache
def hidden(seed: int = 0) -> Atlas:
    """Softmax heads but for two of the block `seed % 3`: one linear head and one mesa head."""
    kinds = [SOFT] * 3
    kinds[seed % 3] = MIXED
    return atlas_of(gpt2(*kinds, time=24, seed=seed))


# Planted heads


@pytest.mark.parametrize("seed", range(4))
def test_planted_heads_are_found_among_others(seed: int) -> None:
    found = hidden(seed)
    named = {(h.layer, h.head): h.name for h in found.heads if h.name in OPTIMIZERS}
    assert named == {(seed % 3, 1): "gradient step", (seed % 3, 2): "least squares"}
    planted = [h for h in found.heads if h.name in OPTIMIZERS]
    assert all(h.by_construction and h.score.groups["softmax"].value < 0.9 for h in planted)
    others = [h for h in found.heads if h.name not in OPTIMIZERS]
    assert len(others) == 7
    assert all(h.name in ("kernel smoother", "mean", "copy") for h in others)
    assert found.misread == 0


def test_the_penalty_of_a_mesa_head_is_found() -> None:
    model = gpt2(MIXED, time=24, seed=3)
    model.blocks[0].attn.mixer.rules["mesa"].log_ridge.fill_(1.0)
    (head,) = [h for h in atlas_of(model).heads if h.name == "least squares"]
    assert head.score.groups["ridge"].value > 0.99
    assert head.score.groups["ridge"].constant == pytest.approx(2.718, rel=0.3)


def test_a_head_whose_keys_are_alike_has_no_pairs() -> None:
    """A linear rule; but every key is the bias, so that it sums its values, whatever they are."""
    model = gpt2(LinearAttention(2, 4), time=24)
    model.blocks[0].attn.W_K[0] = 0
    constant, other = atlas_of(model).heads
    assert (constant.name, other.name) == ("mean", "gradient step")
    assert constant.planted["step"] == "no power"


RANDOM = [
    (time, std, width, seed)
    for seed, (time, std, width) in enumerate(
        [(16, 0.02, 4), (16, 0.5, 8), (16, 3.0, 4), (33, 0.2, 16), (33, 1.0, 2), (64, 5.0, 8)]
    )
]


def no_optimizer(time: int, std: float, width: int, seed: int) -> None:
    model = gpt2(*(SoftmaxAttention(2, width),) * 2, time=time, seed=seed, std=std)
    found = atlas_of(model, time, seed)
    assert not [h for h in found.heads if h.name in OPTIMIZERS]
    assert all(h.score.groups["softmax"].value > 0.999 for h in found.heads)
    assert finding_of(found).outcome != "supports"


@pytest.mark.parametrize("case", RANDOM)
def test_random_softmax_models_have_no_optimizer(case: tuple[int, float, int, int]) -> None:
    no_optimizer(*case)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("time", [16, 64, 256])
def test_many_random_softmax_models_have_no_optimizer(time: int, seed: int) -> None:
    no_optimizer(time, (0.02, 0.1, 0.3, 0.6, 1.0, 2.0, 5.0, 20.0)[seed], 2 ** (1 + seed % 5), seed)


def test_small_weights_are_the_linear_regime() -> None:
    """The scores are so small that a step from the mean says all; it is remarked, not named."""
    found = atlas_of(gpt2(SOFT, time=24, std=0.15))
    assert all(h.linear and h.name in ("kernel smoother", "mean") for h in found.heads)
    sharp = atlas_of(gpt2(SOFT, time=24, std=3.0))
    assert not any(h.linear for h in sharp.heads)


# The rule of naming


def scored(seed: int = 0) -> dict[str, object]:
    return {h.name: h for h in hidden(seed).heads}


def test_a_solver_that_the_twin_shows_too_is_not_named() -> None:
    step = scored()["gradient step"].score
    soft = scored()["kernel smoother"].score
    assert name_of(step) == "gradient step"
    assert name_of(step, Controls(twin=soft, rule=soft)) == "gradient step"
    assert name_of(step, Controls(twin=step, rule=soft)) not in OPTIMIZERS
    assert name_of(step, Controls(twin=step, rule=None)) not in OPTIMIZERS
    built = Controls(twin=step, rule=step)
    assert built.by_construction and name_of(step, built) == "gradient step"
    gated = Controls(twin=step, rule=None, gated=True)
    assert gated.by_construction and name_of(step, gated) == "gradient step"


def test_a_solver_without_its_pairs_is_not_named() -> None:
    step = scored()["gradient step"].score
    same = {**step.shuffled, "step": step.groups["step"]}
    assert claims(step) == ("step",)
    assert claims(replace(step, shuffled=same)) == ()


def test_a_null_that_does_as_well_takes_the_name() -> None:
    step = scored()["gradient step"].score
    for null, name in (("copy", "copy"), ("mean", "mean"), ("smoother", "kernel smoother")):
        groups = {**step.groups, null: step.groups["step"]}
        assert name_of(replace(step, groups=groups)) == name


def test_step_and_ridge_that_agree_are_not_told_apart() -> None:
    step = scored()["gradient step"].score
    both = replace(
        step,
        groups={**step.groups, "ridge": step.groups["step"]},
        shuffled={**step.shuffled, "ridge": step.shuffled["step"]},
    )
    assert solver_of(both) == "step or least squares"
    assert read_planted(both, "ridge") == "named"
    assert read_planted(step, "ridge") == "misread"


def test_planted_solvers_that_a_null_answers_too_have_no_power() -> None:
    step = scored()["gradient step"].score
    groups = {**step.groups, "mean": step.groups["step"]}
    assert read_planted(replace(step, groups=groups), "step") == "no power"
    foreign = {**step.groups, "step": step.groups["copy"]}
    assert read_planted(replace(step, groups=foreign), "step") == "misread"


class Rotated(SequenceTransformer):
    """Its linear head gathers by other pairs than it shows: keys one token late."""

    def heads(self, layer: int, cache: Cache) -> Heads:
        seen = super().heads(layer, cache)
        return replace(seen, keys=seen.keys.roll(1, 1))


class Unknown(SequenceTransformer):
    """Does not tell its rule."""

    def mix(self, layer: int, heads: Heads) -> None:
        return None


class Gated(Unknown):
    """Shows gates that are open."""

    def heads(self, layer: int, cache: Cache) -> Heads:
        seen = super().heads(layer, cache)
        return replace(seen, write=torch.ones_like(seen.queries[..., 0]))


def like(kind: type[SequenceTransformer], model: SequenceTransformer) -> SequenceTransformer:
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def test_heads_that_are_shown_wrongly_are_not_named() -> None:
    model = gpt2(LinearAttention(2, 4), time=24)
    assert {h.name for h in atlas_of(model).heads} == {"gradient step"}
    assert not {h.name for h in atlas_of(like(Rotated, model)).heads} & set(OPTIMIZERS)


def test_a_rule_that_is_not_told_leaves_the_twin_its_veto() -> None:
    model = gpt2(LinearAttention(2, 4), time=24)
    assert {h.name for h in atlas_of(like(Unknown, model)).heads} == {"unexplained"}
    gated = atlas_of(like(Gated, model)).heads
    assert {h.name for h in gated} == {"gradient step"} and all(h.by_construction for h in gated)


class Window(Mixer):
    """Softmax over the last few tokens, with weights that add up to `total`."""

    def __init__(self, total: float):
        super().__init__()
        self.total = total

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bthd,bshd->bhts", q, k)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril().triu(-2)
        pattern = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return self.total * torch.einsum("bhts,bshd->bthd", pattern, v)


@dataclass(frozen=True)
class Windowed:
    heads: int
    d_head: int
    total: float
    kind: ClassVar[str] = "windowed"

    def build(self) -> Window:
        return Window(self.total)


def test_averages_of_any_kind_are_kernel_smoothers() -> None:
    """None of the softmaxes that are tried sees through a window; the rule still is an average."""
    found = atlas_of(gpt2(Windowed(2, 4, 1.0), time=24)).heads
    assert {h.name for h in found} == {"kernel smoother"}
    assert all(h.controls.averages and h.score.groups["smoother"].value < 0.9 for h in found)
    other = atlas_of(gpt2(Windowed(2, 4, 1.5), time=24)).heads
    assert not any(h.controls.averages for h in other)
    assert {h.name for h in other} == {"unexplained"}


def test_no_average_is_called_an_optimizer() -> None:
    step = scored()["gradient step"].score
    controls = Controls(twin=None, rule=step, averages=True)
    assert name_of(step, controls) == "kernel smoother"
    assert name_of(step, replace(controls, averages=False)) == "gradient step"


def test_only_softmax_rules_average() -> None:
    for head in hidden().heads:
        assert head.controls.averages is (head.name not in OPTIMIZERS)


# The pass over the data


def test_positions_are_late_and_few() -> None:
    assert positions_of(8).tolist() == [2, 3, 4, 5, 6, 7]
    assert len(positions_of(256)) == 8 and positions_of(256)[[0, -1]].tolist() == [64, 255]
    with pytest.raises(InputError, match="8 tokens, not 7"):
        positions_of(7)


def test_memory_bounds_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2(MIXED, time=24)
    want = finding_of(atlas_of(model)).tables[0].frame
    monkeypatch.setattr(reading, "NUMBERS", 1)
    got = finding_of(atlas_of(model)).tables[0].frame
    assert (got["name"] == want["name"]).all()
    numbers = [c for c in want.columns if c.endswith("_r2")]
    assert torch.allclose(torch.tensor(got[numbers].values), torch.tensor(want[numbers].values))
    other = finding_of(atlas_of(model, seed=1)).tables[0].frame
    assert not torch.allclose(
        torch.tensor(other[numbers].values), torch.tensor(want[numbers].values)
    )


def test_bad_input_is_refused() -> None:
    model = gpt2(SOFT, time=24)
    with pytest.raises(InputError, match="64 sequences, not 10"):
        read_atlas(model, white(24), 10, 0)
    model.blocks[0].attn.W_K.fill_(float("nan"))
    with pytest.raises(InputError, match=r"layer 0: .* not finite"):
        atlas_of(model)


def test_progress_ends_at_the_end() -> None:
    told: list[tuple[int, int]] = []
    read_atlas(gpt2(SOFT, SOFT, time=24), white(24), 64, 0, lambda *seen: told.append(seen))
    steps = [done for done, _ in told]
    assert steps == sorted(set(steps)) and set(told) <= {(done, told[-1][1]) for done in steps}
    assert steps[-1] == told[-1][1] == work_of(64) + 2  # two layers whose heads are ablated


# Causal weights


def test_the_weight_of_a_head_is_what_its_mean_changes() -> None:
    model = SequenceTransformer(ModelConfig(3, 6, 2, (BlockConfig(SOFT),), True))
    model.initialise(0.5, generator_for(1))
    model.eval().requires_grad_(False)
    model.blocks[0].attn.W_O[1] = 0
    tokens = normal(generator_for(2), 5, 12, 3).float()
    weights = causal_weights(model, tokens, first=4)[0]
    clean, cache = model.run_with_cache(tokens)
    z = cache["blocks.0.attn.hook_z"]
    away = (z - z.mean((0, 1))).double()
    for head in range(HEADS):
        moved = away[:, 4:, head] @ model.blocks[0].attn.W_O[head].double() @ model.W_U.double()
        want = moved.square().sum() / clean[:, 4:].double().square().sum()
        assert float(weights[head]) == pytest.approx(float(want), rel=1e-4, abs=1e-12)
    assert float(weights[1]) == 0 and float(weights[0]) > 0.01


class Speaker(SequenceTransformer, LanguageModel):
    """Reads token ids one-hot and says logits."""

    vocabulary, longest, tokenizer = D_IN, None, None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.one_hot(tokens, D_IN).float())


def spoken(first: int, count: int) -> torch.Tensor:
    return torch.randint(D_IN, (count, 24), generator=generator_for(9, first))


def speaker() -> Speaker:
    block = BlockConfig(MIXED, d_mlp=8)
    model = Speaker(ModelConfig(D_IN, 12, D_IN, (block, block), True))
    model.initialise(0.3, generator_for(4))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def test_the_weight_in_a_language_model_is_a_divergence() -> None:
    model, tokens = speaker(), spoken(0, 6)
    weights = causal_weights(model, tokens, first=6)
    clean, cache = model.run_with_cache(tokens)
    for layer in (0, 1):
        site = f"blocks.{layer}.attn.hook_z"
        mean = cache[site].mean((0, 1))
        for head in range(HEADS):

            def edit(z: torch.Tensor, hook: object, mean=mean, head=head) -> torch.Tensor:
                z = z.clone()
                z[:, :, head] = mean[head]
                return z

            with model.hooks(fwd_hooks=[(site, edit)]):
                said = model(tokens)
            p, q = (torch.distributions.Categorical(logits=x[:, 6:]) for x in (clean, said))
            want = float(torch.distributions.kl_divergence(p, q).mean())
            assert float(weights[layer][head]) == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert max(float(w.max()) for w in weights.values()) > 1e-4


def test_a_language_model_is_read_on_its_tokens() -> None:
    found = read_atlas(speaker(), spoken, SEQUENCES, 0)
    assert found.unit == "KL, nats"
    named = {(h.layer, h.head): h.name for h in found.heads if h.name in OPTIMIZERS}
    assert named == {(layer, 1 + i): n for layer in (0, 1) for i, n in enumerate(OPTIMIZERS[:2])}


# The finding


def test_the_finding_draws_and_counts() -> None:
    finding = finding_of(hidden())
    (table,) = finding.tables
    assert table.name == "heads" and len(table.frame) == 9
    shown = next(f for f in finding.figures if isinstance(f, CategoryMap))
    assert shown.cells[0][1:] == ("gradient step", "least squares")
    assert all(len(row) == 3 for row in shown.cells)
    maps = [f for f in finding.figures if isinstance(f, HeatMap)]
    assert {m.name.removeprefix("head_atlas_") for m in maps} == {"step", "ridge", "null", "weight"}
    assert finding.metrics["gradient_step"].value == finding.metrics["least_squares"].value == 1
    assert finding.metrics["by_construction"].value == 2
    assert finding.controls["planted_misread"].value == 0
    assert finding.controls["planted_named"].value > 0
    assert finding.controls["optimizers (permuted twin)"].value == 0
    assert "all by construction" in finding.statement


def test_only_learned_optimizers_support() -> None:
    found = hidden()
    assert finding_of(found).outcome == "inconclusive"
    learned = tuple(
        replace(h, by_construction=False, weight=1.0) if h.name in OPTIMIZERS else h
        for h in found.heads
    )
    assert finding_of(replace(found, heads=learned)).outcome == "supports"
    idle = tuple(replace(h, weight=0.0) for h in learned)
    assert finding_of(replace(found, heads=idle)).outcome == "inconclusive"
    plain = tuple(replace(h, name="mean") for h in found.heads)
    assert finding_of(replace(found, heads=plain)).outcome == "contradicts"


def test_an_atlas_that_misreads_planted_heads_concludes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = reading.planted_step
    monkeypatch.setattr(reading, "planted_step", lambda problem: right(problem).roll(1, 0))
    found = atlas_of(gpt2(MIXED, time=24))
    assert found.misread == HEADS
    finding = finding_of(found)
    assert finding.outcome == "inconclusive" and "misread planted solvers" in finding.statement


def published(paper_data: Path, file: str, preset: str) -> Atlas:
    subject = subject_of(paper_data, f"linear_seq_fully/{file}", preset)
    task = find_task(subject.task or "")
    return read_atlas(
        subject.model, lambda first, n: task.sample(n, generator_for(9, first)).tokens, 128, 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "preset", "name"),
    [
        ("model_lin_1l_constr.pkl", "linear-1l", "gradient step"),
        ("model_lin_6l_constr.pkl", "linear-6l", "gradient step"),
        ("model_mesa_constr.pkl", "mesa-1l", "least squares"),
    ],
)
def test_published_layers_read_as_what_they_are(
    paper_data: Path, file: str, preset: str, name: str
) -> None:
    found = published(paper_data, file, preset)
    assert {h.name for h in found.heads} == {name}
    assert all(h.by_construction for h in found.heads) and found.misread == 0


@pytest.mark.slow
def test_published_softmax_heads_are_linear_and_no_optimizers(paper_data: Path) -> None:
    """Later layers act as gradient steps from the mean; the first copies."""
    found = published(paper_data, "model_sm_7l_fullfledged.pkl", "softmax-7l")
    assert not [h for h in found.heads if h.name in OPTIMIZERS] and found.misread == 0
    assert sum(h.linear for h in found.heads) >= len(found.heads) // 2
    assert not any(h.linear for h in found.heads if h.layer == 0)


def test_the_analysis_is_installed_and_knows_its_limits(tiny_subject, small_task) -> None:
    one = installed_analyses()["head_atlas"]
    assert isinstance(one, HeadAtlas) and not one.thorough
    assert one.lacks(tiny_subject, small_task) is None
    short = replace(small_task, length=5)
    assert one.lacks(tiny_subject, short) == "sequences of at least 8 tokens"
