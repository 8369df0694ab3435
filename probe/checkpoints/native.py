"""The native folder: config.json beside model.safetensors."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from probe.checkpoints.base import (
    LARGEST_CONFIG,
    Source,
    Subject,
    Weights,
    build_subject,
    described_by,
)
from probe.errors import InputError
from probe.files import read_text, require_file, write_atomically
from probe.models.transformer import ModelConfig, SequenceTransformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VERSION = 1


class NativeFolder:
    """A folder that describes itself; needs no preset."""

    name = "native"

    def recognises(self, source: Source) -> bool:
        """A folder whose config.json, or config.yaml alone, is not of another program."""
        path = source.path
        others = (path / "config.yaml").exists() and not (path / CONFIG).exists()
        return path.is_dir() and not others and "model_type" not in described_by(path)

    def read(self, source: Source) -> Subject:
        """Reads config.json, then the tensors that it calls for.

        Raises:
            InputError: A file is missing, damaged, of another version, or does not match.
        """
        path = source.path
        if source.preset is not None:
            raise InputError(f"{path}: a native folder states its own model; leave out --preset")
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise InputError(f"{path}: holds no {name}")
        config, task = read_description(path / CONFIG)
        tensors = read_safetensors(path / WEIGHTS)
        weights = Weights(tensors, {name: f"{name:.200}" for name in tensors})
        return build_subject(path.resolve(), self.name, config, weights, task)


def read_description(path: Path) -> tuple[ModelConfig, str | None]:
    """The model that a config.json describes, and its task.

    Raises:
        InputError: It is damaged, of another version, or describes no model.
    """
    try:
        plain = json.loads(read_text(path, LARGEST_CONFIG))
        version, described, task = plain["version"], plain["model"], plain["task"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error!s:.160}") from None
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path}: version {version!r:.40}, this program reads {VERSION}")
    if task is not None and not (isinstance(task, str) and task.isprintable()):
        raise InputError(f"{path}: task must be a name or null")
    try:
        return ModelConfig.from_dict(described), task
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
        InputError: It is damaged, or has names that cannot be printed.
    """
    require_file(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: {ascii(str(error))[1:-1]:.200}") from None
    if unprintable := [name for name in tensors if not name.isprintable()]:
        raise InputError(f"{path}: {len(unprintable)} tensors with unprintable names")
    return tensors


def write_native(model: SequenceTransformer, task: str | None, folder: Path) -> None:
    """Writes a model as a native folder; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    plain = {"version": VERSION, "task": task, "model": model.config.to_dict()}
    write_atomically(folder / WEIGHTS, save(state))
    write_atomically(folder / CONFIG, (json.dumps(plain, indent=2) + "\n").encode())


NAMED = {NativeFolder.name: NativeFolder()}
