"""Recipes: each TOML file in this folder states a model, its task and how it is trained.

A recipe is called by its path in the folder without the ending. Its file holds

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

    [checkpoints]                   # may be left out; the fields of `Checkpoints`
    every = 200

`preset = "..."`, the name of a published model, may stand in place of `task` and `model`.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from probe.errors import InputError
from probe.files import read_text
from probe.models.transformer import ModelConfig, SequenceTransformer
from probe.presets.base import find_preset
from probe.tasks.base import find_task

FOLDER = Path(__file__).parent
MOST_PARAMETERS = 50_000_000  # the published models have fewer than a million


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up and a cosine down to a floor.

    Attributes:
        steps: Number of steps, each on fresh sequences.
        batch: Sequences per step.
        peak_rate: Learning rate after the warm-up.
        floor_rate: Learning rate at the end of the cosine; equal to the peak: constant.
        warmup: Steps over which the rate grows from 0.
        weight_decay: Decoupled decay of AdamW.
        gradient_clip: Every entry of the gradient is clipped to [-gradient_clip, gradient_clip].
        init_std: Standard deviation of the initial matrices.
        decay_steps: Step, counted from 1 and with the warm-up, at which the cosine would reach
            the floor, if the training stops before; None: the last.
    """

    steps: int
    batch: int
    peak_rate: float
    floor_rate: float
    warmup: int
    weight_decay: float
    gradient_clip: float
    init_std: float
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        for name in ("steps", "batch", "peak_rate", "gradient_clip", "init_std"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimiser: {name} must be positive, is {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"optimiser: {name} must be 0 or more, is {getattr(self, name)}")
        if self.decay < self.steps:
            raise InputError(f"optimiser: decay_steps {self.decay} end before steps {self.steps}")
        if self.warmup >= self.decay:
            raise InputError(f"optimiser: warmup {self.warmup} takes all {self.decay} steps")
        if not 0 <= self.floor_rate <= self.peak_rate:
            raise InputError("optimiser: floor_rate must lie between 0 and peak_rate")

    @property
    def decay(self) -> int:
        """Steps of warm-up and whole cosine."""
        return self.steps if self.decay_steps is None else self.decay_steps


@dataclass(frozen=True)
class Checkpoints:
    """The steps after which the weights are kept; step 0 has the initial ones.

    If any are kept, the last step's are too.

    Attributes:
        every: Each multiple of so many steps, 0 among them; 0: none.
        at: Further steps; those after the last are left out.
    """

    every: int = 0
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses steps that do not exist."""
        if min(self.every, *self.at, 0) < 0:
            raise InputError("checkpoints: every and at must be 0 or more")

    def steps(self, last: int) -> frozenset[int]:
        """The steps from 0 to `last` after which the weights are kept."""
        if not self.every and not self.at:
            return frozenset()
        regular = range(0, last, self.every) if self.every else ()
        return frozenset({*regular, *(step for step in self.at if step < last), last})


@dataclass(frozen=True)
class Recipe:
    """A model, the task that it is trained on, and how.

    Attributes:
        name: Its path in the folder of recipes, without the ending.
        task: Name of the task.
        model: Shape of the model.
        optimiser: Settings of the training.
        seed: Seed of the initial weights and of all sequences.
        checkpoints: What is kept on the way.
    """

    name: str
    task: str
    model: ModelConfig
    optimiser: Optimiser
    seed: int
    checkpoints: Checkpoints = Checkpoints()

    def __post_init__(self) -> None:
        """Refuses a model that does not fit its task or one thread, and a seed of no stream."""
        task = find_task(self.task)
        wanted, given = (task.width_in, task.width_out), (self.model.d_in, self.model.d_out)
        if wanted != given:
            raise InputError(f"model: widths in and out are {given}, task {self.task} has {wanted}")
        if self.seed < 0:
            raise InputError(f"recipe: seed must be 0 or more, is {self.seed}")
        with torch.device("meta"):
            size = sum(part.numel() for part in SequenceTransformer(self.model).parameters())
        if size > MOST_PARAMETERS:
            raise InputError(
                f"model: {size} parameters, at most {MOST_PARAMETERS} are trained here"
            )

    @classmethod
    def from_dict(cls, name: str, plain: Mapping[str, Any]) -> "Recipe":
        """Reads the content of a recipe file, or what `to_dict` wrote.

        Raises:
            InputError: A key is missing, unknown or of the wrong kind, or the values do not fit.
        """
        kinds = {"task": str, "seed": int, "model": dict, "optimiser": dict, "checkpoints": dict}
        checked = _typed("recipe", _without_preset(plain), kinds, optional={"checkpoints"})
        numbers = {**get_type_hints(Optimiser), "decay_steps": int}
        settings = _typed("optimiser", checked["optimiser"], numbers, optional={"decay_steps"})
        model = {**checked["model"], "blocks": _expanded(checked["model"].get("blocks", ()))}
        return cls(
            name=name,
            task=checked["task"],
            model=ModelConfig.from_dict(model),
            optimiser=Optimiser(**settings),
            seed=checked["seed"],
            checkpoints=_checkpoints(checked.get("checkpoints", {})),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return {
            "task": self.task,
            "seed": self.seed,
            "model": self.model.to_dict(),
            "optimiser": asdict(self.optimiser),
            "checkpoints": {"every": self.checkpoints.every, "at": list(self.checkpoints.at)},
        }


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the program, sorted."""
    paths = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.toml"))
    return tuple(sorted(path.as_posix() for path in paths))


def find_recipe(name: str) -> Recipe:
    """Returns the recipe of that name, or the one in a file whose path ends in .toml.

    Raises:
        InputError: No such recipe, or one that fails its checks.
    """
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    if name not in recipe_names():
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(recipe_names())}")
    return read_recipe(FOLDER / f"{name}.toml", name)


