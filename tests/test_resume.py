"""An interrupted training goes on to the same bytes, and nothing of it is lost on the way."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_recipe import TINY, write

from probe.errors import InputError
from probe.models import training
from probe.models.recipes import Checkpoints, Recipe, read_recipe
from probe.models.recipes.changes import changed
from probe.models.training import train


class Cut(Exception):
    """Stands for whatever ends a training."""


def cut_after(last: int) -> Callable[[int, int, float], None]:
    def progress(step: int, steps: int, loss: float) -> None:
        if step == last:
            raise Cut

    return progress


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch) -> Recipe:
    """Twenty steps; a state every three."""
    monkeypatch.setattr(training, "STEPS_TO_A_STATE", 3)
    return replace(read_recipe(write(tmp_path, TINY)), checkpoints=Checkpoints(every=4))


def interrupted(recipe: Recipe, out: Path, last: int) -> Path:
    with pytest.raises(Cut):
        train(recipe, out, cut_after(last))
    return out


def content(out: Path) -> dict[str, object]:
    """All files, and the log without what depends on the clock."""
    files: dict[str, object] = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "training.json"
    }
    log = json.loads((out / "training.json").read_text())
    timed = ("seconds", "seconds_count_from_step")
    return {**files, "log": {key: value for key, value in log.items() if key not in timed}}


@pytest.mark.parametrize("last", [1, 2, 3, 11, 19, 20])
@pytest.mark.parametrize("kind", ["linear", "mesa"])
def test_resumed_is_the_same_as_never_interrupted(
    tiny: Recipe, tmp_path: Path, last: int, kind: str
) -> None:
    tiny = changed(tiny, [f"model.blocks.0.attention.kind={kind}"])
    whole = content(train(tiny, tmp_path / "whole"))
    out = interrupted(tiny, tmp_path / "out", last)
    assert not (out / "model.safetensors").exists()
    seen: list[int] = []
    train(tiny, out, lambda step, *_: seen.append(step), resume=True)
    assert content(out) == whole
    # Control: it did go on, and did not begin again.
    done = last if last == 20 else last // 3 * 3
    assert seen == list(range(done + 1, 21))


def test_interrupted_twice_in_the_folder_of_an_earlier_one(tiny: Recipe, tmp_path: Path) -> None:
    before = changed(tiny, ["seed=8", "checkpoints.every=5"])
    out = train(before, tmp_path / "out")
    earlier = content(out)
    interrupted(tiny, out, 7)
    assert earlier.items() <= content(out).items()
    with pytest.raises(Cut):
        train(tiny, out, cut_after(14), resume=True)
    train(tiny, out, resume=True)
    assert content(out) == content(train(tiny, tmp_path / "whole"))


def test_what_is_unfinished_is_kept_unless_it_is_resumed(tiny: Recipe, tmp_path: Path) -> None:
    out = interrupted(tiny, tmp_path / "out", 7)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds an unfinished training; --resume goes on"):
        train(tiny, out)
    other = changed(tiny, ["optimiser.steps=30", "seed=4"])
    message = r"recipe\.json: another recipe: seed is 3 there, 4 asked; optimiser.steps is 20 there"
    with pytest.raises(InputError, match=message):
        train(other, out, resume=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        train(tiny, out, resume=True)
    assert files == {path: path.read_bytes() for path in files}


def test_resuming_where_nothing_is_left_to_do(tiny: Recipe, tmp_path: Path) -> None:
    out = train(tiny, tmp_path / "out", resume=True)  # nothing there yet: from the beginning
    before = content(out)
    train(tiny, out, cut_after(1), resume=True)  # finished: takes no step
    assert content(out) == before
    with pytest.raises(InputError, match=r"training\.json: another recipe: seed is 3 there, 5"):
        train(changed(tiny, ["seed=5"]), out, resume=True)


def test_files_half_written_by_a_kill_do_no_harm(tiny: Recipe, tmp_path: Path) -> None:
    out = interrupted(tiny, tmp_path / "out", 7)
    for name in (".model.safetensors.ab_12xyz", "unfinished/.state.safetensors.q1w2e3r4"):
        (out / name).write_bytes(b"half")
    (out / "model.safetensors").write_bytes(b"of a training that was killed while it ended")
    train(tiny, out, resume=True)
    (out / ".model.safetensors.ab_12xyz").unlink()
    assert content(out) == content(train(tiny, tmp_path / "whole"))


def change(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path)
        tensors[name] = value(tensors[name])
        save_file(tensors, path)

    return apply


def drop(path: Path) -> None:
    tensors = load_file(path)
    del tensors["weight.blocks.0.attn.W_Q"]
    save_file(tensors, path)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


W_Q = "blocks.0.attn.W_Q"
HOSTILE = {
    "truncated": (cut_in_half, ": "),
    "empty": (lambda path: path.write_bytes(b""), ": "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ": "),
    "missing": (drop, f"missing or unknown tensor weight.{W_Q}"),
    "nan": (change(f"weight.{W_Q}", lambda t: t * torch.nan), "not finite"),
    "infinite moment": (change(f"exp_avg_sq.{W_Q}", lambda t: t + torch.inf), "not finite"),
    "shape": (change(f"exp_avg.{W_Q}", lambda t: t[:, 1:].clone()), "expected (1, 40, 10)"),
    "precision": (
        change(f"weight.{W_Q}", lambda t: t.half()),
        "expected (1, 40, 10) torch.float32",
    ),
    "step": (change(f"step.{W_Q}", lambda t: t + 1), "is 7.0 after 6 losses"),
    "losses": (change("losses", lambda t: t.repeat(9)), "54 losses of 20 steps"),
    "table of losses": (change("losses", lambda t: t[None].clone()), "losses are no list"),
}


@pytest.mark.parametrize(("damage", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_state_is_one_line(
    tiny: Recipe, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    out = interrupted(tiny, tmp_path / "out", 7)
    state = out / "unfinished" / "state.safetensors"
    damage(state)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        train(tiny, out, resume=True)
    assert str(caught.value).startswith(f"{state}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}', '{"recipe": {}}', "[" * 99999])
def test_a_damaged_recipe_of_the_state_is_one_line(tiny: Recipe, tmp_path: Path, text: str) -> None:
    out = interrupted(tiny, tmp_path / "out", 7)
    path = out / "unfinished" / "recipe.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.json: ") as caught:
        train(tiny, out, resume=True)
    assert "\n" not in str(caught.value)


def test_a_killed_process_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = write(tmp_path, TINY.replace("steps = 20", "steps = 400"))
    keep, out = "checkpoints.every=100", tmp_path / "out"
    command = [sys.executable, "-c", "from probe.cli import main; main()", "train", recipe]
    command += ["--set", keep, "--device", "cpu", "--out", out]
    state = out / "unfinished" / "state.safetensors"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert state.exists() and not (out / "model.safetensors").exists()
    done = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True)
    assert done.stdout == f"Checkpoint: {out}\n"
    log = json.loads((out / "training.json").read_text())
    assert 100 <= log["seconds_count_from_step"] < 400
    (out / "loss.svg").unlink()  # drawn by the command
    whole = train(changed(read_recipe(recipe), [keep]), tmp_path / "whole")
    assert content(out) == content(whole)
