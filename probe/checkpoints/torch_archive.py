"""Reads what torch.save wrote: nested containers, numbers, strings and tensors, and nothing else.

The archive and the program in its data.pkl are looked through first, by a reader that builds no
object of theirs: tensors are only declared in it. What passes is read by torch.load with
weights_only, memory-mapped, so that nothing is paid for tensors that no one looks at.
"""

import math
import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import torch

from probe.checkpoints.safe_pickle import Forbidden, Reader, Step, with_plain_keys
from probe.errors import InputError
from probe.files import require_file

LARGEST_PROGRAM = 2**22  # bytes of data.pkl: some ten thousand tensors
LONGEST_PROGRAM = 2_000_000  # steps of it
LARGEST_SIDE = 2**40
SHOWN = 6  # foreign globals in one message
_ITEM_BYTES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
}


@dataclass(frozen=True)
class _Kind:
    """A class of storages, by the bytes of a number in it."""

    item: int


@dataclass(frozen=True)
class _Storage:
    """A storage that a program names, with its number of entries."""

    entries: int


@dataclass(frozen=True)
class _Declared:
    """A tensor that a program asks for, and that lies within its storage."""


def _mapping(*items: object) -> dict[Any, Any]:
    if items:
        raise Forbidden("an ordered dictionary that is not filled step by step")
    return {}


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> _Declared:
    """Checks that all entries lie in the storage, each once: small files have no large tensors."""
    if not (isinstance(storage, _Storage) and _are_sizes(size) and _are_sizes(stride)):
        raise Forbidden("a tensor with a malformed state")
    if not (isinstance(offset, int) and offset >= 0 and len(size) == len(stride)):
        raise Forbidden("a tensor with a malformed state")
    count = math.prod(size)
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset + (max(reach, count) if count else 0) > storage.entries:
        raise Forbidden(f"a tensor of shape {list(size)} in {storage.entries} numbers")
    return _Declared()


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """A few whole numbers that can be sides of a tensor."""
    if not (isinstance(value, tuple) and len(value) <= 8):
        return False
    return all(type(side) is int and 0 <= side < LARGEST_SIDE for side in value)


def _parameter(data: object, *_: object) -> object:
    return data


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _Kind(item) for name, item in _ITEM_BYTES.items()},
}


def _ignore_state(reader: Any) -> None:
    """State dicts carry version numbers of their modules; nothing else has a state."""
    if not (isinstance(reader.stack[-2], dict) and isinstance(reader.stack[-1], dict)):
        raise Forbidden("a state for an object that is no dictionary")
    reader.stack.pop()


class _Declarations(Reader):
    dispatch: ClassVar[dict[int, Step]] = {
        **Reader.dispatch,
        **with_plain_keys(str, int),
        pickle.BINPERSID[0]: Reader.plain_step(pickle.BINPERSID),
        pickle.BUILD[0]: _ignore_state,
    }
    allowed = _ALLOWED

    def __init__(self, program: bytes, members: dict[str, int]):
        super().__init__(program)
        self.members = members

    def persistent_load(self, pid: object) -> _Storage:
        """A storage in a member data/KEY of the archive, no larger than that."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Forbidden("a storage with a malformed name")
        _, kind, key, _, entries = pid
        if not (isinstance(kind, _Kind) and isinstance(key, str) and type(entries) is int):
            raise Forbidden("a storage with a malformed name")
        if not 0 <= entries * kind.item <= self.members.get(f"data/{key}", -1):
            raise Forbidden(f"{entries} numbers of a storage that does not hold them")
        return _Storage(entries)


def read_archive(path: Path) -> Any:
    """Returns the content; its tensors are views of the file, on the CPU.

    Raises:
        InputError: The file is damaged, or no archive of torch.save, or asks for a global that is
            not on the list.
    """
    require_file(path)
    try:
        _vet(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Forbidden as error:
        raise InputError(f"{path}: refused, the archive asks for {str(error)[:300]}") from None
    except RecursionError:
        raise InputError(f"{path}: refused, the archive is nested too deeply") from None
    except Exception as error:  # a damaged archive can make its readers fail in any way
        reason = ascii(f"{type(error).__name__}: {error!s:.160}")[1:-1]
        raise InputError(f"{path}: not a readable archive of torch.save ({reason})") from None


def _vet(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size)
        program = archive.read(f"{_folder(archive)}/data.pkl")
    if foreign := _foreign(program):
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        shown = ", ".join(ascii(name[:80])[1:-1] for name in foreign[:SHOWN])
        raise Forbidden(f"foreign globals: {shown}{more}")
    _Declarations(program, members).load()


def _folder(archive: zipfile.ZipFile) -> str:
    """Everything lies in one folder, whose name is free."""
    return archive.namelist()[0].partition("/")[0]


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """Size by name within the folder; stored as they are, each once, and within the file."""
    entries = archive.infolist()
    if not entries:
        raise Forbidden("nothing: it is empty")
    prefix = f"{_folder(archive)}/"
    if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
        raise Forbidden("compressed members, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > size:
        raise Forbidden("members that overlap")
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        raise Forbidden("two members of one name")
    members = {
        entry.filename.removeprefix(prefix): entry.file_size
        for entry in entries
        if entry.filename.startswith(prefix)
    }
    if "data.pkl" not in members or len(members) != len(entries):
        raise Forbidden("another layout than that of torch.save")
    if "constants.pkl" in members:
        raise Forbidden("TorchScript code; save the state dict instead")
    if members["data.pkl"] > LARGEST_PROGRAM:
        raise Forbidden(f"a program of {members['data.pkl']} bytes")
    return members


def _foreign(program: bytes) -> list[str]:
    """All globals that are not on the list, in the order of their names; nothing is run."""
    found = set()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if step > LONGEST_PROGRAM:
            raise Forbidden("a program of too many steps")
        if opcode.name in ("GLOBAL", "INST") and isinstance(argument, str):
            found.add(tuple(argument.split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            raise Forbidden("another pickle protocol than that of torch.save")
    return sorted(".".join(name) for name in found if name not in _ALLOWED)
