"""Hugging Face folders: the load table, and damaged or hostile files in one line."""

import json
import socket
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language_models import (
    FAMILIES,
    language_folder,
    language_model,
    token_ids,
)
from torch import Tensor

from probe.checkpoints.base import load
from probe.checkpoints.foreign import refusing
from probe.checkpoints.tensor_folder import WHOLE
from probe.errors import InputError

Tensors = dict[str, Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_folder(tmp_path / "llama", "llama")


def refused(path: Path, **options: Any) -> str:
    """Loads; demands an InputError of one short printable line that names the place."""
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) - len(str(path)) < 600
    return message


def describe(folder: Path, **changes: Any) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WHOLE))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WHOLE)


# What is read


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", FAMILIES)
def test_no_socket_is_opened_and_nothing_printed(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = language_folder(tmp_path / family, family, words=True)
    capfd.readouterr()
    subject = load(folder)
    assert subject.original is not None
    subject.original(subject.model.tokenizer("w1 w2", return_tensors="pt")["input_ids"])  # type: ignore[attr-defined]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_a_blocked_network_is_seen_as_such() -> None:
    """The control of the test above: with the network allowed, a socket is asked for."""
    message = refused(Path("nobody/no-such-model"), allow_hub=True)
    assert "cannot be fetched" in message
    assert "no such file or folder" in refused(Path("nobody/no-such-model"))


def test_a_name_on_the_hub_is_fetched_without_pickles_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = language_folder(tmp_path / "llama", "llama")
    asked: dict[str, Any] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    subject = load("somebody/llama", allow_hub=True)
    assert (subject.name, subject.sha256) == ("somebody/llama", load(folder).sha256)
    files = ("pytorch_model.bin", "modeling.py", "model.safetensors", "tokenizer.json")
    fetched = [any(fnmatch(file, kind) for kind in asked["somebody/llama"]) for file in files]
    assert fetched == [False, False, True, True]


def test_the_load_table_names_every_parameter_once(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "gpt2", "gpt2")
    subject, model = load(folder), language_model("gpt2")
    shapes = {row.name: row.shape for row in subject.tensors}
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert "lm_head.weight" not in shapes
    assert len({row.sha256 for row in subject.tensors}) == len(shapes)


def test_parts_old_names_and_stale_buffers_change_nothing(tmp_path: Path) -> None:
    whole = load(language_folder(tmp_path / "gpt2", "gpt2"))
    parts = tmp_path / "parts"
    language_model("gpt2").save_pretrained(parts, max_shard_size="50KB")
    assert not (parts / WHOLE).exists()
    old = language_folder(tmp_path / "old", "gpt2")
    stale = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.tensor(True)}
    rewrite(old, lambda tensors: _without_prefix(tensors) | stale)
    for folder, dropped in ((parts, ()), (old, tuple(stale))):
        subject = load(folder)
        assert subject.sha256 == whole.sha256
        assert subject.dropped == dropped
        assert torch.equal(subject.model(token_ids()), whole.model(token_ids()))
    assert load(old).tensors[0].source == "wte.weight"


def _without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def test_another_weight_is_another_hash(llama: Path) -> None:
    before = load(llama)
    rewrite(llama, lambda tensors: tensors | {UP: tensors[UP] * 1.001})
    after = load(llama)
    assert before.sha256 != after.sha256
    changed = [
        a.name for a, b in zip(before.tensors, after.tensors, strict=True) if a.sha256 != b.sha256
    ]
    assert changed == [UP]


def test_its_tokenizer_comes_with_it(tmp_path: Path) -> None:
    model: Any = load(language_folder(tmp_path / "words", "llama", words=True)).model
    assert model.tokenizer("w3 w5")["input_ids"] == [3, 5]
    assert load(language_folder(tmp_path / "mute", "llama")).model.tokenizer is None  # type: ignore[attr-defined]


# What is refused: weights


def _short(tensors: Tensors) -> Tensors:
    return tensors | {UP: tensors[UP][:-1]}


def _sick(tensors: Tensors) -> Tensors:
    return tensors | {UP: tensors[UP].index_fill(0, torch.tensor([3]), float("nan"))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {n: x for n, x in t.items() if n != UP}, f"missing {UP}"),
        (_short, "has shape [47, 32], expected [48, 32]"),
        (_sick, f"{UP} holds NaN or infinity"),
        (lambda t: t | {"model.extra": torch.ones(2)}, "unexpected model.extra"),
        (lambda t: t | {UP: t[UP].long()}, f"{UP} holds torch.int64"),
        (lambda t: t | {UP: t[UP].double() * 1e300}, f"{UP} holds NaN or infinity"),
        (lambda t: {}, "the files hold 0 tensors"),
    ],
)
def test_weights_that_do_not_match(
    change: Callable[[Tensors], Tensors], reason: str, llama: Path
) -> None:
    rewrite(llama, change)
    assert reason in refused(llama)


