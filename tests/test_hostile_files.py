"""Hostile and damaged files: one line, nothing executed, no time, no memory."""

import builtins
import copyreg
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
from fabricated import glob, items, mapping, number, raw, text, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.checkpoints import safe_pickle
from probe.checkpoints.base import load
from probe.checkpoints.native import write_native
from probe.checkpoints.safe_pickle import read_pickle
from probe.errors import InputError
from probe.files import reading
from probe.models.transformer import SequenceTransformer

PRESET = "von-oswald-2023/linear-1l"
SECONDS = 5.0
MEBIBYTES = 200


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that hostile content tries to write."""
    return tmp_path / "canary"


def refused(path: Path, preset: str | None = PRESET) -> str:
    """Loads; demands an InputError of one short printable line, soon, and little memory."""
    started, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        load(path, preset)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) - len(str(path)) < 1_500
    assert time.process_time() - started < SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < MEBIBYTES * 1024
    return message


def refused_bytes(folder: Path, content: bytes) -> str:
    path = folder / "hostile.pkl"
    path.write_bytes(content)
    return refused(path)


def as_tree(body: bytes) -> bytes:
    """The body as a leaf of a tree that is otherwise as it should be."""
    return whole(mapping({"params": mapping({"leaf": body})}))


# Code


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class WithState(Calls):
    """Pickles as a call, then hands it a state."""

    def __reduce__(self) -> Any:
        return (*self.call, {"__class__": "x"})


def attacks(canary: Path) -> dict[str, Calls]:
    touch = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": Calls(os.system, touch),
        "builtins.eval": Calls(eval, write),
        "builtins.exec": Calls(exec, write),
        "builtins.open": Calls(open, str(canary), "w"),
        "builtins.getattr": Calls(getattr, os, "system"),
        "subprocess": Calls(subprocess.Popen, touch, -1, None, None, None, None, None, True, True),
        "os.mkdir": Calls(os.mkdir, str(canary)),
        "__import__": Calls(builtins.__import__, "os"),
        "nested": Calls(list, [Calls(map, Calls(eval, write), [1])]),
        "with a state": WithState(os.system, touch),
        "numpy.load": Calls(np.load, str(canary)),
        "numpy.fromfile": Calls(np.fromfile, str(canary)),
        "object array": Calls(np.array, [Calls(os.system, touch)], object),
    }


ATTACKS = sorted(attacks(Path("x")))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("depth", [0, 2])
def test_no_call_is_made(
    attack: str, protocol: int, depth: int, canary: Path, tmp_path: Path
) -> None:
    if attack == "builtins.getattr":
        hostile: Any = Calls(eval, f"open({str(canary)!r}, 'w')")
    else:
        hostile = attacks(canary)[attack]
    for _ in range(depth):
        hostile = {"params": {"x": [hostile]}}
    message = refused_bytes(tmp_path, fabricated.python_pickle(hostile, protocol))
    assert "refused, the pickle asks for the global" in message
    assert not canary.exists()


def test_control_pythons_own_reader_executes(canary: Path) -> None:
    """The attacks are real: the standard reader writes the canary."""
    for attack in ("os.system", "builtins.eval", "nested"):
        content = fabricated.python_pickle(attacks(canary)[attack])
        try:
            list(pickle.loads(content)) if attack == "nested" else pickle.loads(content)
        except TypeError:
            assert attack == "nested"
        assert canary.exists()
        canary.unlink()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("nt", "system"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy", "ndarray.tofile"),
        ("probe.checkpoints.safe_pickle", "_reconstruct"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("numpy.core.numeric", "_frombuffer.__globals__"),
        ("numpy.core.numeric\x1b[31m", "red"),
        ("numpy.core", "x" * 100_000),
    ],
)
def test_globals_outside_the_list(module: str, name: str, tmp_path: Path) -> None:
    by_line = glob(module, name)
    by_stack = text(module) + text(name) + b"\x93"
    for body in (by_line, by_stack, text(f"{module}\nx") + text(f"{name}\r\ny") + b"\x93"):
        message = refused_bytes(tmp_path, b"\x80\x04" + body + b")R.")
        assert "refused, the pickle asks for the global" in message


RECONSTRUCT = glob("numpy.core.multiarray", "_reconstruct")
NDARRAY = glob("numpy", "ndarray")
DTYPE = glob("numpy", "dtype")
FROM_BUFFER = glob("numpy.core.numeric", "_frombuffer")
FROM_JAX = glob("jax._src.array", "_reconstruct_array")
STATE = mapping({"x": number(1)})
SLOTS = items(b"N", mapping({"__defaults__": items(number(1)), "__doc__": text("changed")}))
GOOD = np.ones((2, 2), np.float32)

TRICKS = {
    "state for a function": RECONSTRUCT + STATE + b"b",
    "slots for a function": RECONSTRUCT + SLOTS + b"b",
    "slots for the jax function": FROM_JAX + SLOTS + b"b",
    "state for the array class": NDARRAY + STATE + b"b",
    "slots for the array class": NDARRAY + SLOTS + b"b",
    "state for the type class": DTYPE + STATE + b"b",
    "state for a dict": b"}" + STATE + b"b",
    "state for a list": b"]" + STATE + b"b",
    "state for a string": text("x") + STATE + b"b",
    "array state that is a dict": RECONSTRUCT
    + fabricated.empty_array_arguments()
    + b"R"
    + STATE
    + b"b",
    "array without a state": RECONSTRUCT + fabricated.empty_array_arguments() + b"R",
    "array of another class": RECONSTRUCT + items(DTYPE, items(number(0)), raw(b"b")) + b"R",
    "array of a string": RECONSTRUCT + items(text("ndarray"), items(number(0)), raw(b"b")) + b"R",
    "ndarray called": NDARRAY + items(items(number(2))) + b"R",
    "ndarray by newobj": NDARRAY + items(items(number(2))) + b"\x81",
    "dtype by newobj": DTYPE + items(text("f4")) + b"\x81",
    "dtype by obj": b"(" + DTYPE + text("f4") + b"o",
    "dtype by inst": b"(" + text("f4") + b"inumpy\ndtype\n",
    "dtype by newobj_ex": DTYPE + b")}\x92",
    "type alone": DTYPE + items(text("f4"), b"\x89", b"\x88") + b"R",
    "class alone": NDARRAY,
    "function alone": RECONSTRUCT,
    "jax of another function": FROM_JAX + items(DTYPE, items(text("f4")), b")", b"}") + b"R",
    "jax of itself": FROM_JAX + items(FROM_JAX, b")", b")", b"}") + b"R",
    "jax without arguments": FROM_JAX + b")R",
    "too many arguments": FROM_BUFFER + items(*(number(1),) * 9) + b"R",
    "buffer that is text": FROM_BUFFER
    + items(text("xxxx"), fabricated.dtype("f4"), items(number(1)), text("C"))
    + b"R",
    "string called": text("x") + b")R",
    "persistent id": b"P0\n",
    "binary persistent id": text("x") + b"Q",
    "extension 1": b"\x82\x01",
    "extension 2": b"\x83\x01\x01",
    "extension 4": b"\x84\x01\x00\x00\x00",
    "set": b"\x8f(" + number(1) + b"\x90",
    "frozenset": b"(" + number(1) + b"\x91",
    "out of band buffer": b"\x97",
    "read-only buffer": raw(b"x") + b"\x98",
    "bytes": raw(b"x"),
    "complex key": b"}" + number(1) + number(2) + b"s",
    "tuple key": b"}" + items(number(1)) + number(2) + b"s",
    "tuple keys": b"}(" + items(number(1)) + number(2) + b"u",
    "tuple key of dict": b"(" + items(number(1)) + number(2) + b"d",
    "key of an array": b"}" + NDARRAY + number(2) + b"s",
    "unprintable key": mapping({"a\nb": number(1)}),
    "escape in a key": mapping({"\x1b[2J": number(1)}),
    "long key": mapping({"k" * 100_000: number(1)}),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused_and_change_nothing(trick: str, tmp_path: Path) -> None:
    functions = (safe_pickle._reconstruct, safe_pickle._reconstruct_jax, safe_pickle._from_buffer)
    before = [(f.__defaults__, f.__doc__, dict(f.__dict__)) for f in functions]
    marker = dict(vars(safe_pickle._NDARRAY))
    for content in (as_tree(TRICKS[trick]), whole(TRICKS[trick])):
        refused_bytes(tmp_path, content)
    assert [(f.__defaults__, f.__doc__, dict(f.__dict__)) for f in functions] == before
    assert dict(vars(safe_pickle._NDARRAY)) == marker
    path = tmp_path / "good.pkl"
    path.write_bytes(whole(fabricated.tree_bytes({"a": GOOD})))
    np.testing.assert_array_equal(read_pickle(path)["a"], GOOD)  # control: still reads


def test_registered_extensions_are_not_used(canary: Path, tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 77)
    try:
        body = b"\x82\x4d" + items(text(f"touch {canary}")) + b"R"
        refused_bytes(tmp_path, whole(body))
        assert not canary.exists()
        pickle.loads(whole(body))  # control: the standard reader does
        assert canary.exists()
    finally:
        copyreg.remove_extension("os", "system", 77)


# Arrays


@pytest.mark.parametrize(
    "code", ["O8", "O", "V8", "S4", "U4", "M8", "m8", "c8", "f16", "i3", "f4,O"]
)
def test_other_types_of_numbers(code: str, tmp_path: Path) -> None:
    array = fabricated.numpy_array(GOOD, code=code)
    assert f"array of type '{code}'" in refused_bytes(tmp_path, as_tree(array))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3),
        (1,),
        (),
        (0,),
        (2**31, 2**31),
        (2**62, 4),
        (2**64,),
        (10**1000,),
        (-2, -2),
        (-1,),
        (1,) * 60 + (2, 2),
        (1 << 40,) * 8,
    ],
    ids=lambda shape: str(shape)[:30],
)
def test_arrays_whose_size_is_a_lie(shape: tuple[int, ...], tmp_path: Path) -> None:
    body = fabricated.numpy_array(GOOD, shape=shape)
    assert "the pickle asks for array" in refused_bytes(tmp_path, as_tree(body))
    direct = FROM_BUFFER + items(
        raw(GOOD.tobytes()), fabricated.dtype("f4"), fabricated.shape_of(shape), text("C")
    )
    assert "the pickle asks for array" in refused_bytes(tmp_path, as_tree(direct + b"R"))


def test_sides_that_are_no_numbers(tmp_path: Path) -> None:
    for side in (b"\x88", b"N", text("2"), b"G" + struct.pack(">d", 2.0), items(number(2)), b"]"):
        body = FROM_BUFFER + items(
            raw(GOOD.tobytes()), fabricated.dtype("f4"), items(side, number(2)), text("C")
        )
        assert "array with a malformed state" in refused_bytes(tmp_path, as_tree(body + b"R"))


# Size and depth


def doubling(start: bytes, step: Callable[[bytes, bytes], bytes], levels: int = 60) -> bytes:
    """Each level holds the one before twice, through the memo: 2^levels ends."""
    body = start + b"q\x000"
    for level in range(levels):
        earlier = b"h" + bytes([level])
        body += step(earlier, earlier) + b"q" + bytes([level + 1]) + b"0"
    return body + b"h" + bytes([levels])


BOMBS = {
    "shared lists": doubling(b"]", lambda a, b: b"](" + a + b + b"e"),
    "shared tuples": doubling(b")", lambda a, b: a + b + b"\x86"),
    "shared dicts": doubling(b"}", lambda a, b: mapping({"a": a, "b": b})),
    "shared dicts over an array": doubling(
        fabricated.numpy_array(GOOD), lambda a, b: mapping({"a": a, "b": b})
    ),
    "hash of shared tuples": b"}" + doubling(b")", lambda a, b: a + b + b"\x86") + b"Ns",
    "hash of shared tuples by update": b"}(" + doubling(b")", lambda a, b: a + b + b"\x86") + b"Nu",
    "hash of shared tuples in a set": b"\x8f("
    + doubling(b")", lambda a, b: a + b + b"\x86")
    + b"\x90",
    "text of shared lists": DTYPE
    + b"("
    + doubling(b"]", lambda a, b: b"](" + a + b + b"e")
    + b"tR",
    "deep lists": b"](" * 20_000 + b"e" * 20_000,
    "deep tuples": b")" + b"\x85" * 100_000,
    "hash of deep tuples": b"})" + b"\x85" * 500_000 + b"Ns",
    "deep dicts": (b"}" + text("a")) * 10_000 + b"N" + b"s" * 10_000,
    "list of itself": b"]q\x00h\x00a",
    "dict of itself": b"}q\x00" + text("a") + b"h\x00s",
    "huge memo index": b"]r\xff\xff\xff\xff",
    "huge memo index as text": b"]p99999999999999999999\n",
    "huge index to get": b"j\xff\xff\xff\xff",
    "huge frame": b"\x95" + struct.pack("<Q", 2**62),
    "large frame": b"\x95" + struct.pack("<Q", 2**34),
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "large bytes": b"\x8e" + struct.pack("<Q", 2**34),
    "huge bytearray": b"\x96" + struct.pack("<Q", 2**62),
    "large bytearray": b"\x96" + struct.pack("<Q", 2**34),
    "huge string": b"\x8d" + struct.pack("<Q", 2**62),
    "large string": b"\x8d" + struct.pack("<Q", 2**34),
    "huge integer": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "negative length": b"\x8b" + struct.pack("<i", -5),
    "long decimal": b"I" + b"9" * 1_000_000 + b"\n",
    "long float": b"F" + b"x" * 1_000_000 + b"\n",
    "many arrays of the same bytes": raw(bytes(1 << 20))
    + b"q\x000"
    + fabricated.dtype("f4")
    + b"q\x010"
    + items(b"h\x00", b"h\x01", items(number(1 << 18)), text("C"))
    + b"q\x020"
    + FROM_BUFFER
    + b"q\x030"
    + b"]("
    + b"h\x03h\x02R" * 3_000
    + b"e",
    "many leaves of one array": fabricated.numpy_array(np.zeros(1 << 18, np.float32))
    + b"q\x000"
    + mapping({f"leaf{i}": b"h\x00" for i in range(3_000)}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_go_off(bomb: str, tmp_path: Path) -> None:
    refused_bytes(tmp_path, as_tree(BOMBS[bomb]))
    refused_bytes(tmp_path, whole(mapping({"params": BOMBS[bomb]})))


SHARED = {name: bomb for name, bomb in BOMBS.items() if "shared" in name}


# Damage


@pytest.fixture(scope="module")
def good_pickles() -> list[bytes]:
    draw = np.random.default_rng(0)
    place = "tf_block/blocklist_0/self_attn"
    leaves = {f"{place}/{role}_proj/kernel": draw.normal(size=(40, 40)) / 10 for role in "qkvo"}
    tree = fabricated.nested({name: v.astype(np.float32) for name, v in leaves.items()})
    own = fabricated.python_pickle({"params": tree}, 5)
    return [whole(fabricated.tree_bytes({"params": tree}, jax)) for jax in (False, True)] + [own]


def test_the_undamaged_pickles_load(good_pickles: list[bytes], tmp_path: Path) -> None:
    hashes = set()
    for content in good_pickles:
        (tmp_path / "x.pkl").write_bytes(content)
        hashes.add(load(tmp_path / "x.pkl", PRESET).sha256)
    assert len(hashes) == 1


def test_truncated_pickles(good_pickles: list[bytes], tmp_path: Path) -> None:
    for content in good_pickles:
        for end in [*range(0, 60), *range(60, len(content) - 40, 2_401), *range(-40, 0)]:
            refused_bytes(tmp_path, content[:end])


mutations = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6), st.integers(0, 6)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80)
@given(which=st.integers(0, 2), edits=mutations, structure=st.booleans())
def test_mutated_pickles(
    which: int,
    edits: list[tuple[float, bytes, int]],
    structure: bool,
    good_pickles: list[bytes],
    tmp_path: Path,
) -> None:
    """Bytes replaced, dropped or put in: the model that was meant, or a refusal; never a crash."""
    content = bytearray(good_pickles[which])
    reach = 700 if structure else len(content) - 1  # the first array's structure lies before 700
    for where, new, dropped in edits:
        at = int(where * reach)
        content[at : at + dropped] = new
    path = tmp_path / "mutated.pkl"
    path.write_bytes(bytes(content))
    try:
        subject = load(path, PRESET)
    except InputError:
        refused(path)
    else:
        assert subject.parameters == 6_400


@settings(max_examples=80)
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    refused_bytes(tmp_path, content)
    refused_bytes(tmp_path, b"\x80\x04" + content + b".")


OPCODES = [bytes([code]) for code in pickle._Unpickler.dispatch]  # type: ignore[attr-defined]
PIECES = [RECONSTRUCT, NDARRAY, DTYPE, FROM_BUFFER, FROM_JAX, text("f4"), number(1), raw(b"ab")]
PIECES += [b"(", b")", b"]", b"}", b"t", b"R", b"b", b"0", b"2", b"\x94", b"s", b"a", b"e", b"u"]


@settings(max_examples=250)
@given(st.lists(st.sampled_from([*OPCODES, *PIECES * 3]), max_size=40))
def test_random_programs(tmp_path: Path, program: list[bytes]) -> None:
    refused_bytes(tmp_path, b"\x80\x04" + b"".join(program) + b".")


# Native folders


@pytest.fixture
def folder(tiny_model: Callable[[str], SequenceTransformer], tmp_path: Path) -> Path:
    """A good native folder."""
    write_native(tiny_model("mesa"), "linear", tmp_path / "native")
    load(tmp_path / "native")
    return tmp_path / "native"


def test_truncated_tensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for end in [*range(0, 40), *range(40, len(content) - 20, 301), *range(-20, 0)]:
        weights.write_bytes(content[:end])
        refused(folder, None)


@settings(max_examples=50)
@given(edits=mutations)
def test_mutated_tensors(edits: list[tuple[float, bytes, int]], folder: Path) -> None:
    weights = folder / "model.safetensors"
    original = weights.read_bytes()
    content = bytearray(original)
    for where, new, dropped in edits:
        at = int(where * min(len(content) - 1, 2_000))
        content[at : at + dropped] = new
    weights.write_bytes(bytes(content))
    try:
        load(folder)
    except InputError:
        refused(folder, None)
    finally:
        weights.write_bytes(original)


def safetensors(header: object) -> bytes:
    text_ = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text_)) + text_


HEADERS = {
    "huge header": struct.pack("<Q", 2**62),
    "large header": struct.pack("<Q", 2**33) + b"{}",
    "no header": b"",
    "header that is no JSON": safetensors(b"{'"),
    "deep header": safetensors(b"[" * 100_000 + b"]" * 100_000),
    "list header": safetensors([1]),
    "nothing in it": safetensors({}),
    "huge tensor": safetensors(
        {"W_E": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ),
    "overflowing tensor": safetensors(
        {"W_E": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 4]}}
    ),
    "negative side": safetensors({"W_E": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "empty tensors": safetensors(
        {"W_E": {"dtype": "F32", "shape": [10**18, 0], "data_offsets": [0, 0]}}
    ),
    "unknown type": safetensors({"W_E": {"dtype": "O", "shape": [], "data_offsets": [0, 0]}}),
    "unprintable name": safetensors(
        {"a\nb\x1b[2J": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    ),
    "long name": safetensors({"k" * 9_999: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    "bytes of a small float": safetensors(
        {"W_E": {"dtype": "F8_E4M3", "shape": [3, 6], "data_offsets": [0, 18]}}
    )
    + bytes(18),
}


@pytest.mark.parametrize("header", HEADERS)
def test_tensor_files_that_lie(header: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(HEADERS[header])
    refused(folder, None)


CONFIGS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe{}",
    "null bytes": b"\x00" * 100,
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "no fields": b"{}",
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "long number": b'{"version": 1' + b"0" * 10_000 + b"}",
    "long text": json.dumps({"version": "v" * 100_000, "model": {}, "task": None}).encode(),
    "model missing": b'{"version": 1, "task": null}',
    **{
        f"model {junk!r:.20}": json.dumps({"version": 1, "task": None, "model": junk}).encode()
        for junk in (None, [], {}, "x", 3, {"blocks": []}, [[[[]]]], {"x" * 10_000: 1, "y\n": 2})
    },
}


@pytest.mark.parametrize("config", CONFIGS)
def test_descriptions_that_are_junk(config: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(CONFIGS[config])
    refused(folder, None)


FIELDS = ("d_in", "d_model", "d_out", "masked", "projected", "blocks")
IN_BLOCK = ("attention", "positions", "unit", "d_mlp", "clip")
IN_ATTENTION = ("kind", "heads", "d_head")
VALUES: tuple[Any, ...] = (
    *(10**9, 10**12, 10**18, 10**30, 99_999, 100_000, 65_536, -1, 0, 7, 2.5, 1e308),
    *(float("nan"), float("inf"), True, None, "x", "\x1b\n", [], {}, [[]], [{}]),
)


PLACES: list[tuple[Any, ...]] = [
    *((name,) for name in FIELDS),
    *(("blocks", 1, name) for name in IN_BLOCK),
    *(("blocks", 0, "attention", name) for name in IN_ATTENTION),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_field_with_every_wrong_value(place: tuple[Any, ...], folder: Path) -> None:
    """Sizes that fit no tensor of the file are refused before anything of that size exists."""
    config = folder / "config.json"
    good = config.read_text()
    harmless = 0
    for value in VALUES:
        plain = json.loads(good)
        target = plain["model"]
        for step in place[:-1]:
            target = target[step]
        if target[place[-1]] == value and type(target[place[-1]]) is type(value):
            continue
        target[place[-1]] = value
        config.write_text(json.dumps(plain))
        try:
            load(folder)
        except InputError:
            refused(folder, None)
        else:
            harmless += 1
    # Only a clip, a mask and the list of unit roles can change without changing a tensor.
    free = {("masked",), ("blocks", 1, "clip"), ("blocks", 1, "unit")}
    assert harmless == 0 or place in free


@pytest.mark.parametrize("task", [3, True, [], {}, "a\nb", "\x1b[2J"])
def test_tasks_that_are_no_name(task: Any, folder: Path) -> None:
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, "task": task}))
    assert "task must be a name or null" in refused(folder, None)


def test_many_blocks_are_refused_soon(folder: Path) -> None:
    plain = json.loads((folder / "config.json").read_text())
    for count in (100, 20_000):
        plain["model"]["blocks"] = plain["model"]["blocks"][:1] * count
        (folder / "config.json").write_text(json.dumps(plain))
        refused(folder, None)


def test_files_that_are_folders(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).mkdir()
        assert f"holds no {name}" in refused(folder, None)
        (folder / name).rmdir()
        assert f"holds no {name}" in refused(folder, None)
        (folder / name).write_text("{}")


# What is no file


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "index.pkl", "weights.pt"])
def test_pipes_and_devices_are_not_read(name: str, folder: Path) -> None:
    """Opened, a pipe waits for ever and /dev/zero has no end."""
    place = folder / name
    place.unlink(missing_ok=True)
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        make(place)
        refused(place, PRESET)
        if name.startswith(("config", "model")):
            refused(folder, None)
        place.unlink()


def test_texts_without_end_are_not_read(folder: Path) -> None:
    os.truncate(folder / "config.json", 3 << 30)
    assert "larger than" in refused(folder, None)


def test_what_the_system_does_not_allow_is_one_line(folder: Path) -> None:
    """Root reads all, so the refusal of the system is put in its place."""
    with (
        pytest.raises(InputError, match=r"elsewhere/config\.json: Permission denied"),
        reading(folder),
    ):
        raise PermissionError(13, "Permission denied", "elsewhere/config.json")
    with pytest.raises(InputError, match=f"{folder}: Permission denied"), reading(folder):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(ZeroDivisionError), reading(folder):  # control: a bug stays one
        _ = 1 / 0


@pytest.mark.slow
def test_refusal_without_the_checks_of_the_tests(folder: Path, canary: Path) -> None:
    """The same in a fresh interpreter, where no shapes and types are checked at calls."""
    plain = json.loads((folder / "config.json").read_text())
    plain["model"]["d_model"] = 10**12
    (folder / "config.json").write_text(json.dumps(plain))
    evil = folder / "evil.pkl"
    evil.write_bytes(fabricated.python_pickle(Calls(os.system, f"touch {canary}")))
    tricks = []
    for index, body in enumerate([*TRICKS.values(), *SHARED.values()]):
        tricks.append(folder / f"{index}.pkl")
        tricks[-1].write_bytes(as_tree(body))
    script = (
        "import sys\n"
        "from probe.checkpoints.base import load\n"
        "from probe.errors import InputError\n"
        "count = 0\n"
        "for path in sys.argv[2:]:\n"
        "    try:\n"
        "        load(path, sys.argv[1] if path.endswith('.pkl') else None)\n"
        "    except InputError as error:\n"
        "        assert str(error).isprintable(), error\n"
        "        count += 1\n"
        "print(count)\n"
    )
    paths = [str(folder), str(evil), *map(str, tricks)]
    done = subprocess.run(
        [sys.executable, "-c", script, PRESET, *paths], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(len(paths)), done.stderr[-500:]
    assert not canary.exists()
