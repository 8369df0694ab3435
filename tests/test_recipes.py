"""Recipes are read strictly, changed by key, and those of the paper are its models."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from tiny_recipe import TINY, write

from probe import presets as presets_package
from probe import registry
from probe.errors import InputError
from probe.models.recipes import (
    FOLDER,
    Checkpoints,
    Recipe,
    differences,
    find_recipe,
    read_recipe,
    recipe_names,
)
from probe.models.recipes.changes import changed
from probe.models.training import learning_rate
from probe.models.transformer import SequenceTransformer
from probe.presets.base import find_preset
from probe.tasks.base import asked_tokens, find_task

BROKEN = {
    "not TOML": ("task =", "task", "Expected"),
    "unknown key": ("seed = 3", "seed = 3\nsede = 4", "recipe: unknown key sede"),
    "missing key": ("seed = 3", "", "recipe: missing key seed"),
    "two problems": ("seed = 3", "sede = 4", "unknown key sede; missing key seed"),
    "unknown task": ("linear-constructed", "liner", "unknown task 'liner'"),
    "unknown setting": ("warmup", "warm", "optimiser: unknown key warm; missing key warmup"),
    "text for a number": ("batch = 16", 'batch = "16"', "batch must be of type int, is '16'"),
    "fraction of a step": ("steps = 20", "steps = 20.5", "steps must be of type int"),
    "no stream of numbers": ("seed = 3", "seed = -3", "recipe: seed must be 0 or more"),
    "no float": (
        "peak_rate = 1e-2",
        f"peak_rate = 1{'0' * 400}",
        "peak_rate must be of type float",
    ),
    "a giant": (
        "heads = 1, d_head = 10",
        "heads = 9999, d_head = 99999",
        "at most 50000000 are trained",
    ),
    "flag for a number": ("batch = 16", "batch = true", "batch must be of type int, is True"),
    "no steps": ("steps = 20", "steps = 0", "steps must be positive"),
    "nan rate": ("peak_rate = 1e-2", "peak_rate = nan", "peak_rate must be positive"),
    "floor above peak": ("floor_rate = 1e-2", "floor_rate = 1", "floor_rate must lie"),
    "only warm-up": ("warmup = 2", "warmup = 20", "warmup 20 takes all 20 steps"),
    "unknown model key": ("d_out = 10", "d_out = 10\ndout = 1", "'dout'"),
    "unknown attention": ('kind = "linear"', 'kind = "cubic"', "unknown kind of attention"),
    "width of text": ("d_head = 10", 'd_head = "10"', "d_head is"),
    "negative width": ("d_head = 10", "d_head = -10", "d_head is"),
    "other widths": ("d_out = 10", "d_out = 5", r"\(40, 5\), task linear-constructed has \(40, 10"),
    "decay that ends before": (
        "batch",
        "decay_steps = 19\nbatch",
        "decay_steps 19 end before steps",
    ),
    "fraction of a decay": (
        "batch",
        "decay_steps = 30.5\nbatch",
        "decay_steps must be of type int",
    ),
    "unknown kept": ("seed = 3", "seed = 3\ncheckpoints = {evry = 3}", "unknown key evry"),
    "kept before": ("seed = 3", "seed = 3\ncheckpoints = {at = [-1]}", "at must be 0 or more"),
    "kept text": ("seed = 3", 'seed = 3\ncheckpoints = {at = ["a"]}', "at must be a list of steps"),
    "preset and task": ("seed = 3", 'seed = 3\npreset = "x"', "states the task and the model"),
    "too many repeats": ("clip = 4.0", "clip = 4.0\nrepeat = 1000", "repeat must be"),
}


@pytest.mark.parametrize(("old", "new", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_recipes_are_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TINY
    path = write(tmp_path, TINY.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'dmeo'; known: .*demo"):
        find_recipe("dmeo")
    with pytest.raises(InputError, match=r"nowhere\.toml: .*No such file"):
        find_recipe("nowhere.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_and_survives_a_round_trip(name: str) -> None:
    recipe = find_recipe(name)
    model, generator = SequenceTransformer(recipe.model), torch.Generator().manual_seed(0)
    model.initialise(recipe.optimiser.init_std, generator)
    task = find_task(recipe.task)
    sample = task.sample(2, generator)
    assert model(sample.tokens)[:, asked_tokens(task)].shape == sample.oracle.shape
    assert Recipe.from_dict(name, json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_repeat_stands_for_equal_blocks() -> None:
    written = tomllib.loads((FOLDER / "demo.toml").read_text())
    assert len(written["model"]["blocks"]) == 1
    blocks = find_recipe("demo").model.blocks
    assert len(blocks) == 4
    assert len(set(blocks)) == 1


PUBLISHED = [name for name in recipe_names() if name.startswith("von-oswald-2023/")]
# Published models whose settings were not published with the others.
WITHOUT_RECIPE = {"linear-mesa"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_train_the_published_models(name: str) -> None:
    recipe, preset = find_recipe(name), find_preset(name)
    assert (recipe.model, recipe.task) == (preset.config, preset.task)
    settings = recipe.optimiser
    if settings.floor_rate == settings.peak_rate:
        rates = {learning_rate(settings, step) for step in (0, settings.steps // 2, settings.steps)}
        assert rates == {settings.peak_rate}
    else:
        assert learning_rate(settings, 999) == settings.peak_rate
        assert learning_rate(settings, settings.steps - 1) > 2 * settings.floor_rate
        assert learning_rate(settings, settings.decay - 1) == pytest.approx(1e-5)


def test_every_published_model_has_a_recipe_but_one() -> None:
    presets = {name.partition("/")[2] for name in registry.discover(presets_package)}
    assert presets - {name.partition("/")[2] for name in PUBLISHED} == WITHOUT_RECIPE


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    settings = TINY[TINY.index("[optimiser]") :]
    for preset, message in (('"linear-9l"', "unknown preset 'linear-9l'"), ("3", "must be a name")):
        path = write(tmp_path, f"preset = {preset}\nseed = 0\n{settings}")
        with pytest.raises(InputError, match=message):
            read_recipe(path)
    path = write(tmp_path, f'preset = "von-oswald-2023/linear-2l"\nseed = 0\n{settings}')
    assert len(read_recipe(path).model.blocks) == 2


def test_checkpoints_are_kept_at_multiples_and_at_the_end() -> None:
    assert Checkpoints().steps(20) == frozenset()
    assert sorted(Checkpoints(every=8).steps(20)) == [0, 8, 16, 20]
    assert sorted(Checkpoints(every=10).steps(20)) == [0, 10, 20]
    assert sorted(Checkpoints(at=(1, 4, 30)).steps(20)) == [1, 4, 20]


CHANGES = {
    "optimiser.steps=300": lambda r: r.optimiser.steps == 300,
    "optimiser.peak_rate = 1": lambda r: r.optimiser.peak_rate == 1.0,
    "optimiser.decay_steps=20000": lambda r: r.optimiser.decay == 20000,
    "seed=9": lambda r: r.seed == 9,
    "task=contracting-constructed": lambda r: r.task == "contracting-constructed",
    "model.blocks.3.attention.kind=mesa": lambda r: r.model.blocks[3].attention.kind == "mesa",
    "model.blocks.0.attention.heads=2": lambda r: r.model.blocks[0].attention.heads == 2,
    'model.blocks.1.unit=["q"]': lambda r: r.model.blocks[1].unit == ("q",),
    "checkpoints.every=50": lambda r: r.checkpoints == Checkpoints(50),
    "checkpoints.at=[7]": lambda r: r.checkpoints == Checkpoints(at=(7,)),
}


@pytest.mark.parametrize("assignment", CHANGES)
@pytest.mark.parametrize("name", ["demo", "von-oswald-2023/linear-4l"])
def test_one_setting_changes_and_nothing_else(name: str, assignment: str) -> None:
    recipe = find_recipe(name)
    other = changed(recipe, [assignment])
    assert CHANGES[assignment](other) and not CHANGES[assignment](recipe)
    assert len(differences(recipe, other)) == 1
    assert changed(recipe, []) == recipe


def test_the_decay_follows_the_steps_unless_it_is_stated() -> None:
    shorter = ["optimiser.steps=1500"]
    assert changed(find_recipe("demo"), shorter).optimiser.decay == 1500
    published = find_recipe("von-oswald-2023/softmax-3l")
    assert changed(published, shorter).optimiser.decay == 30000


WRONG_CHANGES = {
    "optimiser.stps=3": "unknown key stps; known: steps, batch, peak_rate",
    "sede=3": "unknown key sede; known: task, seed, model, optimiser, checkpoints",
    "model.blocks.4.clip=1": "unknown key 4; known: 0, 1, 2, 3",
    "model.blocks.0.attention.width=1": "unknown key width; known: heads, d_head, kind",
    "seed.low=1": "nothing lies below 0, not low",
    "optimiser.steps": "expected key=value",
    "=3": "unknown key ; known: task",
    "optimiser.steps=many": "steps must be of type int, is 'many'",
    "optimiser.steps=0": "steps must be positive",
    "optimiser={steps = 3}": "missing key batch",
    "task=liner": "unknown task 'liner'",
    "model.blocks=[]": "model without blocks",
    "checkpoints.at=7": "at must be of type list",
}


@pytest.mark.parametrize(("assignment", "message"), WRONG_CHANGES.items(), ids=WRONG_CHANGES)
def test_wrong_changes_are_refused_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        changed(find_recipe("demo"), [assignment])
    assert str(caught.value).startswith(f"--set {assignment}: ")
    assert "\n" not in str(caught.value)
