"""Recipes are read strictly; training is deterministic, learns, and leaves others' files alone."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from probe.checkpoints.base import load
from probe.errors import InputError
from probe.models.recipes import FOLDER, Recipe, find_recipe, read_recipe, recipe_names
from probe.models.training import held_out_loss, learning_rate, train
from probe.models.transformer import SequenceTransformer
from probe.tasks.base import find_task

DEMO = Path(__file__).parent.parent / "examples" / "demo"

TINY = """
task = "linear-constructed"
seed = 3
[model]
d_in = 40
d_model = 40
d_out = 10
projected = false
[[model.blocks]]
attention = { kind = "linear", heads = 1, d_head = 10 }
clip = 4.0
[optimiser]
steps = 20
batch = 16
peak_rate = 1e-2
floor_rate = 1e-2
warmup = 2
weight_decay = 0
gradient_clip = 1.0
init_std = 0.1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    return read_recipe(write(tmp_path, TINY))


BROKEN = {
    "not TOML": ("task =", "task", "Expected"),
    "unknown key": ("seed = 3", "seed = 3\nsede = 4", "recipe: unknown key sede"),
    "missing key": ("seed = 3", "", "recipe: missing key seed"),
    "two problems": ("seed = 3", "sede = 4", "unknown key sede; missing key seed"),
    "unknown task": ("linear-constructed", "liner", "unknown task 'liner'"),
    "unknown setting": ("warmup", "warm", "optimiser: unknown key warm; missing key warmup"),
    "text for a number": ("batch = 16", 'batch = "16"', "batch must be of type int, is '16'"),
    "fraction of a step": ("steps = 20", "steps = 20.5", "steps must be of type int"),
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
    with pytest.raises(InputError, match="unknown recipe 'dmeo'; known: demo"):
        find_recipe("dmeo")
    with pytest.raises(InputError, match=r"nowhere\.toml: .*No such file"):
        find_recipe("nowhere.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_model_and_survives_a_round_trip(name: str) -> None:
    recipe = find_recipe(name)
    model, generator = SequenceTransformer(recipe.model), torch.Generator().manual_seed(0)
    model.initialise(recipe.optimiser.init_std, generator)
    sample = find_task(recipe.task).sample(2, generator)
    assert model(sample.tokens).shape == sample.oracle.shape
    assert Recipe.from_dict(name, json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_repeat_stands_for_equal_blocks() -> None:
    written = tomllib.loads((FOLDER / "demo.toml").read_text())
    assert len(written["model"]["blocks"]) == 1
    blocks = find_recipe("demo").model.blocks
    assert len(blocks) == 4
    assert len(set(blocks)) == 1


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    settings = find_recipe("demo").optimiser
    rates = [learning_rate(settings, step) for step in range(settings.steps)]
    assert max(rates) == rates[settings.warmup] == settings.peak_rate
    assert rates[-1] == pytest.approx(settings.floor_rate)
    assert rates[0] == pytest.approx(settings.peak_rate / settings.warmup)
    assert rates[: settings.warmup] == sorted(rates[: settings.warmup])
    assert rates[settings.warmup :] == sorted(rates[settings.warmup :], reverse=True)


def test_training_is_deterministic_lowers_the_loss_and_says_how(
    tiny: Recipe, tmp_path: Path
) -> None:
    losses: list[float] = []
    first = train(tiny, tmp_path / "a", lambda step, steps, loss: losses.append(loss))
    torch.manual_seed(99)  # the global generator plays no part
    second = train(tiny, tmp_path / "b")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    logs = [json.loads((folder / "training.json").read_text()) for folder in (first, second)]
    for log in logs:
        assert log.pop("seconds") >= 0
    assert logs[0] == logs[1]
    assert [loss for _, loss in logs[0]["loss_curve"]] == losses
    assert logs[0]["held_out_loss"] < 0.97 * losses[0]
    assert Recipe.from_dict("tiny", logs[0]["recipe"]) == tiny
    assert load(first).task == tiny.task


def test_an_earlier_training_is_replaced_and_nothing_else(tiny: Recipe, tmp_path: Path) -> None:
    out = train(tiny, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    train(tiny, out)
    assert (out / "model.safetensors").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not an earlier training: holds notes\.txt"):
        train(tiny, out)
    (out / "notes.txt").unlink()
    (out / "training.json").unlink()
    with pytest.raises(InputError, match="not an earlier training"):
        train(tiny, out)
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="File exists"):
        train(tiny, out / "config.json")


def test_a_diverging_training_says_at_which_step(tmp_path: Path) -> None:
    text = TINY.replace("init_std = 0.1", "init_std = 1e30")
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step 1 of 20"):
        train(read_recipe(write(tmp_path, text)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_diverging_mesa_layer_says_so_too(tmp_path: Path) -> None:
    text = TINY.replace('"linear"', '"mesa"').replace("init_std = 0.1", "init_std = 1e30")
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step 1 of 20"):
        train(read_recipe(write(tmp_path, text)), tmp_path / "out")


def test_the_demo_loads_is_small_and_keeps_its_promise() -> None:
    log = json.loads((DEMO / "training.json").read_text())
    subject = load(DEMO)
    assert (DEMO / "model.safetensors").stat().st_size < 1_000_000
    assert Recipe.from_dict("demo", log["recipe"]) == find_recipe("demo")
    assert subject.model.config == find_recipe("demo").model
    assert subject.task is not None
    measured = held_out_loss(subject.model, find_task(subject.task), seed=0)
    assert measured == pytest.approx(log["held_out_loss"], rel=1e-3)
    assert measured < 0.35  # one step of gradient descent: 0.89
