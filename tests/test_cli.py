"""The real command, in this process, on tiny random models and on the demo."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import Outcome

DEMO = Path(__file__).parent.parent / "examples" / "demo"
FILES = ("results.json", "run.json", "report.html", "report.md")


@pytest.fixture(scope="module")
def series(tiny, tmp_path_factory) -> Path:
    """Three random models of the shape of the tiny one, named for steps 1, 2 and 10."""
    from probe.checkpoints.base import load
    from probe.checkpoints.native import write_native
    from probe.sampling import generator_for

    model = load(tiny).model
    folder = tmp_path_factory.mktemp("series")
    for step in (1, 2, 10):
        model.initialise(0.3, generator_for(step))
        write_native(model, "linear", folder / f"step-{step}")
    return folder


def analysed(command, checkpoint: Path, out: Path, *more: object) -> Outcome:
    outcome = command("analyze", checkpoint, "--sequences", 256, "--out", out, *more)
    assert outcome.code == 0, outcome.err
    return outcome


def compared(command, checkpoint: Path, *more: object) -> dict[str, object]:
    """What the comparison says of a single model."""
    outcome = command("compare", checkpoint, "--sequences", 256, "--json", *more)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["groups"][0]["models"][0]


def test_analyze_writes_a_valid_report(command, tiny, tmp_path) -> None:
    from probe.report.results import validate

    outcome = analysed(command, tiny, tmp_path / "out")
    for name in FILES:
        assert (tmp_path / "out" / name).stat().st_size > 100
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    validate(results)
    names = {finding["analysis"] for finding in results["findings"]}
    assert {"behaviour", "spectral_response", "teacher_nudge", "update_law"} <= names
    for finding in results["findings"]:
        for table in finding["tables"]:
            assert (tmp_path / "out" / "tables" / f"{table}.csv").is_file()
    # Random weights are no learner, and no model beats the reference that is fitted to the task.
    assert results["verdict"]["class"] not in ("first_order", "least_squares")
    assert results["verdict"]["evidence_level"] == 0
    assert results["reference"]["excess_lo"] > 0
    *_, path, sentence = outcome.out.splitlines()
    assert path == f"Report: {tmp_path / 'out' / 'report.html'}"
    assert sentence == results["verdict"]["statement"]
    assert "Traceback" not in outcome.err
    # Control: a result without its verdict is refused by the same schema.
    del results["verdict"]
    with pytest.raises(ValueError, match="verdict"):
        validate(results)


@pytest.mark.slow
def test_the_bytes_depend_on_the_seed_alone(command, tiny, tmp_path) -> None:
    def content(name: str, *more: object) -> tuple[bytes, str]:
        outcome = analysed(command, tiny, tmp_path / name, "--only", "behaviour", *more)
        return (tmp_path / name / "results.json").read_bytes(), outcome.out

    first, printed = content("a", "--json")
    assert printed.encode() == first
    assert [f["analysis"] for f in json.loads(first)["findings"]] == ["behaviour"]
    assert content("b", "--batch-size", 37, "--workers", 1)[0] == first
    # The comparison alone measures the same; another seed does not.
    for seed, same in ((0, True), (1, False)):
        alone = compared(command, tiny, "--seed", seed, "--no-verdicts")["reference"]
        assert (alone == json.loads(first)["reference"]) == same


@pytest.mark.slow
def test_the_demo_is_judged(command, tmp_path) -> None:
    from probe.report.results import validate

    out = tmp_path / "out"
    outcome = command("analyze", DEMO, "--sequences", 512, "--out", out)
    assert outcome.code == 0, outcome.err
    results = json.loads((out / "results.json").read_text())
    validate(results)
    assert results["verdict"]["instruments_ok"]
    assert results["verdict"]["class"] in ("first_order", "least_squares", "inconclusive")
    assert results["verdict"]["statement"] in outcome.out


def test_compare_with_the_mesa_layer(command, tiny) -> None:
    found = compared(command, tiny, "--no-verdicts")["reference"]
    assert found["loss"] < found["model_loss"]
    assert found["excess_of_model"] == pytest.approx(found["model_loss"] - found["loss"], rel=1e-6)
    assert found["excess_lo"] < found["excess_of_model"] < found["excess_hi"]
    shown = command("compare", tiny, "--reference", "mesa", "--sequences", 256, "--no-verdicts")
    assert shown.code == 0
    assert f"{found['model_loss']:.4f}" in shown.out and "mesa-layer" in shown.out


def test_convert_keeps_the_model(command, tiny, tmp_path) -> None:
    from probe.checkpoints.base import load

    outcome = command("convert", tiny, tmp_path / "copy")
    assert outcome.code == 0
    before, after = load(tiny), load(tmp_path / "copy")
    assert before.sha256 == after.sha256 and before.sha256[:16] in outcome.out
    assert "exists already" in command("convert", tiny, tmp_path / "copy").problem


def test_describe_names_tensors_and_sites(command, tiny) -> None:
    described = json.loads(command("describe", tiny, "--json").out)
    assert described["task"] == "linear" and described["format"] == "native"
    sizes = [torch.Size(t["shape"]).numel() for t in described["tensors"]]
    assert sum(sizes) == described["parameters"]
    sites = {site["name"]: site for site in described["hook_sites"]}
    after = sites["blocks.1.hook_resid_post"]
    assert after["shape"] == [256, 50, 12] and after["bytes_per_batch"] == 256 * 50 * 12 * 4
    shown = command("describe", tiny)
    assert shown.code == 0 and "blocks.1.hook_resid_post" in shown.out


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("tasks", "linear-constructed"),
        ("solvers", "conjugate_gradient"),
        ("analyses", "update_law"),
        ("presets", "von-oswald-2023/linear-1l"),
        ("recipes", "demo"),
        ("formats", "native"),
    ],
)
def test_list(command, kind, some) -> None:
    outcome = command("list", kind)
    assert outcome.code == 0 and some in outcome.out.splitlines()


def test_track_finds_no_optimizer_in_random_models(command, series, tmp_path) -> None:
    out = tmp_path / "out"
    outcome = command("track", series, "--sequences", 256, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert (out / "track.json").read_text() == outcome.out
    results = json.loads(outcome.out)
    assert results["answer"].startswith("No optimizer appears in this series")
    assert results["onset"]["rises"] == "never" and results["learner_from_step"] is None
    assert [row["step"] for row in results["checkpoints"]] == [1, 2, 10]
    assert len((out / "tables" / "track.csv").read_text().splitlines()) == 4
    for name in ("track.html", "track.md", "figures/track_response.svg"):
        assert (out / name).stat().st_size > 1000
    assert not list(Path().iterdir())


SHORT = ("--set", "optimiser.steps=3", "--set", "optimiser.batch=4", "--device", "cpu")


def test_train_takes_settings_keeps_checkpoints_and_knows_its_end(command, tmp_path) -> None:
    from probe.checkpoints.base import load
    from probe.presets.base import find_preset

    name, out = "von-oswald-2023/softmax-3l", tmp_path / "out"
    asked = ("train", name, *SHORT, "--set", "checkpoints.at=[0, 2]", "--out", out)
    outcome = command(*asked)
    assert (outcome.code, outcome.out) == (0, f"Checkpoint: {out}\n"), outcome.err
    log = json.loads((out / "training.json").read_text())
    assert log["recipe"]["optimiser"]["steps"] == len(log["loss_curve"]) == 3
    assert len((out / "loss.csv").read_text().splitlines()) == 4
    assert f"training of {name}" in (out / "loss.svg").read_text()
    for step in (0, 2, 3):
        subject = load(out / "checkpoints" / f"step-{step:06d}")
        assert subject.model.config == find_preset(name).config
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = command(*asked, "--resume")
    assert (again.code, again.out) == (0, f"Finished already: {out}\n")
    other = command(*asked, "--resume", "--set", "seed=1").problem
    assert "another recipe: seed is 0 there, 1 asked" in other
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_train_writes_below_checkpoints_unless_it_is_told(command) -> None:
    assert command("train", "von-oswald-2023/linear-1l", *SHORT).code == 0
    assert Path("checkpoints/von-oswald-2023/linear-1l/model.safetensors").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_training_on_a_device_that_is_not_there_touches_nothing(command, tmp_path) -> None:
    problem = command("train", "demo", "--device", "cuda", "--out", tmp_path / "out").problem
    assert "--device cuda: there is no CUDA device" in problem
    assert not (tmp_path / "out").exists()


# --- Bad input: one line, exit code 2, nothing written. ---


def damaged(tiny: Path, folder: Path, kind: str) -> Path:
    """A copy of the tiny model with something wrong."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "NaN":
        tensors = load_file(weights)
        name = next(iter(tensors))
        tensors[name].flatten()[0] = float("nan")
        save_file(tensors, weights)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no json":
        config.write_text(config.read_text()[:-40])
    elif kind == "no task":
        plain = json.loads(config.read_text())
        config.write_text(json.dumps({**plain, "task": None}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sequences", 3], "--sequences 3: too few"),
        (["--sequences", "many"], "--sequences"),
        (["--seed", -1], "--seed -1"),
        (["--task", "nonsense"], "unknown task 'nonsense'"),
        (["--task", "linear-constructed"], "tokens of width 40"),
        (["--only", "behaviour,nonsense"], "unknown analysis nonsense"),
        (["--preset", "von-oswald-2023/linear-1l"], "leave out --preset"),
        (["--workers", 0], "workers"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_impossible_requests(command, tiny, tmp_path, arguments, expected) -> None:
    outcome = command("analyze", tiny, "--sequences", 256, *arguments, "--out", tmp_path / "out")
    assert expected in outcome.problem
    assert not (tmp_path / "out").exists() and not list(Path().iterdir())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NaN", "NaN or infinity"),
        ("truncated", "model.safetensors"),
        ("no weights", "holds no model.safetensors"),
        ("no json", "config.json"),
        ("no task", "give --task NAME"),
    ],
)
@pytest.mark.parametrize("name", ["analyze", "compare"])
def test_damaged_checkpoints(command, tiny, tmp_path, kind, expected, name) -> None:
    folder = damaged(tiny, tmp_path / "damaged", kind)
    outcome = command(name, folder, "--sequences", 256)
    assert expected in outcome.problem and str(folder) in outcome.problem
    assert not list(Path().iterdir())


def test_folders_that_cannot_be_tracked(command, tiny, series, tmp_path) -> None:
    assert "no such folder" in command("track", tmp_path / "nothing").problem
    assert "holds 0 distinct checkpoints" in command("track", tiny).problem
    assert "--sequences 3: too few" in command("track", series, "--sequences", 3).problem
    assert "width 40" in command("track", series, "--task", "linear-constructed").problem
    assert "unknown task" in command("track", series, "--task", "nonsense").problem
    blocked = tmp_path / "file"
    blocked.write_text("a file, no folder")
    assert "not a folder" in command("track", series, "--out", blocked).problem
    assert blocked.read_text() == "a file, no folder" and not list(Path().iterdir())


def test_a_missing_file_and_an_unknown_format(command, tmp_path) -> None:
    assert "no such file" in command("analyze", tmp_path / "nothing.pkl").problem
    odd = tmp_path / "odd.txt"
    odd.write_text("hello")
    assert "unknown checkpoint format" in command("analyze", odd).problem
    pickle = tmp_path / "model.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    outcome = command("analyze", pickle, "--preset", "von-oswald-2023/linear-1l")
    assert "model.pkl" in outcome.problem
    assert "preset" in command("analyze", pickle, "--preset", "nonsense").problem
    assert not list(Path().iterdir()) and not Path("ran").exists()


@pytest.mark.slow
def test_an_output_that_cannot_be_written(command, tiny, tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file, no folder")
    outcome = command("analyze", tiny, "--sequences", 256, "--only", "behaviour", "--out", blocked)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("mesaprobe: ")
    assert blocked.read_text() == "a file, no folder"


def test_commands_without_arguments_and_unknown_ones(command) -> None:
    assert "CHECKPOINT" in command("analyze").problem
    assert "nonsense" in command("nonsense").problem
    assert "RECIPE" in command("train").problem
    assert "nonsense" in command("train", "nonsense").problem
    unknown = command("train", "demo", "--set", "optimiser.stps=3").problem
    assert "--set optimiser.stps=3: unknown key stps; known: steps, batch" in unknown
    assert "key=value" in command("train", "demo", "--set", "seed").problem
    assert not Path("checkpoints").exists()


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from probe.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy))"
    )
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert "analyze" in done.stdout and "heavy []" in done.stdout
    assert used < 0.5 and time.perf_counter() - started < 10
    # Control: the same check sees a heavy import.
    seen = subprocess.run(
        [sys.executable, "-c", "import numpy\n" + code], capture_output=True, text=True, check=True
    )
    assert "heavy ['numpy']" in seen.stdout
