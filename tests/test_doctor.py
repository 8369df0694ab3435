"""`doctor` audits a checkpoint, and says of a finished run what has changed since."""

import json
import re
import shutil

import pytest


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run of a small model."""
    from probe.cli import main

    out = tmp_path_factory.mktemp("finished") / "out"
    asked = ("--sequences", "256", "--only", "behaviour", "--out", str(out))
    main(["analyze", str(tiny), *asked])
    return out


@pytest.fixture
def run(finished, tiny, tmp_path):
    """A copy of the model and of its run, which are the test's own."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny, model)
    shutil.copytree(finished, out)
    source = json.loads((out / "run.json").read_text())["source"]
    change(out / "run.json", source={**source, "path": str(model)})
    return model, out


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_right_checkpoint_passes(command, tiny):
    said = command("doctor", tiny)
    assert said.code == 0 and "WRONG" not in said.out
    assert said.out.count("right") >= 7


def test_an_unchanged_run_stands(command, run):
    said = command("doctor", run[1])
    assert said.code == 0 and "Changed since" not in said.out


def test_other_versions_are_told_and_do_no_harm(command, run):
    versions = {"mesaprobe": "0.0.1", "torch": "1.0"}
    change(run[1] / "run.json", versions=versions)
    said = command("doctor", run[1])
    assert said.code == 0 and "0.0.1" in said.out and "1.0" in said.out


def test_other_weights_are_found(command, run):
    from safetensors.torch import load_file, save_file

    path = run[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["W_U" if "W_U" in tensors else next(iter(tensors))] *= 1.01
    save_file(tensors, path)
    said = command("doctor", run[1])
    assert said.code == 2 and "weights: was" in said.err and "output on trial" in said.out


def test_another_canary_is_found(command, run):
    change(run[1] / "run.json", canary=[0.1234] * 8)
    said = command("doctor", run[1])
    assert said.code == 2 and "output on trial tokens: was 0.1234" in said.err


def test_a_canary_of_another_length_and_a_check_that_is_gone_are_told(command, run):
    results = json.loads((run[1] / "results.json").read_text())
    gone = {"name": "an older check", "must_read": "a", "reads": "a", "ok": True}
    change(run[1] / "results.json", audit=[*results["audit"], gone])
    change(run[1] / "run.json", canary=[])
    said = command("doctor", run[1])
    assert said.code == 2 and "was 0 numbers, is 8 numbers" in said.err
    assert "an older check" in said.out and "not made" in said.out


def test_a_check_that_no_longer_reads_the_same_is_found(command, run):
    results = json.loads((run[1] / "results.json").read_text())
    results["audit"][1]["ok"] = False
    change(run[1] / "results.json", audit=results["audit"])
    said = command("doctor", run[1])
    assert said.code == 2 and "was failed, is passed" in said.err


def test_a_run_whose_model_is_gone_is_one_line(command, run):
    run[0].rename(run[0].with_name("elsewhere"))
    assert "no such file or folder" in command("doctor", run[1]).problem
    change(run[1] / "run.json", source=None)
    assert "records no model" in command("doctor", run[1]).problem
    (run[1] / "run.json").write_text("{")
    assert "not readable" in command("doctor", run[1]).problem


def test_a_run_decides_neither_on_code_nor_on_the_network(command, run, tmp_path, monkeypatch):
    """Reports are passed on; what they name is run or fetched only if the user says so too."""
    from probe.checkpoints import hugging_face

    source = json.loads((run[1] / "run.json").read_text())["source"]
    for changed in (
        {"canary": [10**400]},
        {"canary": ["x"]},
        {"versions": {"torch": 3}},
        {"source": {"path": 3}},
        {"source": {"path": "x", "more": 1}},
    ):
        before = (run[1] / "run.json").read_text()
        change(run[1] / "run.json", **changed)
        assert re.search("too large|no model to look at", command("doctor", run[1]).problem)
        (run[1] / "run.json").write_text(before)

    canary, code = tmp_path / "canary", tmp_path / "code.py"
    code.write_text(f"def build(path):\n    open({str(canary)!r}, 'w')\n")
    spec = f"{code}:build"
    change(run[1] / "run.json", source={**source, "adapter": spec})
    assert f"--adapter '{spec}'" in command("doctor", run[1]).problem
    assert not canary.exists()
    command("doctor", run[1], "--adapter", spec)  # control
    assert canary.exists()

    asked = []
    monkeypatch.setattr(hugging_face, "_fetched", lambda name: asked.append(name) or run[0])
    fetched = {"path": "some/name", "preset": None, "allow_hub": True, "adapter": None}
    change(run[1] / "run.json", source=fetched)
    assert "no such file or folder" in command("doctor", run[1]).problem and not asked
    command("doctor", run[1], "--allow-hub")  # control
    assert asked == ["some/name"]

    results = json.loads((run[1] / "results.json").read_text())
    change(run[1] / "results.json", audit=results["audit"] * 20_000)
    assert "larger than" in command("doctor", run[1]).problem
