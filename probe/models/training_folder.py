"""The folder that a training writes: what belongs to it, and what lies there until the end.

Until a training ends, all that it writes lies in `unfinished/`, so that an earlier training in
the same folder stays whole, and an interrupted one can go on.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from probe.checkpoints.native import write_native
from probe.errors import InputError
from probe.files import read_text, require_file, write_atomically
from probe.models.recipes import Recipe, differences
from probe.models.transformer import SequenceTransformer

LOG, LOSSES, DRAWING = "training.json", "loss.csv", "loss.svg"
CHECKPOINTS, UNFINISHED = "checkpoints", "unfinished"
RECIPE, STATE = "recipe.json", "state.safetensors"

_OURS = re.compile(
    r"(unfinished/)?(checkpoints/step-\d+/)?(config\.json|model\.safetensors)"
    r"|training\.json|loss\.(csv|svg)|unfinished/(recipe\.json|state\.safetensors)"
)
_HALF_WRITTEN = re.compile(r"(^|/)\.([^/]+)\.[^./]{8}$")  # left by a kill while a file was written


@dataclass(frozen=True)
class TrainingFolder:
    """A folder that is empty, new, or holds nothing but trainings.

    Attributes:
        path: The folder.
        recipe: What is trained in it.
    """

    path: Path
    recipe: Recipe

    @classmethod
    def claimed(cls, path: Path, recipe: Recipe, resume: bool) -> "TrainingFolder":
        """Makes the folder, or accepts one in which nothing of others can be lost.

        Raises:
            InputError: It holds other things, or an unfinished training that is not to be
                resumed, or one to be resumed that was of another recipe.
        """
        folder = cls(path, recipe)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder._refuse_foreign()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        if folder.is_unfinished and not resume:
            raise InputError(
                f"{path}: holds an unfinished training; --resume goes on with it, "
                f"and without {folder._unfinished} it is forgotten"
            )
        if folder.is_unfinished:
            _compare(folder._unfinished / RECIPE, recipe)
        elif resume and folder.is_finished:
            _compare(path / LOG, recipe)
        return folder

    @property
    def is_unfinished(self) -> bool:
        """Whether a training in it was interrupted."""
        return (self._unfinished / RECIPE).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it holds an ended training, and no later one that was interrupted."""
        return (self.path / LOG).is_file() and not self.is_unfinished

    @property
    def state_path(self) -> Path:
        """Where the state of the interrupted training lies."""
        return self._unfinished / STATE

    def read_state(self) -> dict[str, Tensor] | None:
        """The tensors of the interrupted training; None where none were saved.

        Raises:
            InputError: The file cannot be read.
        """
        if not (self.is_unfinished and self.state_path.exists()):
            return None
        require_file(self.state_path)
        try:
            return load_file(self.state_path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{self.state_path}: {ascii(str(error))[1:-1]:.200}") from None

    def write_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the saved state as a whole."""
        self._begin()
        write_atomically(self.state_path, save(dict(state)))

    def write_checkpoint(self, model: SequenceTransformer, step: int) -> None:
        """Keeps the weights after `step` steps."""
        self._begin()
        write_native(model, self.recipe.task, self._unfinished / CHECKPOINTS / f"step-{step:06d}")

    def finish(self, model: SequenceTransformer, losses: str, log: Mapping[str, Any]) -> None:
        """Puts the result in the place of an earlier one; killed midway, it can be repeated."""
        write_native(model, self.recipe.task, self.path)
        write_atomically(self.path / LOSSES, losses)
        kept, place = self._unfinished / CHECKPOINTS, self.path / CHECKPOINTS
        if kept.is_dir() or not log["checkpoints"]:
            shutil.rmtree(place, ignore_errors=True)
        if kept.is_dir():
            kept.rename(place)
        (self.path / DRAWING).unlink(missing_ok=True)  # that of an earlier training
        write_atomically(self.path / LOG, json.dumps(log, indent=2) + "\n")
        # The recipe goes first: without it, the rest counts for nothing.
        (self._unfinished / RECIPE).unlink(missing_ok=True)
        shutil.rmtree(self._unfinished, ignore_errors=True)

    @property
    def _unfinished(self) -> Path:
        return self.path / UNFINISHED

    def _begin(self) -> None:
        if not self.is_unfinished:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir(exist_ok=True)
            plain = {"name": self.recipe.name, "recipe": self.recipe.to_dict()}
            write_atomically(self._unfinished / RECIPE, json.dumps(plain, indent=2) + "\n")

    def _refuse_foreign(self) -> None:
        foreign = sorted(islice(self._files(ours=False), 3))
        begun = self.is_unfinished or self.is_finished
        strays = [] if begun else sorted(islice(self._files(ours=True), 3))
        if foreign or strays:
            named = ", ".join(foreign or strays)
            raise InputError(f"{self.path}: not empty and not an earlier training: holds {named}")

    def _files(self, ours: bool) -> Iterator[str]:
        """What lies in the folder, by whether a training may have written it."""
        for path in self.path.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(self.path).as_posix()
            whole = _HALF_WRITTEN.sub(r"\1\2", name)
            if bool(_OURS.fullmatch(whole)) == ours and not (ours and whole != name):
                yield name


def _compare(path: Path, recipe: Recipe) -> None:
    """Refuses another recipe than the one that a file of an earlier training states."""
    try:
        stored = json.loads(read_text(path))["recipe"]
        if not isinstance(stored, dict):
            raise InputError("the recipe is no table")
        before = Recipe.from_dict(recipe.name, stored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {error!s:.160}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if found := differences(before, recipe):
        shown = "; ".join(f"{key} is {old} there, {new} asked" for key, old, new in found[:3])
        raise InputError(f"{path}: another recipe: {shown}")
