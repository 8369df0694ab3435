"""Run folders of Garg et al. 2022: names, tasks, steps, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from garg_writer import GargModel, garg_config, garg_state, write_run
from test_gpt2_shape import drawn, gpt2_config
from test_hostile_files import Calls, refused

from probe import checkpoints, registry
from probe.checkpoints.base import Source, load
from probe.checkpoints.native import write_native
from probe.models.transformer import SequenceTransformer
from probe.rule import LEARNERS
from probe.sampling import generator_for
from probe.tasks.base import find_task
from probe.tasks.interleaved_regression import InterleavedRegression


@pytest.fixture(scope="module")
def model() -> SequenceTransformer:
    return drawn(gpt2_config(n_ctx=22))


@pytest.fixture
def run(model: SequenceTransformer, tmp_path: Path) -> Path:
    return write_run(model, tmp_path / "run")


def restate(run: Path, section: str, **changed: Any) -> None:
    """Changes fields of config.yaml; ... takes one out."""
    place = run / "config.yaml"
    plain = yaml.safe_load(place.read_text())
    for name, value in changed.items():
        plain[section].pop(name, None)
        if value is not ...:
            plain[section][name] = value
    place.write_text(yaml.dump(plain))


def reweigh(run: Path, **changed: Any) -> None:
    """Changes tensors of state.pt; None takes one out. Dots are written as double underscores."""
    content = torch.load(run / "state.pt", weights_only=True)
    for name, value in changed.items():
        content["model_state_dict"].pop(name, None)
        if value is not None:
            content["model_state_dict"][name] = value
    torch.save(content, run / "state.pt")


# ---- What is read


def test_it_says_what_the_other_model_says(model, run) -> None:
    subject = load(run)
    tokens = find_task("garg-linear-5d").sample(8, generator_for(1)).tokens
    expected = GargModel(model)(tokens)
    assert float(expected.std()) > 0.1
    assert float((subject.model(tokens) - expected).abs().max()) <= 1e-5
    assert (subject.format, subject.name, subject.task) == ("garg", "run", "garg-linear-5d")


def test_few_positions_are_enough(tmp_path) -> None:
    short = drawn(gpt2_config(n_ctx=4))
    assert load(write_run(short, tmp_path)).model.config.n_ctx == 4


def test_tensors_and_hash_are_those_of_the_native_folder(model, run, tmp_path) -> None:
    write_native(model, "garg-linear-5d", tmp_path / "native")
    native, garg = load(tmp_path / "native"), load(run)
    assert garg.sha256 == native.sha256
    assert [row.sha256 for row in garg.tensors] == [row.sha256 for row in native.tensors]
    sources = {row.name: row.source for row in garg.tensors}
    assert sources["blocks.1.attn.W_K"] == "_backbone.h.1.attn.c_attn.weight"
    assert sources["W_E"] == "_read_in.weight"


def test_buffers_that_no_pass_reads_are_dropped_by_name(run) -> None:
    dropped = load(run).dropped
    assert "_backbone.wte.weight" in dropped
    assert "_backbone.h.2.attn.masked_bias" in dropped
    assert len(dropped) == 1 + 2 * 3
    reweigh(run, **{"_backbone.h.0.attn.unheard": torch.zeros(2)})
    assert "unexpected _backbone.h.0.attn.unheard" in refused(run, None)


def test_the_prefix_of_a_wrapper_is_taken_off(model, run) -> None:
    plain = load(run)
    torch.save({"model_state_dict": garg_state(model, "module.")}, run / "state.pt")
    wrapped = load(run)
    assert wrapped.sha256 == plain.sha256
    assert "module._backbone.wte.weight" in wrapped.dropped


def test_a_step_is_picked_by_its_number(model, run) -> None:
    others = {step: drawn(model.config, seed=step) for step in (50, 1000)}
    for step, other in others.items():
        torch.save(garg_state(other), run / f"model_{step}.pt")
    early, late = (load(f"{run}#{step}") for step in (50, 1000))
    assert (early.name, late.name) == ("run#50", "run#1000")
    assert early.sha256 != late.sha256
    assert load(run).sha256 == late.sha256  # later than step 100 of state.pt
    (run / "model_1000.pt").unlink()
    newest = load(run)
    assert newest.sha256 not in (early.sha256, late.sha256)
    (run / "state.pt").unlink()
    assert load(run).sha256 == early.sha256
    assert "no model_7.pt in it; steps: 50" in refused(Path(f"{run}#7"), None)
    (run / "model_50.pt").unlink()
    assert "holds neither state.pt nor model_STEP.pt" in refused(run, None)


TASKS: list[tuple[dict[str, Any], str | None]] = [
    ({"task": "linear_regression"}, "garg-linear"),
    ({"task": "noisy_linear_regression", "task_kwargs": {"noise_std": 1}}, "garg-noisy"),
    ({"task": "sparse_linear_regression", "task_kwargs": {"sparsity": 3}}, "garg-sparse"),
    ({"task": "quadratic_regression"}, "garg-quadratic"),
    ({"task": "sparse_linear_regression", "task_kwargs": {"sparsity": 5}}, None),
    ({"task": "linear_regression", "num_tasks": 64}, None),
    ({"task": "linear_regression", "task_kwargs": {"scale": 2}}, None),
    ({"task": "linear_classification"}, None),
    ({"task": "relu_2nn_regression", "task_kwargs": {"hidden_layer_size": 100}}, None),
    ({"task": "relu_2nn_regression", "points": 101}, "garg-relu"),
    ({"task": "decision_tree", "task_kwargs": {"depth": 4}, "points": 101}, "garg-tree"),
    ({"task": "decision_tree", "task_kwargs": {"depth": 3}, "points": 101}, None),
]


@pytest.mark.parametrize(("training", "task"), TASKS)
def test_the_task_is_that_of_the_training(training: dict[str, Any], task: str | None) -> None:
    from probe.checkpoints.garg_config import task_of

    training = dict(training)
    points = {"points": {"start": 11, "end": training.pop("points", 41)}}
    stated = garg_config(drawn(gpt2_config(d_in=20, n_ctx=202)), curriculum=points, **training)
    assert task_of(stated) == task
    if task is not None:
        known = find_task(task)
        assert isinstance(known, InterleavedRegression)
        assert (known.width, known.points) == (20, points["points"]["end"])


# ---- What is refused


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"family": "lstm"}, "family is 'lstm', known: gpt2"),
    ("model", {"family": ...}, "family is None"),
    *(
        ("model", {name: junk}, name)
        for name in ("n_dims", "n_positions", "n_embd", "n_layer", "n_head")
        for junk in (..., 0, -1, "4", 2.5, True, None, [], 10**12, 10**400)
    ),
    ("model", {"n_embd": 13}, "n_embd 13 is no multiple of n_head 2"),
    ("model", {"n_layer": 4}, "missing blocks.3.attn.W_K"),
    ("model", {"n_layer": 2}, "unexpected _backbone.h.2"),
    ("model", {"n_embd": 16}, "has shape"),
    ("model", {"n_head": 3}, ""),
    ("training", {"task": "unheard"}, "task is 'unheard'"),
    ("training", {"task": ...}, "task is None"),
    ("training", {"task": ["linear_regression"]}, "task is a container"),
    ("training", {"data": "laplace"}, "data is 'laplace', known: gaussian"),
    ("training", {"task_kwargs": [1]}, "expected named options"),
    ("training", {"task_kwargs": {"noise_std": "x"}}, "expected a number"),
    ("training", {"task_kwargs": {"noise_std": [[]]}}, "expected a number"),
    ("training", {"curriculum": {"points": {}}}, "missing end"),
    ("training", {"curriculum": 3}, "no section curriculum"),
]


@pytest.mark.parametrize(("section", "changed", "reason"), FAULTS, ids=lambda part: str(part)[:40])
def test_faults_of_the_description(section, changed, reason, run) -> None:
    restate(run, section, **changed)
    if changed == {"n_head": 3}:  # other heads fit the same tensors: what it says is another thing
        assert load(run).sha256 != load(write_run(drawn(gpt2_config(n_ctx=22)), run)).sha256
        return
    assert reason in refused(run, None)


@pytest.mark.parametrize("section", ["model", "training"])
def test_missing_sections(section: str, run) -> None:
    plain = yaml.safe_load((run / "config.yaml").read_text())
    del plain[section]
    (run / "config.yaml").write_text(yaml.dump(plain))
    assert f"no section {section}" in refused(run, None)


YAMLS = {
    "empty": b"",
    "a list": b"- 1\n",
    "no UTF-8": b"\xff\xfe{}",
    "null bytes": b"\x00" * 100,
    "large": b"a: " + b"x" * 100_000,
    "deep brackets": b"[" * 60_000,
    "deep dashes": b"- " * 30_000,
    "laughs": b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nmodel: *c\n",
    "merged laughs": b"a: &a {x: 1}\nb: &b\n  <<: [*a, *a]\nmodel:\n  <<: [*b, *b]\n",
    "python object": b"model: !!python/object/apply:os.system ['touch canary']\n",
    "python name": b"model: !!python/name:os.system\n",
    "odd float": b"model: !!float ''\n",
    "odd bool": b"model: !!bool x\n",
    "odd time": b"model: !!timestamp x\n",
    "long number": b"model: " + b"9" * 10_000,
    "hexadecimal": b"model: {family: gpt2, n_embd: 0x" + b"f" * 20_000 + b", n_head: 1}\n",
    "list as a key": b"? [a]\n: 1\n",
    "escape": b'model: {family: "\\e[2J\\n"}\n',
}


@pytest.mark.parametrize("name", YAMLS)
def test_descriptions_that_are_junk(name: str, run, canary, monkeypatch) -> None:
    monkeypatch.chdir(canary.parent)
    (run / "config.yaml").write_bytes(YAMLS[name])
    refused(run, None)
    assert not canary.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_code_in_the_weights_is_named_and_not_run(run, canary) -> None:
    torch.save({"model_state_dict": Calls(os.system, f"touch {canary}")}, run / "state.pt")
    assert "posix.system" in refused(run, None)
    assert not canary.exists()


def test_tensors_that_do_not_fit(run) -> None:
    for changed, reason in (
        ({"_read_in.bias": None}, "missing b_E"),
        ({"_read_in.weight": torch.zeros(3)}, "unexpected _read_in.weight"),
        ({"_read_in.weight": torch.zeros(3, 3)}, "W_E has shape [3, 3], expected [5, 12]"),
        ({"_read_out.bias": torch.tensor([float("nan")])}, "b_U holds NaN"),
        ({"W_E": torch.zeros(5, 12)}, "unexpected W_E"),
        ({"_backbone.h.0.attn.W_O": torch.zeros(2, 6, 12)}, "unexpected _backbone.h.0.attn.W_O"),
        ({"_read_out.bias": torch.tensor([1])}, "b_U holds torch.int64"),
        ({"_backbone.h.0.attn.c_attn.bias": torch.zeros(35)}, "missing blocks.0.attn.b_K"),
        ({"_backbone.h.00.ln_1.bias": torch.zeros(12)}, "unexpected _backbone.h.00.ln_1.bias"),
    ):
        original = (run / "state.pt").read_bytes()
        reweigh(run, **changed)
        assert reason in refused(run, None)
        (run / "state.pt").write_bytes(original)


def test_a_preset_is_not_taken(run) -> None:
    assert "leave out --preset" in refused(run, "von-oswald-2023/linear-1l")


def test_a_folder_of_our_own_stays_native(model, run) -> None:
    write_native(model, None, run)
    assert load(run).format == "native"


def test_one_format_alone_recognises_a_source(model, run, tmp_path) -> None:
    write_native(model, None, tmp_path / "native")
    torch.save(dict(model.state_dict()), tmp_path / "native" / "weights.pt")
    expected = {
        run: "garg",
        Path(f"{run}#50"): "garg",
        tmp_path / "native": "native",
        tmp_path / "native" / "weights.pt": "torch",
        tmp_path / "native" / "model.safetensors": "safetensors",
        run / "state.pt": "torch",
        run / "config.yaml": None,
    }
    formats = registry.discover(checkpoints).values()
    for path, name in expected.items():
        found = [one.name for one in formats if one.recognises(Source(path))]
        assert found == ([] if name is None else [name])


# ---- The analysis


def results_of(command: Any, checkpoint: Path, out: Path, *more: Any) -> dict[str, Any]:
    outcome = command("analyze", checkpoint, "--sequences", 256, "--out", out, *more)
    assert outcome.code == 0, outcome.err
    return json.loads((out / "results.json").read_text())


def in_all_formats(model: SequenceTransformer, folder: Path) -> tuple[Path, Path, Path]:
    """A native folder, a torch file and a run folder of the same model."""
    for name in ("native", "torch"):
        write_native(model, "garg-linear-5d", folder / name)
    (folder / "torch" / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), folder / "torch" / "weights.pt")
    return folder / "native", folder / "torch" / "weights.pt", write_run(model, folder / "garg")


def test_results_do_not_depend_on_the_format(command, model, tmp_path) -> None:
    found = [
        results_of(command, path, tmp_path / f"out{index}", "--only", "behaviour")
        for index, path in enumerate(in_all_formats(model, tmp_path))
    ]
    formats = [(plain["subject"].pop("format"), plain["subject"].pop("name")) for plain in found]
    assert formats == [("native", "native"), ("torch", "weights.pt"), ("garg", "garg")]
    assert found[0] == found[1] == found[2]
    assert found[0]["verdict"]["class"] not in LEARNERS
    other = write_run(drawn(model.config, seed=1), tmp_path / "other")
    changed = results_of(command, other, tmp_path / "changed", "--only", "behaviour")
    assert changed["findings"][0] not in found[0]["findings"]
