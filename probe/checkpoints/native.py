"""The native folder: config.json beside model.safetensors."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from probe.checkpoints.base import Source, Subject, Weights, build_subject, described_by
from probe.errors import InputError
from probe.files import write_atomically
from probe.models.transformer import ModelConfig, SequenceTransformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VERSION = 1


class NativeFolder:
    """A folder that describes itself; needs no preset."""

    name = "native"

    def recognises(self, source: Source) -> bool:
        """A folder whose config.json is not of another program."""
        return source.path.is_dir() and "model_type" not in described_by(source.path)

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
        try:
            plain = json.loads((path / CONFIG).read_text())
            version, described, task = plain["version"], plain["model"], plain["task"]
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error!s:.160}"
            raise InputError(f"{path / CONFIG}: {reason}") from None
        if type(version) is not int or version != VERSION:
            shown = f"{version!r:.40}"
            raise InputError(f"{path / CONFIG}: version {shown}, this program reads {VERSION}")
        if task is not None and not (isinstance(task, str) and task.isprintable()):
            raise InputError(f"{path / CONFIG}: task must be a name or null")
        try:
            config = ModelConfig.from_dict(described)
        except InputError as error:
            raise InputError(f"{path / CONFIG}: {error}") from None
        try:
            tensors = load_file(path / WEIGHTS)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path / WEIGHTS}: {ascii(str(error))[1:-1]:.200}") from None
        if unprintable := [name for name in tensors if not name.isprintable()]:
            raise InputError(f"{path / WEIGHTS}: {len(unprintable)} tensors with unprintable names")
        weights = Weights(tensors, {name: f"{name:.200}" for name in tensors})
        return build_subject(path.resolve(), self.name, config, weights, task)


def write_native(model: SequenceTransformer, task: str | None, folder: Path) -> None:
    """Writes a model as a native folder; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    plain = {"version": VERSION, "task": task, "model": model.config.to_dict()}
    write_atomically(folder / WEIGHTS, save(state))
    write_atomically(folder / CONFIG, (json.dumps(plain, indent=2) + "\n").encode())


NAMED = {NativeFolder.name: NativeFolder()}
