"""Hugging Face language models: edits, copies, narrow types and other places."""

import gc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language_models import (
    FAMILIES,
    HEADS,
    LAYERS,
    apart,
    language_folder,
    language_subject,
    token_ids,
)
from torch import Tensor

from probe.checkpoints.base import Source, Subject, load
from probe.checkpoints.hugging_face import HuggingFace
from probe.views import permuted_twin

CLOSE, FAR = 1e-5, 1e-2


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return language_subject(request.param)


# Edits


def test_an_edit_at_a_site_reaches_the_output_and_goes(subject: Subject) -> None:
    model, tokens = subject.model, token_ids()
    said = model(tokens)
    heads = model.head_sites(1)
    assert heads is not None
    for site in (heads.gathered, model.update_sites()[1], *model.layer_sites()):
        with model.hooks(fwd_hooks=[(site, lambda tensor, hook: tensor.clone())]):
            assert apart(model(tokens), said) == 0
        with model.hooks(fwd_hooks=[(site, lambda tensor, hook: tensor.flip(-1))]):
            assert apart(model(tokens), said) > 1e-4
        assert apart(model(tokens), said) == 0


def test_an_edited_head_is_that_head(subject: Subject) -> None:
    """Without its values, a head adds nothing; the others add what they added."""
    model, tokens, sites = subject.model, token_ids(), subject.model.head_sites(0)
    assert sites is not None
    passed: list[Tensor] = []

    def without(tensor: Tensor, hook: Any) -> Tensor:
        passed.append(tensor)
        keep = torch.arange(tensor.shape[2]) != 1
        return tensor * keep[:, None]

    with model.hooks(fwd_hooks=[(sites.gathered, without)]):
        _, cached = model.run_with_cache(tokens)
    assert passed[0].shape[:3] == (*tokens.shape, HEADS)
    gathered = cached[sites.gathered]
    assert apart(gathered[:, :, 1], torch.zeros_like(gathered[:, :, 1])) == 0
    assert torch.equal(gathered[:, :, 2], passed[0][:, :, 2])


# Copies


def test_a_copy_is_its_own(subject: Subject) -> None:
    model, tokens = subject.model, token_ids()
    said = model(tokens)
    calls = []
    with model.hooks(fwd_hooks=[(model.update_sites()[0], lambda t, hook: calls.append(1))]):
        copied = deepcopy(model)
        assert apart(copied(tokens), said) == 0
        assert not calls
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in copied.parameters())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    assert apart(copied(tokens), said) > FAR
    assert apart(model(tokens), said) == 0


def test_workers_copy_and_run_at_the_same_time() -> None:
    model, tokens = language_subject("gpt_neox").model, token_ids()
    site = model.update_sites()[1]

    def work(worker: int) -> tuple[Tensor, Tensor]:
        mine = deepcopy(model)
        with mine.hooks(fwd_hooks=[(site, lambda tensor, hook: worker * tensor)]):
            said, cached = mine.run_with_cache(tokens, names_filter=[site])
        return said, cached[site]

    in_turn = [work(worker) for worker in range(8)]
    with ThreadPoolExecutor(8) as workers:
        at_once = list(workers.map(work, range(8)))
    assert len({float(added.sum()) for _, added in in_turn}) == 8
    for (said, added), (same, as_much) in zip(at_once, in_turn, strict=True):
        assert torch.equal(said, same)
        assert torch.equal(added, as_much)


def test_no_pattern_is_kept(subject: Subject) -> None:
    """Neither a pattern, which grows with the square of the tokens, nor anything like it."""
    subject.model(token_ids(time=13))
    held = [getattr(block.attn, "_pattern", None) for block in subject.model.bridge.blocks]
    assert held == [None] * LAYERS


def test_a_copy_outlives_the_model(tmp_path: Path) -> None:
    for family in ("gpt_neox", "qwen3"):
        model = load(language_folder(tmp_path / family, family)).model
        said = model(token_ids())
        copied = deepcopy(deepcopy(model))
        del model
        gc.collect()
        assert apart(copied(token_ids()), said) == 0


def test_the_permuted_twin_says_something_else(subject: Subject) -> None:
    tokens = token_ids()
    twin = permuted_twin(subject.model, 0)
    assert bool(twin(tokens).isfinite().all())
    assert apart(twin(tokens), subject.model(tokens)) > FAR


def test_parameters_are_counted_once(subject: Subject) -> None:
    parameters = list(subject.model.parameters())
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert sum(parameter.numel() for parameter in parameters) == subject.parameters
    assert not any(parameter.requires_grad for parameter in parameters)


def test_in_float64_it_says_the_same(subject: Subject) -> None:
    said = deepcopy(subject.model).double()(token_ids())
    assert said.dtype == torch.float64
    assert apart(said, subject.model(token_ids())) <= CLOSE


# Other types and places


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_bfloat16_stays_inside(family: str, tmp_path: Path) -> None:
    folder = language_folder(tmp_path / family, family, dtype=torch.bfloat16)
    narrow = HuggingFace(dtype=None).read(Source(folder))
    wide = load(folder)
    assert narrow.sha256 == wide.sha256
    model, tokens = narrow.model, token_ids()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    said, cached = model.run_with_cache(tokens)
    heads = model.heads(1, cached)
    seen = (said, heads.queries, heads.gathered, cached[model.layer_sites()[1]])
    assert {part.dtype for part in seen} == {torch.float32}
    streams = [cached[site] for site in model.layer_sites()]
    assert all(torch.equal(model.resume(s, layer), said) for layer, s in enumerate(streams))
    assert 0 < apart(said, wide.model(tokens)) < 0.1 * float(said.abs().max())


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu"])
def test_a_device_map_is_respected(device_map: Any, tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "qwen3", "qwen3")
    placed = HuggingFace(device_map=device_map).read(Source(folder))
    assert {parameter.device.type for parameter in placed.model.parameters()} == {"cpu"}
    assert apart(placed.model(token_ids()), load(folder).model(token_ids())) == 0


def test_a_block_may_stay_on_disk(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "llama", "llama")
    parts = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "layers.2", "norm")
    places = {f"model.{part}": "cpu" for part in parts} | {
        "lm_head": "cpu",
        "model.layers.1": "disk",
    }
    placed, whole = HuggingFace(device_map=places).read(Source(folder)), load(folder)
    assert "meta" in {parameter.device.type for parameter in placed.model.parameters()}
    assert placed.tensors == whole.tensors
    said, cached = deepcopy(placed.model).run_with_cache(token_ids())
    assert apart(said, whole.model(token_ids())) == 0
    assert apart(placed.model.resume(cached[placed.model.layer_sites()[1]], 1), said) == 0
    heads = placed.model.heads(1, cached)
    mixed = placed.model.mix(1, heads)
    assert mixed is not None
    assert apart(mixed, heads.gathered) <= CLOSE
