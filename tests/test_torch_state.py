"""Single files of tensors: what torch.save and safetensors write, and what is refused."""

import io
import os
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_hostile_files import ATTACKS, PRESET, Calls, attacks, refused

from probe.checkpoints.base import load
from probe.checkpoints.native import write_native
from probe.models.transformer import SequenceTransformer
from probe.presets.base import find_preset

State = dict[str, Any]


@pytest.fixture
def model(tiny_model: Callable[[str], SequenceTransformer]) -> SequenceTransformer:
    return tiny_model("mesa")


@pytest.fixture
def folder(model: SequenceTransformer, tmp_path: Path) -> Path:
    """A native folder; its config.json describes what is put beside it."""
    write_native(model, "linear", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


# ---- What is read

ENVELOPES: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "module": lambda state: {f"module.{name}": t for name, t in state.items()},
    "twice": lambda state: {f"_orig_mod.module.{name}": t for name, t in state.items()},
    "model_state_dict": lambda state: {"model_state_dict": state, "step": 3, "loss": [0.1, None]},
    "state_dict": lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(2)}}}},
    "parameters": lambda state: {name: torch.nn.Parameter(t) for name, t in state.items()},
}


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_state_dict_is_the_native_folder(envelope: str, suffix: str, model, folder) -> None:
    native = load(folder)
    path = saved(ENVELOPES[envelope](dict(model.state_dict())), folder / f"weights{suffix}")
    subject = load(path)
    assert (subject.format, subject.task) == ("torch", "linear")
    assert subject.sha256 == native.sha256
    tokens = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(subject.model(tokens), native.model(tokens))


def test_state_dicts_of_modules_carry_versions(model, folder) -> None:
    state = model.state_dict()
    assert hasattr(state, "_metadata")
    assert load(saved(state, folder / "weights.pt")).sha256 == load(folder).sha256


def test_one_wrong_number_changes_the_hash(model, folder) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.0.attn.W_Q"][0, 0, 0] += 1e-3
    assert load(saved(state, folder / "weights.pt")).sha256 != load(folder).sha256


def test_a_safetensors_file_is_the_native_folder(model, folder) -> None:
    beside = folder / "other.safetensors"
    save_file({f"module.{n}": t.contiguous() for n, t in model.state_dict().items()}, beside)
    assert load(beside).format == "safetensors"
    assert load(beside).sha256 == load(folder / "model.safetensors").sha256 == load(folder).sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_read(dtype: torch.dtype, model, folder) -> None:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    read = load(saved(state, folder / "weights.pt")).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert read[name].dtype == torch.float32
        assert torch.allclose(read[name], tensor, rtol=1e-2)


def test_a_preset_describes_the_model(tmp_path) -> None:
    described = find_preset(PRESET)
    model = SequenceTransformer(described.config)
    model.initialise(0.02, torch.Generator().manual_seed(0))
    path = saved(model.state_dict(), tmp_path / "weights.pt")
    subject = load(path, PRESET)
    assert subject.task == described.task
    assert f"no {'config.json'} beside it" in refused(path, None)


def test_the_file_may_change_once_it_is_read(model, folder) -> None:
    path = saved(dict(model.state_dict()), folder / "weights.pt")
    subject = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    again = subject.model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


# ---- What is refused


@pytest.mark.parametrize("attack", sorted({*ATTACKS} - {"builtins.getattr"}))
def test_no_call_is_made(attack: str, folder, canary) -> None:
    path = saved({"W_E": torch.zeros(2), "evil": attacks(canary)[attack]}, folder / "evil.pt")
    message = refused(path, None)
    assert "foreign globals: " in message
    assert not canary.exists()


def test_all_foreign_globals_are_named(folder, canary) -> None:
    evil = [Calls(os.system, f"touch {canary}"), Calls(eval, "1"), Path("x")]
    message = refused(saved({"a": evil}, folder / "evil.pt"), None)
    for name in ("__builtin__.eval", "posix.system", "pathlib.PosixPath"):
        assert name in message
    assert not canary.exists()


