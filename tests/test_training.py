"""Training is deterministic, learns, says how, and leaves others' files alone."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_recipe import TINY, write

from probe.checkpoints.base import load
from probe.errors import InputError
from probe.models.recipes import Checkpoints, Recipe, find_recipe, read_recipe
from probe.models.training import Trainer, held_out_loss, learning_rate, thinned, train
from probe.tasks.base import find_task

DEMO = Path(__file__).parent.parent / "examples" / "demo"


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    return read_recipe(write(tmp_path, TINY))


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    settings = find_recipe("demo").optimiser
    rates = [learning_rate(settings, step) for step in range(settings.steps)]
    assert max(rates) == rates[settings.warmup] == settings.peak_rate
    assert rates[-1] == pytest.approx(settings.floor_rate)
    assert rates[0] == pytest.approx(settings.peak_rate / settings.warmup)
    assert rates[: settings.warmup] == sorted(rates[: settings.warmup])
    assert rates[settings.warmup :] == sorted(rates[settings.warmup :], reverse=True)


def test_the_rate_has_known_values_on_the_way() -> None:
    settings = replace(
        find_recipe("demo").optimiser,
        peak_rate=8.0,
        floor_rate=2.0,
        warmup=4,
        steps=7,
        decay_steps=9,
    )
    # Steps 0..3 warm up; 4..8 are the cosine at angles 0, 45, 90, 135 and 180 degrees.
    known = [2.0, 4.0, 6.0, 8.0, 8.0, 5 + 3 * 0.5**0.5, 5.0]
    rates = [learning_rate(settings, step) for step in range(settings.steps)]
    assert rates == pytest.approx(known)
    assert learning_rate(settings, 8) == pytest.approx(2.0)  # never reached: stopped before
    whole = replace(settings, steps=9, decay_steps=None)
    assert [learning_rate(whole, step) for step in range(7)] == rates
    assert learning_rate(replace(whole, steps=7), 6) == pytest.approx(2.0)  # control


def test_a_curve_has_the_mean_of_every_window() -> None:
    assert thinned([1.0, 3.0, 5.0, 7.0, 9.0], 3) == [(2, 2.0), (4, 6.0), (5, 9.0)]
    assert thinned([1.0, 3.0], 100) == [(1, 1.0), (2, 3.0)]
    assert len(thinned([0.5] * 1001, 100)) <= 100


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
    rows = list(csv.DictReader((first / "loss.csv").open()))
    assert [float(row["loss"]) for row in rows] == losses
    rates = [learning_rate(tiny.optimiser, step) for step in range(tiny.optimiser.steps)]
    assert [float(row["learning_rate"]) for row in rows] == rates
    assert not (first / "unfinished").exists() and not (first / "checkpoints").exists()
    assert logs[0]["held_out_loss"] < 0.97 * losses[0]
    assert Recipe.from_dict("tiny", logs[0]["recipe"]) == tiny
    assert load(first).task == tiny.task


def test_checkpoints_are_native_folders_of_their_steps(tiny: Recipe, tmp_path: Path) -> None:
    keeping = replace(tiny, checkpoints=Checkpoints(every=8, at=(1,)))
    out = train(keeping, tmp_path / "out")
    folders = sorted((out / "checkpoints").iterdir())
    names = [f"step-{step:06d}" for step in (0, 1, 8, 16, 20)]
    assert [folder.name for folder in folders] == names
    assert json.loads((out / "training.json").read_text())["checkpoints"] == [0, 1, 8, 16, 20]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[-1] == (out / "model.safetensors").read_bytes()
    assert len(set(weights)) == len(weights)
    initial, untrained = load(folders[0]), Trainer(tiny).model
    for name, tensor in untrained.state_dict().items():
        assert torch.equal(initial.model.state_dict()[name], tensor)
    task = find_task(tiny.task)
    losses = [held_out_loss(load(folder).model, task, 0) for folder in folders]
    assert losses[-1] < losses[2] < losses[0]
    # Keeping weights does not change them, and a later training leaves no stale ones.
    final = (out / "model.safetensors").read_bytes()
    assert (train(tiny, out) / "model.safetensors").read_bytes() == final
    assert not (out / "checkpoints").exists()


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
    elsewhere = train(replace(tiny, checkpoints=Checkpoints(at=(5,))), tmp_path / "elsewhere")
    (elsewhere / "checkpoints" / "step-000005" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds checkpoints/step-000005/notes\.txt"):
        train(tiny, elsewhere)
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


@pytest.mark.parametrize("kind", ["linear", "mesa"])
def test_weights_that_diverge_in_the_last_step_are_no_result(tmp_path: Path, kind: str) -> None:
    text = TINY.replace('"linear"', f'"{kind}"').replace("1e-2", "1e30").replace("= 20", "= 1")
    recipe = read_recipe(write(tmp_path, text.replace("warmup = 2", "warmup = 0")))
    with pytest.raises(InputError, match=r"the loss is (nan|inf) after the last step"):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


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
