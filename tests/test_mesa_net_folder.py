"""Reading MesaNet folders: the load table, parts, tied weights, and what is refused."""

import json
import os
import pickle
import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome
from mesa_net_folder import described, random_tensors, write_mesa_net, write_parts
from safetensors.torch import save_file
from torch import Tensor

from probe import checkpoints, registry
from probe.checkpoints.base import Source, load
from probe.checkpoints.mesa_net import config_of
from probe.errors import InputError
from probe.models.hooked import LanguageModel
from probe.models.mesa_net import MesaNet

SECONDS, MEBIBYTES = 5.0, 200
EMBEDDING = "model.embeddings.weight"


def refused(path: Path) -> str:
    """Loads; demands an InputError of one short printable line, soon, and little memory."""
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) - len(str(path)) < 1_500
    assert time.process_time() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEBIBYTES * 1024
    return message


def test_the_load_table_names_every_tensor_of_the_file(tmp_path: Path) -> None:
    tensors = random_tensors(described())
    subject = load(write_mesa_net(tmp_path / "net"))
    assert (subject.name, subject.format, subject.task) == ("net", "mesa-net", None)
    assert {row.source: row.shape for row in subject.tensors} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert subject.parameters == sum(tensor.numel() for tensor in tensors.values())
    state = subject.model.state_dict()
    assert all(torch.equal(state[row.name], tensors[row.source]) for row in subject.tensors)


def test_one_format_alone_recognises_a_folder(tmp_path: Path) -> None:
    source = Source(write_mesa_net(tmp_path / "net"))
    known = registry.discover(checkpoints).values()
    assert [one.name for one in known if one.recognises(source)] == ["mesa-net"]
    (source.path / "config.json").write_text(json.dumps({"model_type": "another"}))
    assert [one.name for one in known if one.recognises(source)] == ["hugging-face"]


def test_parts_are_the_whole(tmp_path: Path) -> None:
    whole = load(write_mesa_net(tmp_path / "net"))
    write_parts(tmp_path / "net", random_tensors(described()), parts=3)
    assert not (tmp_path / "net" / "model.safetensors").exists()
    parts = load(tmp_path / "net")
    assert parts.sha256 == whole.sha256
    assert parts.sha256 != load(other_weights(tmp_path / "other")).sha256


def other_weights(folder: Path) -> Path:
    return write_mesa_net(folder, tensors=random_tensors(described(), seed=1))


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    tensors = {name: t.bfloat16() for name, t in random_tensors(described()).items()}
    half = load(write_mesa_net(tmp_path / "half", tensors=tensors))
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    assert half.sha256 == load(write_mesa_net(tmp_path / "wide", tensors=wide)).sha256


def test_a_tied_head_may_stand_in_the_file_if_it_is_the_embedding(tmp_path: Path) -> None:
    config = described(tie_word_embeddings=True)
    tensors = random_tensors(config)
    without = load(write_mesa_net(tmp_path / "without", config))
    again = tensors | {"lm_head.weight": tensors[EMBEDDING].clone()}
    subject = load(write_mesa_net(tmp_path / "again", config, again))
    assert (subject.sha256, subject.dropped) == (without.sha256, ("lm_head.weight",))
    other = tensors | {"lm_head.weight": 2 * tensors[EMBEDDING]}
    assert "tied" in refused(write_mesa_net(tmp_path / "other", config, other))


def test_an_mlp_of_no_stated_width_is_as_wide_as_its_ratio_asks() -> None:
    for size, ratio, expected in ((2048, 4, 5632), (20, 4, 256), (768, None, 2048)):
        config = described(hidden_size=size, hidden_ratio=ratio, intermediate_size=None)
        assert config_of(config).d_mlp == expected


# The tokenizer


def write_tokenizer(folder: Path, tokens: int) -> None:
    vocabulary = {"[UNK]": 0} | {f"w{i}": i for i in range(1, tokens)}
    described = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [],
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)