def read_recipe(path: Path, name: str | None = None) -> Recipe:
    """Reads and checks one recipe file; its name is that of the file, if none is given.

    Raises:
        InputError: It cannot be read, is no TOML, or fails its checks.
    """
    try:
        return Recipe.from_dict(name or path.stem, tomllib.loads(read_text(path)))
    except (ValueError, InputError) as error:
        said = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: {said}") from None


def differences(one: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """Dotted key and both values, wherever two recipes differ; None: not there. Names are free."""
    left, right = dict(_leaves(one.to_dict())), dict(_leaves(other.to_dict()))
    pairs = [(key, left.get(key), right.get(key)) for key in {**left, **right}]
    return [(key, before, after) for key, before, after in pairs if before != after]


def _leaves(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables and lists under their dotted keys."""
    if isinstance(plain, dict):
        items = plain.items()
    elif isinstance(plain, list | tuple):
        items = dict(enumerate(plain)).items()
    else:
        yield path, plain
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _without_preset(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe with the task and model of its preset written out, if it names one."""
    if "preset" not in plain:
        return plain
    if twice := [key for key in ("task", "model") if key in plain]:
        raise InputError(f"recipe: the preset states the {' and the '.join(twice)}")
    if not isinstance(plain["preset"], str):
        raise InputError(f"recipe: preset must be a name, is {plain['preset']!r:.60}")
    preset = find_preset(plain["preset"])
    rest = {key: value for key, value in plain.items() if key != "preset"}
    return {"task": preset.task, "model": preset.config.to_dict(), **rest}


def _checkpoints(plain: Mapping[str, Any]) -> Checkpoints:
    kinds = {"every": int, "at": list}
    checked = _typed("checkpoints", plain, kinds, optional=kinds)
    at = checked.get("at", [])
    if not all(type(step) is int for step in at):
        raise InputError(f"checkpoints: at must be a list of steps, is {at!r:.60}")
    return Checkpoints(checked.get("every", 0), tuple(at))


def _typed(
    where: str,
    plain: Mapping[str, Any],
    kinds: Mapping[str, type],
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """The values under their kinds, whole numbers standing for floats; names every problem.

    Optional keys that are absent or None are left out.
    """
    problems = [f"unknown key {key}" for key in plain if key not in kinds]
    typed = {}
    for key, kind in kinds.items():
        value = plain.get(key)
        if value is None and key in optional:
            continue
        if kind is float and type(value) is int and abs(value) < 2**63:
            value = float(value)
        if key not in plain:
            problems.append(f"missing key {key}")
        elif type(value) is not kind:
            problems.append(f"{key} must be of type {kind.__name__}, is {value!r:.60}")
        typed[key] = value
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
    return typed


def _expanded(blocks: Any) -> list[Any]:
    """Blocks with `repeat = n` written out n times."""
    if not isinstance(blocks, list | tuple) or not all(isinstance(block, dict) for block in blocks):
        raise InputError("model: blocks must be a list of tables")
    written = []
    for block in blocks:
        repeat = block.get("repeat", 1)
        if type(repeat) is not int or not 1 <= repeat <= 100:
            raise InputError(f"model: repeat must be a whole number from 1 to 100, is {repeat!r}")
        written += [{key: value for key, value in block.items() if key != "repeat"}] * repeat
    return written