def test_a_truncated_file(llama: Path) -> None:
    content = (llama / WHOLE).read_bytes()
    for kept in (content[:-100], content[:40], b"", b"\xff" * 64):
        (llama / WHOLE).write_bytes(kept)
        refused(llama)


def test_a_missing_part(tmp_path: Path) -> None:
    language_model("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    next(tmp_path.glob("model-00002*")).unlink()
    assert "which is not there" in refused(tmp_path)


def test_an_output_that_is_not_what_it_is_tied_to(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "gemma", "gemma")
    embedding = load_file(folder / WHOLE)["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": embedding.clone()})
    load(folder)
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": 2 * embedding})
    assert "lm_head.weight is not" in refused(folder)


def test_pickles_are_not_read(llama: Path) -> None:
    torch.save(load_file(llama / WHOLE), llama / "pytorch_model.bin")
    (llama / WHOLE).unlink()
    assert "pickle" in refused(llama)


# What is refused: descriptions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bert"}, "unknown model_type 'bert'; known: gpt2 (GPT-2)"),
        ({"model_type": ["llama"]}, "unknown model_type"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map names code of its own"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 2}, "unexpected model.layers.2"),
        ({"num_hidden_layers": 4}, "missing model.layers.3"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"vocab_size": 10**12}, "expected [1000000000000, 32]"),
        ({"hidden_size": 10**9}, "has shape"),
        ({"hidden_size": 2**62}, "describes no model"),
        ({"intermediate_size": 49}, "expected [49, 32]"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_key_value_heads": 4}, "has shape"),
        ({"hidden_act": "os.system"}, "describes no model"),
        ({"rope_parameters": {"rope_type": "none such"}}, "describes no model"),
        ({"rms_norm_eps": "small"}, "describes no model"),
    ],
)
def test_descriptions_that_do_not_fit(changes: dict[str, Any], reason: str, llama: Path) -> None:
    describe(llama, **changes)
    assert reason in refused(llama)


def test_what_leads_elsewhere_is_left_out(llama: Path) -> None:
    """Kernels, labels and origins: nothing of them is followed."""
    before = load(llama)
    describe(
        llama,
        _attn_implementation="kernels-community/flash-attn",
        attn_implementation="flash_attention_2",
        _name_or_path="somebody/else",
        num_labels=10**12,
        dtype="no_such_type",
        architectures=["NoSuchModel"],
    )
    assert torch.equal(load(llama).model(token_ids()), before.model(token_ids()))


def test_what_the_wrapper_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "gpt2", "gpt2", scale_attn_weights=False)
    assert "says something else" in refused(folder)
    folder = language_folder(tmp_path / "gemma2", "gemma2")
    describe(folder, use_bidirectional_attention=True)
    assert "only causal attention" in refused(folder)


def test_numbers_beyond_all_bounds(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "gpt2", "gpt2")
    describe(folder, layer_norm_epsilon=10**30)
    assert "cannot be wrapped: OverflowError" in refused(folder)


def test_damaged_descriptions(llama: Path) -> None:
    place = llama / "config.json"
    for content in ("", "{", "[" * 10**5, "[]", "null", "\x00"):
        place.write_text(content)
        refused(llama)
    place.write_text(json.dumps({"model_type": "llama"}))
    refused(llama)
    place.write_text(json.dumps({"model_type": "llama", "pad": "x" * 2**23}))
    refused(llama)


def test_an_adapter_is_no_model(llama: Path) -> None:
    (llama / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    assert "adapter" in refused(llama)


def test_a_preset_is_refused(llama: Path) -> None:
    assert "preset" in refused(llama, preset="von-oswald-2023/linear-1l")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{", "its tokenizer cannot be read"),
        ("tokenizer.json", "[" * 10**5, "its tokenizer cannot be read"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "its tokenizer cannot be read"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}', "auto_map"),
        ("tokenizer_config.json", "[]", "no object with named fields"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "its tokenizer cannot be read"),
    ],
)
def test_hostile_tokenizers(name: str, content: str, reason: str, tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "words", "llama", words=True)
    (folder / name).write_text(content)
    assert reason in refused(folder)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = language_folder(tmp_path / "words", "llama", words=True, vocab_size=20)
    assert "61 tokens in the tokenizer, 20 in the model" in refused(folder)


def test_panics_of_foreign_libraries_are_refused_and_interrupts_are_not(tmp_path):
    panic = type("PanicException", (BaseException,), {})
    refused = pytest.raises(InputError, match="unreadable: PanicException: out of range")
    with refused, refusing(tmp_path, "unreadable"):
        raise panic("out of range")
    with pytest.raises(KeyboardInterrupt), refusing(tmp_path, "unreadable"):
        raise KeyboardInterrupt
