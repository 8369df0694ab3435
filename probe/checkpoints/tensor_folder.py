"""Tensors of a Hugging Face folder: model.safetensors, or parts of it under an index."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from probe.errors import InputError
from probe.files import read_text, require_file

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_INDEX, LARGEST_FILE, MOST_FILES = 2**26, 2**27, 1000
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_TENSORS = (".safetensors", *(kind[1:] for kind in _PICKLED))
_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class TensorFolder:
    """What the headers of the files say.

    Attributes:
        described: Every tensor on the meta device: its shape and its type, without memory.
        files: The file that holds it.
    """

    described: dict[str, Tensor]
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path) -> "TensorFolder":
        """Reads the headers.

        Raises:
            InputError: No safetensors, a damaged file, or an index that does not fit its files.
        """
        _check_files(folder)
        if (folder / WHOLE).is_file():
            described = _headers(folder / WHOLE)
            return cls(described, dict.fromkeys(described, folder / WHOLE))
        if not (folder / INDEX).is_file():
            pickled = sorted(path.name for kind in _PICKLED for path in folder.glob(kind))
            hint = (
                f"; {pickled[0]!a:.80} is a pickle, which is not read; save it as safetensors"
                if pickled
                else ""
            )
            raise InputError(f"{folder}: holds no {WHOLE}{hint}")
        return _parts(folder)

    def read(self) -> dict[str, Tensor]:
        """All tensors, as they are in the files.

        Raises:
            InputError: A file is damaged.
        """
        return dict(self.each())

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """One tensor after the other, so that memory for one is enough.

        Raises:
            InputError: A file is damaged.
        """
        for path in dict.fromkeys(self.files.values()):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated)
                    yield name, file.get_tensor(name)


def _check_files(folder: Path) -> None:
    """Other people's readers open what they find, also a pipe, and read texts as a whole.

    Raises:
        InputError: A file is none, or too large for what it should be.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir():
            require_file(path, None if path.suffix in _TENSORS else LARGEST_FILE)


def _parts(folder: Path) -> TensorFolder:
    """The headers of all files that the index names."""
    listed = _index(folder / INDEX)
    described: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for name in sorted(set(listed.values())):
        if not (folder / name).is_file():
            raise InputError(f"{folder / INDEX}: names {name!a:.80}, which is not there")
        held = _headers(folder / name)
        if wrong := [tensor for tensor in held if listed.get(tensor) != name]:
            raise InputError(f"{folder / INDEX}: {wrong[0]!a:.200} is not listed in {name!a:.80}")
        described |= held
        files |= dict.fromkeys(held, folder / name)
    if lost := sorted(listed.keys() - described.keys()):
        raise InputError(f"{folder / INDEX}: {lost[0]!a:.200} is in none of the files")
    return TensorFolder(described, files)


def _index(path: Path) -> dict[str, str]:
    """The file of every tensor; names of files that lie in the folder itself."""
    try:
        plain = json.loads(read_text(path, LARGEST_INDEX))
        listed = plain["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error!s:.160}") from None
    if not (isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())):
        raise InputError(f"{path}: weight_map must give the file of every tensor")
    names = set(listed.values())
    if len(names) > MOST_FILES:
        raise InputError(f"{path}: names {len(names)} files, expected at most {MOST_FILES}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{path}: {name!a:.80} is no safetensors file in this folder")
    return listed


def _headers(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        names = list(file.keys())
        if unprintable := [name for name in names if not name.isprintable()]:
            raise InputError(f"{path}: {len(unprintable)} tensors with unprintable names")
        return {name: _described(path, name, file.get_slice(name)) for name in names}


def _described(path: Path, name: str, held: Any) -> Tensor:
    kind = held.get_dtype()
    if kind not in _TYPES:
        raise InputError(f"{path}: {name:.200} holds {kind}, expected floating-point numbers")
    return torch.empty(held.get_shape(), dtype=_TYPES[kind], device="meta")


def _opened(path: Path) -> Any:
    require_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: {ascii(str(error))[1:-1]:.200}") from None
