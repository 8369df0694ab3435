"""Mutations of archives: other members, sizes, names and sums than the file should have."""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fuzzing.edit import Edit, Rng, ends_in

_NAMES = (
    "../../up",
    "/etc/passwd",
    "a\\b",
    "archive/../x",
    "constants.pkl",
    "k" * 5000,
    "data.pkl",
)
_FIELDS = (8, 10, 16, 20, 24, 28, 30, 42)  # in an entry of the directory: method, sum, sizes, place
_UNPACKED = 1 << 31  # bytes
_VALUES = (0, 1, 8, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def members(path: Path) -> dict[str, bytes]:
    """Content by name; nothing if it is no archive any more."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError):
        return {}


def written(content: Mapping[str, bytes], kind: int, twice: str | None = None) -> bytes:
    """An archive; one member may come twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in content.items():
            archive.writestr(name, data)
        if twice is not None:
            archive.writestr(twice, content[twice])
    return file.getvalue()


def _members(path: Path, rng: Rng) -> None:
    """Lost, renamed, doubled, emptied, compressed or further members."""
    found = members(path)
    if not found:
        return
    name, kind, twice = rng.choice(sorted(found)), zipfile.ZIP_STORED, None
    way = rng.randrange(7)
    if way == 0:
        del found[name]
    elif way == 1:
        found[rng.choice(_NAMES)] = found.pop(name)
    elif way == 2:
        twice = name
    elif way == 3:
        found[name] = rng.choice((b"", found[name][:-1], found[name] * 2, rng.randbytes(50)))
    elif way == 4:
        kind = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif way == 5:
        folder = name.partition("/")[0]
        found[f"{folder}/{rng.choice(_NAMES)}"] = b"x"
    else:
        found = dict(sorted(found.items(), reverse=True))
    path.write_bytes(written(found, kind, twice))


def _directory(path: Path, rng: Rng) -> None:
    """A number in the directory or at the end of the archive."""
    content = bytearray(path.read_bytes())
    entries = [at for at in _found(content, b"PK\x01\x02") if at + 46 <= len(content)]
    ends = [at for at in _found(content, b"PK\x05\x06") if at + 22 <= len(content)]
    if entries and rng.random() < 0.7:
        at = rng.choice(entries) + rng.choice(_FIELDS)
    elif ends:
        at = ends[-1] + rng.choice((4, 8, 10, 12, 16, 20))
    else:
        return
    form, value = rng.choice(("<H", "<I")), rng.choice(_VALUES)
    value &= 0xFFFF if form == "<H" else 0xFFFFFFFF
    struct.pack_into(form, content, min(at, len(content) - 4), value)
    path.write_bytes(bytes(content))


def _found(content: bytearray, mark: bytes) -> list[int]:
    places, at = [], content.find(mark)
    while at >= 0:
        places.append(at)
        at = content.find(mark, at + 1)
    return places


def _bomb(path: Path, rng: Rng) -> None:
    """A small file whose program or storage unpacks to 2 GB."""
    found = members(path)
    names = [name for name in found if name.endswith(("data.pkl", "/0"))]
    if names:
        path.write_bytes(_with_bomb(tuple(sorted(found)), rng.choice(names)))


@cache
def _zeros() -> bytes:
    """2 GB of zeros, deflated: after a full flush each piece is packed as the one before."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (_UNPACKED >> 20) + packer.flush()


def _with_bomb(names: tuple[str, ...], bomb: str) -> bytes:
    """Written by hand, since zipfile would compress the zeros once more each time."""
    parts, directory, place = [], [], 0
    for name in names:
        data, method, length = (_zeros(), 8, _UNPACKED) if name == bomb else (b"x", 0, 1)
        fields = (20, 0, method, 0, 0, 0, len(data), length, len(name), 0)
        parts.append(b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + name.encode() + data)
        entry = struct.pack("<HHHHHHIIIHHHHHII", 20, *fields, 0, 0, 0, 0, place)
        directory.append(b"PK\x01\x02" + entry + name.encode())
        place += len(parts[-1])
    listed = b"".join(directory)
    end = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(listed), place, 0)
    return b"".join(parts) + listed + b"PK\x05\x06" + end


_SUITS = ends_in(".pt", ".pth", ".bin")
EDITS = {
    "archive_members": Edit(_members, _SUITS),
    "archive_directory": Edit(_directory, _SUITS),
    "archive_bomb": Edit(_bomb, _SUITS),
}
