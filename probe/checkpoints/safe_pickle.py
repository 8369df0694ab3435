"""Reads pickles of nested containers and numpy or jax arrays, and nothing else.

No object of the pickle is ever built by its own class: the five globals that such files hold are
replaced by small functions of ours, and any other global ends the reading before anything runs.
Files of torch.save are looked through by the same reader with another table.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from probe.errors import InputError
from probe.files import reading, require_file

LARGEST = 2**30  # bytes of a file
_LARGEST_SIDE = 2**40
_LONGEST_KEY = 200
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class Forbidden(Exception):
    """The pickle asks for what we do not give."""


class _Marker:
    """Stands for a class that may be named but not called."""


_NDARRAY = _Marker()


class _Dtype:
    """A plain number type; its state is read only for the byte order."""

    def __init__(self, code: object, *_flags: object):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            shown = ascii(code)[:40] if isinstance(code, str) else type(code).__name__
            raise Forbidden(f"array of type {shown}")
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
            raise Forbidden("array with a malformed state")
        _, shape, dtype, column_major, raw = state
        self.value = _from_buffer(raw, dtype, shape, "F" if column_major else "C").value


def _from_buffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    if not (
        isinstance(raw, bytes | bytearray)
        and isinstance(dtype, _Dtype)
        and isinstance(shape, tuple)
        and all(type(side) is int and 0 <= side < _LARGEST_SIDE for side in shape)
        and len(shape) <= 8
        and order in ("C", "F")
    ):
        raise Forbidden("array with a malformed state")
    kind = dtype.numpy()
    if math.prod(shape) * kind.itemsize != len(raw):
        raise Forbidden(f"array of shape {list(shape)} with {len(raw)} bytes")
    array = _Array()
    # A view: a file that makes many arrays of the same bytes must not cost many times their memory.
    array.value = np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")
    return array


def _reconstruct(subtype: object, shape: object, code: object) -> _Array:
    if subtype is not _NDARRAY:
        raise Forbidden("an array of an unknown class")
    return _Array()


def _reconstruct_jax(fun: object, args: object, state: object, _aval: object) -> _Array:
    if fun is not _reconstruct or not isinstance(args, tuple):
        raise Forbidden("an array of an unknown class")
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


Step = Callable[[Any], None]
_PARENT: Any = pickle._Unpickler
_WORDS: dict[type, str] = {str: "strings", int: "whole numbers"}


def _refused(reader: Any) -> None:
    raise Forbidden("an object that is neither a container nor an array")


def _build(reader: Any) -> None:
    """Other objects are shared with the program, which a state from the file must not change."""
    if type(reader.stack[-2]) not in (_Dtype, _Array):
        raise Forbidden("a state for an object that is no array")
    reader.load_build()


def with_plain_keys(*kinds: type) -> dict[int, Step]:
    """Steps that hash only these kinds: the hash of nested tuples has no bound in time or depth."""

    def checked(build: Step, keys: slice) -> Step:
        def step(reader: Any) -> None:
            if any(type(key) not in kinds for key in reader.stack[keys]):
                known = " or ".join(_WORDS[kind] for kind in kinds)
                raise Forbidden(f"a dictionary whose keys are no {known}")
            build(reader)

        return step

    return {
        pickle.DICT[0]: checked(_PARENT.load_dict, slice(0, None, 2)),
        pickle.SETITEM[0]: checked(_PARENT.load_setitem, slice(-2, -1)),
        pickle.SETITEMS[0]: checked(_PARENT.load_setitems, slice(0, None, 2)),
    }


def _bytearray(reader: Any) -> None:
    """Reads, then allocates: the length in the file is not to be trusted."""
    (length,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(min(length, reader.size))))


_OBJECTS = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


# The reader written in Python, since the one in C sizes its memo by an index from the file.
class Reader(pickle._Unpickler):
    """Builds what its tables allow; files of other programs are read with other tables."""

    dispatch: ClassVar[dict[int, Step]] = {
        **_PARENT.dispatch,
        **dict.fromkeys(b"".join(_OBJECTS), _refused),
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
        **with_plain_keys(str),
    }

    allowed: ClassVar[dict[tuple[str, str], object]] = _ALLOWED

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.size = len(content)

    @staticmethod
    def plain_step(opcode: bytes) -> Step:
        """What Python's own reader does at an opcode."""
        step: Step = _PARENT.dispatch[opcode[0]]
        return step

    def find_class(self, module: str, name: str) -> object:
        """What stands in the table for a global."""
        try:
            return self.allowed[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            shown = ascii(f"{module[:80]}.{name[:80]}")[1:-1]
            raise Forbidden(f"the global {shown}") from None


def read_pickle(path: Path) -> Any:
    """Returns the content: dicts, lists, tuples, plain numbers, strings and numpy arrays.

    Raises:
        InputError: The file is damaged, or asks for a global that is not on the list.
    """
    require_file(path, LARGEST)
    try:
        with reading(path):
            content = path.read_bytes()
        return _plain(Reader(content).load(), {})
    except InputError:
        raise
    except Forbidden as error:
        raise InputError(f"{path}: refused, the pickle asks for {str(error)[:200]}") from None
    except RecursionError:
        raise InputError(f"{path}: refused, the pickle is nested too deeply") from None
    except Exception as error:  # a damaged pickle can make its reader fail in any way
        reason = ascii(f"{type(error).__name__}: {error!s:.160}")[1:-1]
        raise InputError(f"{path}: not a readable pickle ({reason})") from None


def _plain(value: object, seen: dict[int, Any]) -> Any:
    """Unwraps arrays; each shared object is visited once, so that sharing cannot explode."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array) and value.value is not None:
        plain: Any = value.value
    elif isinstance(value, dict):
        if not all(key.isprintable() and len(key) <= _LONGEST_KEY for key in value):
            raise Forbidden("a dictionary with unprintable or very long keys")
        plain = {key: _plain(item, seen) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        plain = [_plain(item, seen) for item in value]
    else:
        raise Forbidden(f"an object of type {type(value).__name__.lstrip('_')}")
    seen[id(value)] = plain
    return plain
