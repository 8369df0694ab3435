"""Single files of tensors: state dicts as torch.save writes them, and safetensors.

The tensors have our names, as in the native folder. What the model is, a config.json beside the
file says, in the form of the native folder, or a preset.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.checkpoints.base import Source, Subject, Weights, build_subject
from probe.checkpoints.native import CONFIG, read_description, read_safetensors
from probe.checkpoints.torch_archive import read_archive
from probe.errors import InputError
from probe.models.config import ModelConfig
from probe.presets.base import find_preset

NESTED = ("model_state_dict", "state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors.

    Attributes:
        name: Name of the format.
        suffixes: Endings of such files.
        read_tensors: Reads one.
    """

    name: str
    suffixes: tuple[str, ...]
    read_tensors: Callable[[Path], Mapping[str, Tensor]]

    def recognises(self, source: Source) -> bool:
        """By its suffix."""
        return source.path.suffix in self.suffixes and not source.path.is_dir()

    def read(self, source: Source) -> Subject:
        """Reads the description, then the tensors that it calls for.

        Raises:
            InputError: Nothing describes the model, or a file is damaged or does not match.
        """
        path = source.path
        config, task = _described(source)
        weights = named(self.read_tensors(path))
        return build_subject(path.resolve(), self.name, config, weights, task)


def _described(source: Source) -> tuple[ModelConfig, str | None]:
    """The model and its task, by the preset or by the config.json beside the file."""
    if source.preset is not None:
        described = find_preset(source.preset)
        return described.config, described.task
    beside = source.path.parent / CONFIG
    if not beside.is_file():
        reason = f"no {CONFIG} beside it says what it holds; give --preset NAME"
        raise InputError(f"{source.path}: {reason}")
    return read_description(beside)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of torch.save, where it stands alone or among other things.

    Raises:
        InputError: The file is damaged or hostile, or holds no state dict.
    """
    return state_of(path, read_archive(path))


def state_of(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict by name, in memory of their own.

    Raises:
        InputError: The content is something else.
    """
    if isinstance(content, dict):
        nested = (content.get(key) for key in NESTED)
        content = next((inner for inner in nested if isinstance(inner, dict)), content)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds no state dict")
    if not all(isinstance(key, str) and key.isprintable() for key in content):
        raise InputError(f"{path}: the state dict has keys that are no printable names")
    if other := [key for key, value in content.items() if not _is_plain(value)]:
        raise InputError(f"{path}: {other[0]:.100} is no plain tensor")
    if sum(value.nbytes for value in content.values()) > path.stat().st_size:
        raise InputError(f"{path}: refused, its tensors share their memory")
    return dict(content)


def _is_plain(value: object) -> bool:
    """Sparse, quantised and further kinds are not read."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def named(tensors: Mapping[str, Tensor]) -> Weights:
    """Tensors under our names: without what wrappers have put before every one of them.

    They are copied: a file that is changed while it is mapped would change the model.
    """
    start = wrapped(tensors)
    copies = {name[start:]: tensor.detach().clone() for name, tensor in tensors.items()}
    return Weights(copies, {name[start:]: f"{name:.200}" for name in tensors})


def wrapped(names: Collection[str]) -> int:
    """The length of the prefixes of wrappers that all names begin with."""
    start = 0
    while found := [p for p in PREFIXES if all(name.startswith(p, start) for name in names)]:
        start += len(found[0])
    return start


NAMED = {
    one.name: one
    for one in (
        TensorFile("torch", (".pt", ".pth", ".bin"), read_state),
        TensorFile("safetensors", (".safetensors",), read_safetensors),
    )
}
