"""Mutations that know nothing of what a file holds."""

import re
import struct
from pathlib import Path

from fuzzing.edit import Edit, Rng, edits_of_bytes, no_code

_NUMBERS = (0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))
_WORDS = (
    b"-1",
    b"1e400",
    b"NaN",
    b"99999999999999999999",
    b"null",
    b"\xff\xfe",
    b"\x00",
    b"\x1b[2J",
)


def flip_bits(content: bytes, rng: Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: Rng) -> bytes:
    return content[: _place(content, rng)]


def cut_out(content: bytes, rng: Rng) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + rng.choice((1, 2, 8, 100)) :]


def put_in(content: bytes, rng: Rng) -> bytes:
    start = _place(content, rng)
    return content[:start] + rng.randbytes(rng.choice((1, 2, 8, 100))) + content[start:]


def repeat(content: bytes, rng: Rng) -> bytes:
    start, length = _place(content, rng), rng.choice((1, 8, 100, 1000))
    return content[:start] + content[start : start + length] * rng.choice((2, 50)) + content[start:]


def zero_out(content: bytes, rng: Rng) -> bytes:
    start, length = _place(content, rng), rng.choice((4, 64, 1000))
    stop = min(len(content), start + length)
    return content[:start] + bytes(stop - start) + content[stop:]


def write_number(content: bytes, rng: Rng) -> bytes:
    number = rng.choice(_NUMBERS)
    packed = struct.pack("<q", number)[: rng.choice((1, 2, 4, 8))]
    start = _place(content, rng)
    return content[:start] + packed + content[start + len(packed) :]


def change_digits(content: bytes, rng: Rng) -> bytes:
    """One of the first numbers in the text becomes another word."""
    found = list(re.finditer(rb"\d+", content[:20_000]))
    if not found:
        return content
    match = rng.choice(found)
    return content[: match.start()] + rng.choice(_WORDS) + content[match.end() :]


def append(content: bytes, rng: Rng) -> bytes:
    return content + rng.choice((b"\n", b"\x00" * 1000, b"{}", rng.randbytes(100), content))


def prepend(content: bytes, rng: Rng) -> bytes:
    return rng.choice((b"\xef\xbb\xbf", b"\x00", b"\n", rng.randbytes(16))) + content


def _place(content: bytes | bytearray, rng: Rng) -> int:
    """Headers and ends are met as often as all that lies between."""
    size = max(1, len(content))
    near = min(size, 400)
    return rng.choice((rng.randrange(near), size - 1 - rng.randrange(near), rng.randrange(size)))


def _splice(path: Path, rng: Rng) -> None:
    """The first part of one file before the last part of another."""
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and not p.is_symlink())
    one, other = path.read_bytes(), rng.choice(others).read_bytes()
    path.write_bytes(one[: _place(one, rng)] + other[_place(other, rng) :])


EDITS = {
    **edits_of_bytes(
        no_code,
        flip_bits,
        truncate,
        cut_out,
        put_in,
        repeat,
        zero_out,
        write_number,
        change_digits,
        append,
        prepend,
    ),
    "splice": Edit(_splice, no_code),
}
