"""Mutations of pickles, by their opcodes: also of the program in a file of torch.save."""

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from fabricated import glob, items, mapping, number, text

from fuzzing.edit import Edit, Rng, ends_in
from fuzzing.zip_edits import members, written

_OPCODES = [bytes([code]) for code in pickle._Unpickler.dispatch]  # type: ignore[attr-defined]
_GLOBALS = (
    glob("os", "system"),
    glob("builtins", "eval"),
    glob("numpy", "load"),
    glob("numpy", "dtype"),
    glob("numpy", "ndarray"),
    glob("numpy.core.multiarray", "_reconstruct"),
    glob("collections", "OrderedDict"),
    glob("torch._utils", "_rebuild_tensor_v2"),
    glob("torch", "FloatStorage"),
    glob("x" * 5000, "y\x1b[31m"),
)
_PLAIN = (b"N", b"\x88", b"]", b"}", b")", text("x"), text("a\nb"), number(-1), number(2**70))


def _bombs(rng: Rng) -> bytes:
    """An object that is deep, endless, shared without end, or said to be large."""
    depth = rng.choice((50, 5_000, 200_000))
    doubled = b"]q\xf00" + b"".join(b"](h\xf0h\xf0eq\xf00" for _ in range(60)) + b"h\xf0"
    return rng.choice(
        (
            b"](" * depth + b"e" * depth,
            b")" + b"\x85" * depth,
            (b"}" + text("a")) * depth + b"N" + b"s" * depth,
            b"]q\xf1h\xf1a",
            b"}q\xf1" + text("a") + b"h\xf1s",
            doubled,
            b"}" + doubled + b"Ns",
            b"]r" + struct.pack("<I", rng.choice((2**20, 2**32 - 1))),
            b"\x8e" + struct.pack("<Q", rng.choice((2**30, 2**34, 2**63))),
            b"\x96" + struct.pack("<Q", rng.choice((2**30, 2**34, 2**63))),
            b"\x95" + struct.pack("<Q", rng.choice((2**30, 2**34, 2**63))),
            b"\x8b" + struct.pack("<i", rng.choice((2**31 - 1, -1))),
            b"I" + b"9" * 200_000 + b"\n",
            mapping({"k" * 100_000: number(1)}),
        )
    )


def _objects(rng: Rng) -> bytes:
    """Any piece that leaves one object on the stack, or is meant to."""
    call = (
        rng.choice(_GLOBALS) + items(*(rng.choice(_PLAIN) for _ in range(rng.randrange(4)))) + b"R"
    )
    return rng.choice((rng.choice(_PLAIN), rng.choice(_GLOBALS), call, _bombs(rng)))


def _steps(program: bytes) -> list[bytes]:
    """The program cut into its steps, as far as it can be read."""
    places = []
    try:
        for _, _, place in pickletools.genops(program):
            places.append(place)
            if len(places) > 100_000:
                break
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, MemoryError):
        pass
    return [program[a:b] for a, b in pairwise([*places, len(program)])]


def _change(program: bytes, rng: Rng) -> bytes:
    steps = _steps(program)
    if not steps:
        return program
    for _ in range(rng.choice((1, 1, 3))):
        at, other = rng.randrange(len(steps)), rng.randrange(len(steps))
        ways: tuple[Callable[[], bytes], ...] = (
            lambda at=at: b"",
            lambda at=at: steps[at] * 2,
            lambda other=other: steps[other],
            lambda at=at: rng.choice(_OPCODES) + steps[at][1:],
            lambda at=at: steps[at] + rng.choice(_OPCODES),
            lambda at=at: steps[at] + b"0" + _objects(rng),
            lambda at=at: steps[at] + _objects(rng) + b"0",
            lambda: _objects(rng),
            lambda at=at: _with_argument(steps[at], rng),
        )
        steps[at] = rng.choice(ways)()
    return b"".join(steps)


def _with_argument(step: bytes, rng: Rng) -> bytes:
    """The same opcode with another number behind it."""
    if len(step) < 2:
        return step
    size = min(len(step) - 1, rng.choice((1, 2, 4, 8)))
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63, 2**64 - 1))
    return step[:1] + struct.pack("<Q", value)[:size] + step[1 + size :]


def _whole_pickle(path: Path, rng: Rng) -> None:
    path.write_bytes(_change(path.read_bytes(), rng))


def _program_in_archive(path: Path, rng: Rng) -> None:
    found = members(path)
    for name in found:
        if name.endswith("data.pkl"):
            found[name] = _change(found[name], rng)
    if found:
        path.write_bytes(written(found, zipfile.ZIP_STORED))


def _bomb_pickle(path: Path, rng: Rng) -> None:
    """A leaf of a good-looking tree."""
    body = mapping({"params": mapping({"leaf": _objects(rng)})})
    path.write_bytes(b"\x80\x03" + body + b".")


EDITS = {
    "pickle_steps": Edit(_whole_pickle, ends_in(".pkl")),
    "pickle_tree": Edit(_bomb_pickle, ends_in(".pkl")),
    "archive_steps": Edit(_program_in_archive, ends_in(".pt", ".pth", ".bin")),
}
