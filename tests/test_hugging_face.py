"""Hugging Face language models: wrapped as they were, and sites are what they claim."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language_models import (
    FAMILIES,
    HEADS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    WINDOW,
    apart,
    language_folder,
    language_subject,
    token_ids,
)

from probe.capture import capture, misplaced
from probe.checkpoints.base import Subject, load
from probe.errors import InputError
from probe.models.bridge import SoftmaxRule, rotated
from probe.models.hooked import Heads

CLOSE, FAR = 1e-5, 1e-2


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return language_subject(request.param)


# The wrapped model


def test_the_wrapped_model_says_what_the_original_says(subject: Subject) -> None:
    tokens = token_ids()
    assert subject.original is not None
    said = subject.model(tokens)
    assert apart(said, subject.original(tokens)) <= CLOSE
    assert apart(said, subject.original(tokens.flip(1))) > FAR


def test_it_states_its_shape(subject: Subject) -> None:
    model: Any = subject.model
    assert (model.layers, model.d_model, model.vocabulary) == (LAYERS, WIDTH, VOCABULARY)
    assert model.longest == 64
    assert model(token_ids()).shape == (3, 12, VOCABULARY)
    with pytest.raises(InputError, match="65 tokens; the model reads at most 64"):
        model(token_ids(time=65))
    with pytest.raises(InputError, match="token id 61; the model knows 0 to 60"):
        model.run_with_cache(torch.full((1, 3), VOCABULARY))


def test_nothing_sees_later_tokens(subject: Subject) -> None:
    tokens = token_ids()
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % VOCABULARY
    said, again = subject.model(tokens), subject.model(other)
    assert apart(said[:, :-1], again[:, :-1]) == 0
    assert apart(said[:, -1], again[:, -1]) > FAR


def test_every_block_adds_up(subject: Subject) -> None:
    _, cached = subject.model.run_with_cache(token_ids())
    sums = subject.model.residual_sums()
    total = [torch.stack([cached[part] for part in one.parts]).sum(0) for one in sums]
    assert max(apart(t, cached[one.after]) for t, one in zip(total, sums, strict=True)) <= CLOSE
    # One block off, it does not.
    off = zip(total, (*sums[1:], sums[0]), strict=True)
    assert min(apart(t, cached[one.after]) for t, one in off) > FAR


def test_the_stream_between_blocks_is_one_stream(subject: Subject) -> None:
    _, cached = subject.model.run_with_cache(token_ids())
    before = subject.model.layer_sites()[1:]
    after = [one.after for one in subject.model.residual_sums()]
    assert all(torch.equal(cached[b], cached[a]) for b, a in zip(before, after, strict=True))
    updates = subject.model.update_sites()
    assert updates == tuple(one.parts[1] for one in subject.model.residual_sums())


def test_it_resumes_at_any_block(subject: Subject) -> None:
    model, tokens = subject.model, token_ids()
    said, cached = model.run_with_cache(tokens)
    streams = [cached[site] for site in model.layer_sites()]
    again = [model.resume(stream, layer) for layer, stream in enumerate(streams)]
    assert max(apart(said, one) for one in again) <= CLOSE
    off = [model.resume(stream, layer) for layer, stream in enumerate(streams[1:])]
    assert min(apart(said, one) for one in off) > FAR
    assert misplaced(capture(model, tokens, batch_size=16)) <= CLOSE


def test_the_last_stream_is_read_out_as_the_logits(subject: Subject) -> None:
    said, cached = subject.model.run_with_cache(token_ids())
    *_, earlier, last = (cached[site] for site in subject.model.layer_sites())
    assert apart(subject.model.read_out(last), said) <= CLOSE
    assert apart(subject.model.read_out(torch.stack([earlier, last]))[1], said) <= CLOSE
    assert apart(subject.model.read_out(earlier), said) > FAR


# Heads


def in_each_block(subject: Subject) -> list[Heads]:
    _, cached = subject.model.run_with_cache(token_ids())
    return [subject.model.heads(layer, cached) for layer in range(LAYERS)]


def worst(subject: Subject, change: Callable[[Heads], Heads] = lambda heads: heads) -> float:
    """How far the rule of any block is from what was gathered there."""
    errors = []
    for layer, heads in enumerate(in_each_block(subject)):
        mixed = subject.model.mix(layer, change(heads))
        assert mixed is not None
        errors.append(apart(mixed, heads.gathered))
    return max(errors)


def swapped(heads: Heads) -> Heads:
    return Heads(heads.keys, heads.queries, heads.values, heads.gathered)


def neighbours(heads: Heads) -> Heads:
    """Keys of the next head."""
    return Heads(heads.queries, heads.keys.roll(1, 2), heads.values, heads.gathered)


def test_the_rule_of_a_block_gathers_what_was_gathered(subject: Subject) -> None:
    assert worst(subject) <= CLOSE
    assert worst(subject, swapped) > FAR
    assert worst(subject, neighbours) > FAR


def test_heads_are_given_one_by_one(subject: Subject) -> None:
    for layer, heads in enumerate(in_each_block(subject)):
        sites = subject.model.head_sites(layer)
        assert sites is not None
        assert sites.count == HEADS
        parts = (heads.queries, heads.keys, heads.values, heads.gathered)
        assert {part.shape[:3] for part in parts} == {(3, 12, HEADS)}


def test_only_what_a_block_names_is_needed_for_its_heads(subject: Subject) -> None:
    sites = subject.model.head_sites(1)
    assert sites is not None
    tokens = token_ids()
    _, few = subject.model.run_with_cache(tokens, names_filter=lambda name: name in sites.seen)
    assert set(few) == set(sites.seen)
    assert {len(part) for part in few.values()} == {len(tokens)}
    _, cached = subject.model.run_with_cache(tokens)
    narrow, wide = subject.model.heads(1, few), subject.model.heads(1, cached)
    assert torch.equal(narrow.queries, wide.queries)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_positions_are_in_queries_and_keys(family: str) -> None:
    """One token over and over: only the rotation tells its places apart."""
    model = language_subject(family).model
    _, cached = model.run_with_cache(torch.full((1, 6), 7))
    heads = model.heads(0, cached)
    assert apart(heads.values[:, :1], heads.values) <= CLOSE
    assert apart(heads.keys[:, :1], heads.keys) > FAR
    lengths = heads.keys.norm(dim=-1)
    assert apart(lengths[:, :1], lengths) <= CLOSE


def test_a_rotation_turns_pairs_of_halves() -> None:
    """A quarter turn takes (a, b) to (-b, a) in each pair and leaves the rest."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 1, 1, 5)
    turned = rotated(x, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert turned.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0, 5.0]


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_window_is_seen(family: str) -> None:
    """Without it, the rule does not gather what was gathered."""
    subject = language_subject(family)
    rules: tuple[SoftmaxRule, ...] = subject.model._rules  # type: ignore[assignment]
    assert rules[0].window == WINDOW
    heads = in_each_block(subject)[0]
    unbounded = SoftmaxRule(rules[0].scale, rules[0].cap).pattern(heads.queries, heads.keys)
    assert apart(torch.einsum("bhqk,bkhd->bqhd", unbounded, heads.values), heads.gathered) > FAR


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks in a row": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "scaled by depth": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "output of its own": ("gpt2", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "stretched positions": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "one key for all": ("gemma", {"num_key_value_heads": 1}),
    "windows above": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_family(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    subject = load(language_folder(tmp_path / family, family, **changes))
    assert subject.original is not None
    said, cached = subject.model.run_with_cache(token_ids())
    assert apart(said, subject.original(token_ids())) <= CLOSE
    assert worst(subject) <= CLOSE
    assert worst(subject, swapped) > FAR
    assert apart(subject.model.resume(cached[subject.model.layer_sites()[1]], 1), said) <= CLOSE