@pytest.mark.usefixtures("no_sockets")
def test_a_tokenizer_is_taken_from_the_folder_alone(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    model = load(folder).model
    assert isinstance(model, LanguageModel)
    assert model.tokenizer is None
    write_tokenizer(folder, 10)
    model = load(folder).model
    assert isinstance(model, LanguageModel)
    assert model.tokenizer is not None
    assert model.tokenizer("w3 w7 else").input_ids == [3, 7, 0]


@pytest.mark.usefixtures("no_sockets")
def test_bad_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    write_tokenizer(folder, 60)
    assert "60 tokens in the tokenizer, 50 in the model" in refused(folder)
    (folder / "tokenizer.json").write_text('{"model": 3')
    assert "tokenizer cannot be read" in refused(folder)
    write_tokenizer(folder, 10)
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Evil: pass\n")
    assert "tokenizer cannot be read" in refused(folder)
    assert not (tmp_path / "canary").exists()


# What is refused


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attn": {"layers": [0], "num_heads": 2}}, "attn is {'layers': [0]"),
        ({"attnres_block_size": 4}, "attnres_block_size is 4, only None is read"),
        ({"hidden_act": "powlu"}, "hidden_act is 'powlu'"),
        ({"attn_mode": "fused"}, "attn_mode is 'fused'"),
        ({"expand_v": 2.0}, "unknown 'expand_v'"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "unknown 'auto_map'"),
        ({"quantization_config": {"bits": 4}}, "unknown 'quantization_config'"),
        ({"\x1b[31m": 1}, "unknown '\\x1b[31m'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"hidden_size": "\n" * 100}, "hidden_size is '"),
        ({"hidden_size": [20]}, "hidden_size is [20]"),
        ({"vocab_size": 10**10}, "vocab_size is 10000000000"),
        ({"num_heads": 50_000, "head_dim": 50_000}, "50000 heads of width 50000 are too wide"),
        ({"conv_size": 0}, "conv_size is 0"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"intermediate_size": None, "hidden_ratio": "4"}, "hidden_ratio is '4'"),
        ({"intermediate_size": None, "hidden_ratio": 1e300}, "hidden_ratio is 1e+300"),
        ({"intermediate_size": None, "hidden_size": float("nan")}, "hidden_size is nan"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"intermediate_size": None, "hidden_ratio": 99_999}, "the width of the MLP is"),
        ({"lambda_lower_bound": -0.5}, "lambda_lower_bound is -0.5"),
        ({"lambda_lower_bound": float("inf")}, "lambda_lower_bound is inf"),
        ({"use_output_gate": 1}, "use_output_gate is 1, expected true"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
    ],
)
def test_a_config_that_is_not_read_here_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = write_mesa_net(tmp_path / "net")
    (folder / "config.json").write_text(json.dumps(described(**changes)))
    assert expected in refused(folder)


def test_missing_fields_are_named(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    plain = described()
    del plain["norm_eps"], plain["num_heads"]
    (folder / "config.json").write_text(json.dumps(plain))
    assert "missing norm_eps; missing num_heads" in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 3_000_000, "hidden_size": 90_000},
        {"intermediate_size": 100_000, "num_hidden_layers": 200},
        {"num_heads": 1000, "head_dim": 100},
    ],
)
def test_sizes_beyond_the_file_take_no_memory(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_mesa_net(tmp_path / "net")
    (folder / "config.json").write_text(json.dumps(described(**changes)))
    assert "has shape" in refused(folder)


def _with(name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    tensors = random_tensors(described())
    if tensor is None:
        del tensors[name]
        return tensors
    return tensors | {name: tensor}


GATE = "model.layers.1.attn.a_proj.bias"
GROWING = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (_with(GATE, None), "missing blocks.1.attn.a_proj.bias"),
        (_with("lm_head.weight", None), "missing unembed.weight"),
        (_with(GATE, torch.zeros(4)), "has shape [4], expected [3]"),
        (_with(GATE, torch.zeros(3, dtype=torch.int64)), "holds torch.int64"),
        (_with(GATE, torch.tensor([0.0, float("nan"), 0.0])), "holds NaN or infinity"),
        (_with("model.layers.0.attn.q_conv1d.bias", torch.zeros(24)), "unexpected model.layers.0"),
        (_with("blocks.0.attn.a_proj.bias", torch.zeros(3)), "unexpected blocks.0.attn.a_proj"),
        (_with("embed.weight", torch.zeros(50, 20)), "unexpected embed.weight"),
        (_with("model.layers.2.attn_norm.weight", torch.zeros(20)), "unexpected model.layers.2"),
        (_with("x" * 5000, torch.zeros(1)), "unexpected x"),
        (_with("\x1b[31m", torch.zeros(1)), "1 tensors with unprintable names"),
        (_with(GROWING, torch.full((20, 24), 3e38)), "the stream overflows"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str
) -> None:
    assert expected in refused(write_mesa_net(tmp_path / "net", tensors=tensors))


def test_a_penalty_of_zero_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.attn.lambda_params"
    tensors = _with(name, torch.full((24,), -300.0))
    without = write_mesa_net(tmp_path / "a", described(lambda_lower_bound=0), tensors)
    assert "a penalty in block 1 is 0" in refused(without)
    assert isinstance(load(write_mesa_net(tmp_path / "b", tensors=tensors)).model, MesaNet)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 200])
