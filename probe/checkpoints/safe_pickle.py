"""Reads pickles of nested containers and numpy or jax arrays, and nothing else.

No object of the pickle is ever built by its own class: the five globals that such files hold are
replaced by small functions of ours, and any other global ends the reading before anything runs.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class _Forbidden(Exception):
    """The pickle asks for what we do not give."""


class _Marker:
    """Stands for a class that may be named but not called."""


_NDARRAY = _Marker()


class _Dtype:
    """A plain number type; its state is read only for the byte order."""

    def __init__(self, code: object, *_flags: object):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _Forbidden(f"array of type {code!r}")
        self.code = code.lstrip("<>=|")
        self.order = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """An array under construction."""

    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise _Forbidden("array with a malformed state")
        _, shape, dtype, column_major, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if column_major else "C").value


def _from_buffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    if not (
        isinstance(raw, bytes | bytearray)
        and isinstance(dtype, _Dtype)
        and isinstance(shape, tuple)
        and all(type(side) is int and side >= 0 for side in shape)
        and len(shape) <= 8
        and order in ("C", "F")
    ):
        raise _Forbidden("array with a malformed state")
    kind = dtype.numpy()
    if math.prod(shape) * kind.itemsize != len(raw):
        raise _Forbidden(f"array of shape {list(shape)} with {len(raw)} bytes")
    flat = np.frombuffer(bytes(raw), kind).astype(np.dtype(dtype.code))
    array = _Array()
    array.value = flat.reshape(shape, order="F" if order == "F" else "C")
    return array


def _reconstruct(subtype: object, shape: object, code: object) -> _Array:
    if subtype is not _NDARRAY:
        raise _Forbidden("an array of an unknown class")
    return _Array()


def _reconstruct_jax(fun: object, args: object, state: object, _aval: object) -> _Array:
    if fun is not _reconstruct or not isinstance(args, tuple):
        raise _Forbidden("an array of an unknown class")
    array = _reconstruct(*args)
    array.__setstate__(state)
    return array


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("jax._src.array", "_reconstruct_array"): _reconstruct_jax,
}


# The reader written in Python, since the one in C sizes its memo by an index from the file.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise _Forbidden(f"the global {module}.{name}") from None

    def get_extension(self, code: int) -> None:
        raise _Forbidden(f"the extension {code}")


def read_pickle(path: Path) -> Any:
    """Returns the content: dicts, lists, tuples, plain numbers, strings and numpy arrays.

    Raises:
        InputError: The file is damaged, or asks for a global that is not on the list.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(path.read_bytes())).load(), {})
    except _Forbidden as error:
        raise InputError(f"{path}: refused, the pickle asks for {error}") from None
    except RecursionError:
        raise InputError(f"{path}: refused, the pickle is nested too deeply") from None
    except Exception as error:  # a damaged pickle can make its reader fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: not a readable pickle ({reason})") from None


def _plain(value: object, seen: dict[int, Any]) -> Any:
    """Unwraps arrays; each shared object is visited once, so that sharing cannot explode."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array) and value.value is not None:
        plain: Any = value.value
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        plain = {key: _plain(item, seen) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        plain = [_plain(item, seen) for item in value]
    else:
        raise _Forbidden(f"an object of type {type(value).__name__.lstrip('_')}")
    seen[id(value)] = plain
    return plain