def test_pickles_without_an_archive(folder, canary) -> None:
    path = folder / "weights.pt"
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps({"a": Calls(os.system, f"touch {canary}")}, protocol))
        refused(path, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    refused(path, None)
    assert not canary.exists()


def repacked(
    path: Path, change: Callable[[str, bytes], bytes | None], extra: State | None = None, **how: Any
) -> Path:
    """The archive again, with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", **how) as archive:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


def program_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def with_program(path: Path, program: bytes) -> Path:
    return repacked(path, lambda name, old: program if name.endswith("data.pkl") else old)


@pytest.fixture
def good(model: SequenceTransformer, folder: Path) -> Path:
    path = saved(dict(model.state_dict()), folder / "weights.pt")
    load(path)
    return path


def test_repacking_alone_changes_nothing(good) -> None:
    before = load(good).sha256
    assert load(repacked(good, lambda name, old: old)).sha256 == before


def test_archives_that_are_no_torch_files(good) -> None:
    original = good.read_bytes()
    top = "weights/"
    cases: dict[str, Callable[[], Path]] = {
        "compressed": lambda: repacked(
            good, lambda name, old: old, compression=zipfile.ZIP_DEFLATED
        ),
        "bomb": lambda: repacked(
            good,
            lambda name, old: bytes(2**28) if name.endswith("data/0") else old,
            compression=zipfile.ZIP_DEFLATED,
        ),
        "no program": lambda: repacked(good, lambda n, old: None if "data.pkl" in n else old),
        "two programs": lambda: repacked(good, lambda n, old: old, {f"{top}data.pkl": b"."}),
        "two by case": lambda: repacked(good, lambda n, old: old, {f"{top}DATA.pkl": b"."}),
        "two folders": lambda: repacked(good, lambda n, old: old, {"other/data.pkl": b"."}),
        "script": lambda: repacked(good, lambda n, old: old, {f"{top}constants.pkl": b"."}),
        "no storage": lambda: repacked(good, lambda n, old: None if n.endswith("/0") else old),
        "short storage": lambda: repacked(good, lambda n, old: old[:8] if "data/" in n else old),
        "large program": lambda: with_program(good, b"\x80\x02" + b"N0" * 2**22 + b"N."),
        "long program": lambda: with_program(good, b"\x80\x02" + b"N0" * (2**21 - 9) + b"N."),
        "empty program": lambda: with_program(good, b""),
        "protocol 4": lambda: with_program(good, pickle.dumps({"a": Path("x")}, 4)),
        "nothing": lambda: with_program(good, pickle.dumps({}, 2)),
        "a number": lambda: with_program(good, pickle.dumps(3, 2)),
        "a list": lambda: with_program(good, pickle.dumps([{}], 2)),
        "numbers": lambda: with_program(good, pickle.dumps({"W_E": 3}, 2)),
        "number keys": lambda: with_program(good, pickle.dumps({1: {}}, 2)),
        "odd keys": lambda: with_program(good, pickle.dumps({"a\n\x1b[2J": 1}, 2)),
        "tuple keys": lambda: with_program(good, pickle.dumps({(1, 2): 1}, 2)),
        "deep": lambda: with_program(good, b"\x80\x02" + b"]" * 9_000 + b"a" * 8_999 + b"."),
    }
    for case, damage in cases.items():
        message = refused(damage(), None)
        assert case not in ("compressed", "bomb") or "compressed members" in message
        good.write_bytes(original)
    load(good)


def test_keys_whose_hash_never_ends(good) -> None:
    """Nested pairs of themselves: the hash of the key takes 2^60 steps."""
    doubled = b"\x80\x02}" + b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"Ns."
    refused(with_program(good, doubled), None)


def test_tensors_larger_than_their_file(good) -> None:
    """A tensor of one number, 10^11 times, and many views of one storage."""
    state = torch.load(good, weights_only=True)
    for shape in ((10**11,), (300_000, 300_000), state["W_E"].shape):
        wide = torch.zeros(1).expand(*shape)
        refused(saved({**state, "W_E": wide}, good), None)
    one = torch.zeros(1_000)
    shared = {f"t{index}": one[: 900 + index % 50] for index in range(500)}
    assert "share their memory" in refused(saved({**state, **shared}, good), None)


def test_tensors_of_other_kinds(good) -> None:
    state = torch.load(good, weights_only=True)
    quantised = torch.quantize_per_tensor(state["W_E"], 0.1, 0, torch.quint8)
    others: dict[str, tuple[Any, str]] = {
        "sparse": (state["W_E"].to_sparse(), ""),
        "quantised": (quantised, ""),
        "complex": (state["W_E"].to(torch.complex64), ""),
        "whole": (state["W_E"].to(torch.int64), "W_E holds torch.int64"),
        "truth": (state["W_E"] > 0, "W_E holds torch.bool"),
        "meta": (state["W_E"].to("meta"), ""),
        "nan": (state["W_E"] * torch.nan, "W_E holds NaN"),
        "infinite": (state["W_E"].double() * 1e300, "W_E holds NaN or infinity"),
        "shape": (state["W_E"][:2].clone(), "W_E has shape [2, 6], expected [3, 6]"),
        "scalar": (torch.tensor(1.0), "W_E has shape []"),
        "none": (None, "W_E is no plain tensor"),
    }
    for name, (tensor, reason) in others.items():
        assert reason in refused(saved({**state, "W_E": tensor}, good), None), name
    del state["W_E"]
    assert "missing W_E" in refused(saved(state, good), None)
    assert "unexpected unheard" in refused(saved({**state, "unheard": torch.ones(2)}, good), None)


def test_truncated_files(good) -> None:
    content = good.read_bytes()
    for end in [*range(0, 60, 7), *range(60, len(content) - 30, 601), *range(-30, 0, 5)]:
        good.write_bytes(content[:end])
        refused(good, None)


@settings(max_examples=60)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)),
        min_size=1,
        max_size=4,
    )
)
def test_mutated_files(edits: list[tuple[float, bytes, int]], good: Path) -> None:
    """Whatever is changed, it is read as it stands or refused in one line."""
    original = good.read_bytes()
    content = bytearray(original)
    for where, new, dropped in edits:
        at = int(where * (len(content) - 1))
        content[at : at + dropped] = new
    good.write_bytes(bytes(content))
    try:
        refused_or_read(good)
    finally:
        good.write_bytes(original)


@settings(max_examples=60)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_programs(edits: list[tuple[float, bytes, int]], good: Path) -> None:
    original = good.read_bytes()
    program = bytearray(program_of(good))
    for where, new, dropped in edits:
        at = int(where * (len(program) - 1))
        program[at : at + dropped] = new
    try:
        refused_or_read(with_program(good, bytes(program)))
    finally:
        good.write_bytes(original)


def refused_or_read(path: Path) -> None:
    from probe.errors import InputError

    try:
        load(path)
    except InputError:
        refused(path, None)


def test_safetensors_that_are_damaged(model, folder) -> None:
    path = folder / "other.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes()[:-3])
    refused(path, None)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({**state, "W_E": state["W_E"].int()}, path)
    assert "W_E holds torch.int32" in refused(path, None)


def test_descriptions_beside_the_file(good) -> None:
    beside = good.parent / "config.json"
    for content in (b"", b"[]", b'{"model_type": "gpt2"}', b"[" * 200_000):
        beside.write_bytes(content)
        with pytest.raises(Exception, match=r"config\.json"):
            load(good)
    beside.unlink()
    assert "give --preset NAME" in refused(good, None)


def test_folders_of_that_name(tmp_path) -> None:
    (tmp_path / "weights.pt").mkdir()
    assert "holds no config.json" in refused(tmp_path / "weights.pt", None)


def test_what_nobody_looks_at_costs_nothing(model, folder) -> None:
    """Moments of an optimiser beside the weights stay on the disk."""
    extra = {f"m{index}": torch.zeros(2**22) for index in range(16)}
    path = saved({"state_dict": dict(model.state_dict()), "moments": extra}, folder / "w.pt")
    extra.clear()
    load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load(path)
    assert path.stat().st_size > 2**28
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_the_command_names_the_globals(command, folder, canary, tmp_path) -> None:
    saved({"a": Calls(os.system, f"touch {canary}")}, folder / "evil.pt")
    outcome = command("convert", str(folder / "evil.pt"), str(tmp_path / "out"))
    assert "posix.system" in outcome.problem
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_the_command_converts(command, good, tmp_path) -> None:
    assert command("convert", str(good), str(tmp_path / "out")).code == 0
    assert load(tmp_path / "out").sha256 == load(good).sha256
    assert io.BytesIO(good.read_bytes()).read(2) == b"PK"


def test_many_names_are_refused_soon(good) -> None:
    state = {f"module.{index}": torch.zeros(()) for index in range(8_000)}
    assert "and 8" in refused(saved(state, good), None)
