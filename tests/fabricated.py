"""Pickles and native folders that the tests write themselves, without jax."""

import io
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def glob(module: str, name: str) -> bytes:
    """The opcode that asks for a global."""
    return b"c" + f"{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def items(*parts: bytes) -> bytes:
    """A tuple of any length."""
    return b"(" + b"".join(parts) + b"t"


def mapping(entries: Mapping[str, bytes]) -> bytes:
    pairs = b"".join(text(key) + value for key, value in entries.items())
    return b"}(" + pairs + b"u"


def dtype(code: str, order: str = "<") -> bytes:
    """numpy.dtype(code, False, True), then its state, as numpy pickles it."""
    built = glob("numpy", "dtype") + items(text(code), b"\x89", b"\x88") + b"R"
    state = items(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0))
    return built + state + b"b"


def shape_of(shape: tuple[int, ...]) -> bytes:
    return items(*(number(side) for side in shape))


def empty_array_arguments() -> bytes:
    return items(glob("numpy", "ndarray"), shape_of((0,)), raw(b"b"))


def array_state(
    values: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None, code: str | None = None
) -> bytes:
    """State of a C-ordered array; `shape` and `code` can lie."""
    return items(
        number(1),
        shape_of(values.shape if shape is None else shape),
        dtype(code or values.dtype.str[1:], values.dtype.str[0]),
        b"\x89",
        raw(values.tobytes()),
    )


def numpy_array(values: np.ndarray[Any, Any], **lies: Any) -> bytes:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"), then its state."""
    start = glob("numpy.core.multiarray", "_reconstruct") + empty_array_arguments() + b"R"
    return start + array_state(values, **lies) + b"b"


def jax_array(values: np.ndarray[Any, Any]) -> bytes:
    """jax._src.array._reconstruct_array(function, arguments, array state, aval state)."""
    arguments = items(
        glob("numpy.core.multiarray", "_reconstruct"),
        empty_array_arguments(),
        array_state(values),
        mapping({"weak_type": b"\x89"}),
    )
    return glob("jax._src.array", "_reconstruct_array") + arguments + b"R"


def whole(body: bytes) -> bytes:
    """A complete pickle of protocol 3."""
    return b"\x80\x03" + body + b"."


def tree_bytes(tree: Mapping[str, Any], jax: bool = False) -> bytes:
    """The body that builds a nested dict of arrays; bytes stand for themselves."""
    array = jax_array if jax else numpy_array
    return mapping(
        {
            key: value
            if isinstance(value, bytes)
            else tree_bytes(value, jax)
            if isinstance(value, Mapping)
            else array(value)
            for key, value in tree.items()
        }
    )


def write_tree(path: Path, tree: Mapping[str, Any], jax: bool = False) -> Path:
    """A file of the published kind: {"params": tree}."""
    path.write_bytes(whole(tree_bytes({"params": tree}, jax)))
    return path


def nested(leaves: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """A nested dict from paths with slashes."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, leaf = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return tree


def python_pickle(value: object, protocol: int = 4) -> bytes:
    """Python's own pickle of anything, hostile objects included."""
    file = io.BytesIO()
    pickle.Pickler(file, protocol).dump(value)
    return file.getvalue()