def test_cut_off_files_are_refused(tmp_path: Path, file: str, kept: int) -> None:
    path = write_mesa_net(tmp_path / "net") / file
    path.write_bytes(path.read_bytes()[:kept])
    refused(tmp_path / "net")


@pytest.mark.parametrize("claimed", [2**63, 2**40, 90_000_000])
def test_headers_of_absurd_length_are_refused(tmp_path: Path, claimed: int) -> None:
    folder = write_mesa_net(tmp_path / "net")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + b'{"a":')
    refused(folder)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    end = 4 * 50 * 20 * 10**9
    entry = {"dtype": "F32", "shape": [50 * 10**9, 20], "data_offsets": [0, end]}
    header = json.dumps({EMBEDDING: entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder)


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_pickled_weights_are_named_and_left_alone(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    (folder / "model.safetensors").unlink()
    assert refused(folder).endswith("holds no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "canary")))
    assert "'pytorch_model.bin' is a pickle, which is not read" in refused(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (b"{", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError"),
        (b'{"weight_map": 3}', "weight_map must"),
        (b'{"weight_map": {"a": 3}}', "weight_map must"),
        (b'{"weight_map": {"a": "../net/model-00001-of-00002.safetensors"}}', "in this folder"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "in this folder"),
        (b'{"weight_map": {"a": "evil.bin"}}', "in this folder"),
        (b'{"weight_map": {"a": "a\\u0000.safetensors"}}', "which is not there"),
        (b'{"weight_map": {"a": "gone\\u001b.safetensors"}}', "which is not there"),
        (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "is not listed in"),
        (b"[" * 100_000, "RecursionError"),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: bytes, expected: str) -> None:
    folder = write_mesa_net(tmp_path / "net")
    write_parts(folder, random_tensors(described()))
    (folder / "model.safetensors.index.json").write_bytes(index)
    assert expected in refused(folder)


def test_an_index_that_lists_more_than_the_files_hold_is_refused(tmp_path: Path) -> None:
    folder = write_mesa_net(tmp_path / "net")
    write_parts(folder, random_tensors(described()))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert "'ghost' is in none of the files" in refused(folder)
    many = {f"t{i}": f"{i}.safetensors" for i in range(2000)}
    path.write_text(json.dumps({"weight_map": many}))
    assert "names 2000 files" in refused(folder)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder, tensors = write_mesa_net(tmp_path / "net"), random_tensors(described())
    write_parts(folder, tensors)
    first, second = sorted(folder.glob("model-*.safetensors"))
    names = sorted(tensors)
    save_file({name: tensors[name] for name in (*names[1::2], names[0])}, second)
    assert "is not listed in" in refused(folder)
    assert first.exists()


def test_the_command_says_one_line(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    folder = write_mesa_net(tmp_path / "net")
    (folder / "model.safetensors").write_bytes(b"?")
    assert str(folder / "model.safetensors") in command("analyze", folder).problem


def test_a_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --preset"):
        load(write_mesa_net(tmp_path / "net"), "von-oswald-2023/linear-1l")
