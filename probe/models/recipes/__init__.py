"""Recipes: each TOML file beside this one states a model, its task and how it is trained.

A recipe file holds

    task = "linear-constructed"     # name of a task
    seed = 0

    [model]                         # as in a checkpoint's config.json
    d_in = 40
    ...
    [[model.blocks]]                # once per block; `repeat = 4` stands for four equal ones
    attention = { kind = "linear", heads = 4, d_head = 20 }

    [optimiser]                     # the fields of `Optimiser`
    steps = 4000
    ...
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from probe.errors import InputError
from probe.models.transformer import ModelConfig
from probe.tasks.base import find_task

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up and a cosine down to a floor.

    Attributes:
        steps: Number of steps, each on fresh sequences.
        batch: Sequences per step.
        peak_rate: Learning rate after the warm-up.
        floor_rate: Learning rate at the last step; equal to the peak: constant.
        warmup: Steps over which the rate grows from 0.
        weight_decay: Decoupled decay of AdamW.
        gradient_clip: Every entry of the gradient is clipped to [-gradient_clip, gradient_clip].
        init_std: Standard deviation of the initial matrices.
    """

    steps: int
    batch: int
    peak_rate: float
    floor_rate: float
    warmup: int
    weight_decay: float
    gradient_clip: float
    init_std: float

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        for name in ("steps", "batch", "peak_rate", "gradient_clip", "init_std"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimiser: {name} must be positive, is {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimiser: {name} must be 0 or more, is {getattr(self, name)}")
        if self.warmup >= self.steps:
            raise InputError(f"optimiser: warmup {self.warmup} takes all {self.steps} steps")
        if not 0 <= self.floor_rate <= self.peak_rate:
            raise InputError("optimiser: floor_rate must lie between 0 and peak_rate")


@dataclass(frozen=True)
class Recipe:
    """A model, the task that it is trained on, and how.

    Attributes:
        name: The file's name without its ending.
        task: Name of the task.
        model: Shape of the model.
        optimiser: Settings of the training.
        seed: Seed of the initial weights and of all sequences.
    """

    name: str
    task: str
    model: ModelConfig
    optimiser: Optimiser
    seed: int

    def __post_init__(self) -> None:
        """Refuses a model whose tokens or predictions are not those of the task."""
        task = find_task(self.task)
        wanted, given = (task.width_in, task.width_out), (self.model.d_in, self.model.d_out)
        if wanted != given:
            raise InputError(f"model: widths in and out are {given}, task {self.task} has {wanted}")

    @classmethod
    def from_dict(cls, name: str, plain: Mapping[str, Any]) -> "Recipe":
        """Reads the content of a recipe file, or what `to_dict` wrote.

        Raises:
            InputError: A key is missing, unknown or of the wrong kind, or the values do not fit.
        """
        kinds = {"task": str, "model": dict, "optimiser": dict, "seed": int}
        checked = _typed("recipe", plain, kinds)
        settings = _typed("optimiser", checked["optimiser"], get_type_hints(Optimiser))
        model = {**checked["model"], "blocks": _expanded(checked["model"].get("blocks", ()))}
        return cls(
            name=name,
            task=checked["task"],
            model=ModelConfig.from_dict(model),
            optimiser=Optimiser(**settings),
            seed=checked["seed"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return {
            "task": self.task,
            "seed": self.seed,
            "model": self.model.to_dict(),
            "optimiser": asdict(self.optimiser),
        }


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the program, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def find_recipe(name: str) -> Recipe:
    """Returns the recipe of that name, or the one in a file whose path ends in .toml.

    Raises:
        InputError: No such recipe, or one that fails its checks.
    """
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    if name not in recipe_names():
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(recipe_names())}")
    return read_recipe(FOLDER / f"{name}.toml")


def read_recipe(path: Path) -> Recipe:
    """Reads and checks one recipe file.

    Raises:
        InputError: It cannot be read, is no TOML, or fails its checks.
    """
    try:
        return Recipe.from_dict(path.stem, tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{path}: {error}") from None


def _typed(where: str, plain: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The values under their kinds, whole numbers standing for floats; names every problem."""
    problems = [f"unknown key {key}" for key in plain if key not in kinds]
    typed = {}
    for key, kind in kinds.items():
        value = plain.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        if key not in plain:
            problems.append(f"missing key {key}")
        elif type(value) is not kind:
            problems.append(f"{key} must be of type {kind.__name__}, is {value!r}")
        typed[key] = value
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
    return typed


def _expanded(blocks: Any) -> list[Any]:
    """Blocks with `repeat = n` written out n times."""
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise InputError("model: blocks must be a list of tables")
    written = []
    for block in blocks:
        repeat = block.get("repeat", 1)
        if type(repeat) is not int or not 1 <= repeat <= 100:
            raise InputError(f"model: repeat must be a whole number from 1 to 100, is {repeat!r}")
        written += [{key: value for key, value in block.items() if key != "repeat"}] * repeat
    return written
