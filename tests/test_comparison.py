"""Several models side by side: paired on the same sequences, or named as not comparable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch


@pytest.fixture(scope="module")
def subject_of(tiny_model, tiny_config, small_task):
    """A random model as a subject of a task; on constructed tokens with `wide`."""
    from probe.checkpoints.base import Subject
    from probe.models.transformer import SequenceTransformer
    from probe.sampling import generator_for

    def build(name: str, kind: str = "softmax", seed: int = 0, wide: bool = False) -> Subject:
        model = tiny_model(kind, seed)
        if wide:
            model = SequenceTransformer(replace(tiny_config(kind), d_in=4 * small_task.width))
            model.initialise(0.4, generator_for(seed))
            model.eval().requires_grad_(False)
        return Subject(name, "native", model, None, "0" * 64, ())

    return build


@pytest.fixture(scope="module")
def side(subject_of, small_task, small_constructed_task):
    """Two models of raw tokens, the second run twice, and one of constructed tokens."""
    from probe.comparison.entries import Checkpoint
    from probe.comparison.run import Settings, compare

    entries = [
        Checkpoint("raw", subject_of("raw"), small_task),
        Checkpoint("linear", subject_of("linear", "linear", 1), small_task),
        Checkpoint("built", subject_of("built", wide=True), small_constructed_task),
        Checkpoint("again", subject_of("again"), small_task),
    ]
    found = compare(entries, Settings(256, 0, workers=1, verdicts=False))
    assert not found.obstacles
    return found.sides[0]


def test_losses_are_paired_on_the_same_sequences(side, subject_of, small_task) -> None:
    """Against losses computed here, sequence by sequence."""
    from probe.plan import TEST, Plan

    plan = Plan(small_task, 256, 0)
    drawn = [plan.draw(TEST, i, count) for i, (_, count) in enumerate(plan.shards(TEST))]
    losses = {
        name: torch.cat(
            [0.5 * (model(s.tokens) - s.observations[:, 1:]).square().sum(2).mean(1) for s in drawn]
        )
        for name, model in (
            ("raw", subject_of("raw").model),
            ("linear", subject_of("linear", "linear", 1).model),
        )
    }
    found = {model.label: model.losses for model in side.models}
    gap = losses["linear"] - losses["raw"]
    assert found["linear"].difference.value == pytest.approx(float(gap.mean()), rel=1e-4)
    # Pairing tells more than two samples would: the interval is narrower than unpaired errors.
    paired = found["linear"].difference.hi - found["linear"].difference.lo
    unpaired = (losses["linear"].var() + losses["raw"].var()).sqrt() / len(gap) ** 0.5
    assert paired < 3.92 * float(unpaired)
    # Control: the same model again differs by nothing, anywhere; another differs.
    assert found["again"].difference.hi == found["again"].difference.lo == 0
    assert bool((found["again"].ratio_by_position.mean == 1).all())
    assert not bool((found["linear"].ratio_by_position.mean == 1).any())


def test_a_layout_of_tokens_does_not_change_the_sequences(side, small_task) -> None:
    built, raw = side.models[2], side.models[0]
    assert built.task["name"] == "small-constructed" and raw.task["name"] == "small"
    assert built.reference["loss"] == raw.reference["loss"]
    assert built.losses.difference is not None and side.task is small_task


def test_the_best_solver_is_no_null_and_beats_random_weights(side) -> None:
    from probe.scores import nulls

    ranked = side.measured.solvers.ranked
    assert {solver.family for solver in ranked}.isdisjoint(nulls() | {"spline"})
    assert {"ridge", "newton", "chebyshev", "gradient_descent"} <= {s.family for s in ranked}
    errors = [solver.fit_error for solver in ranked]
    assert errors == sorted(errors) and errors[0] < 0.7
    for model in side.models:
        assert model.losses.over_solver.lo > 0
        gap = model.losses.judged.value - ranked[0].loss.value
        assert model.losses.over_solver.value == pytest.approx(gap)


def test_cka_stands_beside_its_controls(side) -> None:
    pairs = {(pair.first, pair.second): pair for pair in side.measured.similarities}
    assert len(pairs) == 6
    same = pairs["raw", "again"]
    torch.testing.assert_close(same.values.diagonal(), torch.ones(3, dtype=torch.float64))
    assert float(same.another.max()) < 0.2 < float(same.values.min())
    assert float(same.twin[-1, -1]) < 0.99
    assert bool((pairs["raw", "linear"].values[1:, 1:] < 0.999).all())


def test_other_sequences_under_a_layout_are_refused(subject_of, small_task) -> None:
    from probe.capture import capture_output
    from probe.comparison.groups import same_problem
    from probe.errors import InputError
    from probe.plan import Plan
    from probe.reference import ReferenceStage
    from probe.sweep import Sweep

    noisy = replace(small_task, name="noisy", noise=0.5)
    assert not same_problem(small_task, noisy)
    model = subject_of("raw").model
    sweep = Sweep(
        Plan(small_task, 256, 0, workers=1),
        {"raw": model},
        {"raw": lambda context, captures: (context, captures["raw"])},
        capture_output,
        layouts={"raw": noisy},
    )
    with pytest.raises(InputError, match="raw: its task draws other sequences than small"):
        sweep.run((ReferenceStage(1.0, views=("raw",)),))


def test_maps_of_cka_share_one_scale(side) -> None:
    from probe.comparison.charts import cka_maps
    from probe.report.figures import render

    for chart in cka_maps(side.measured.similarities, ""):
        narrow = replace(chart, values=tuple((0.8,) * len(chart.x) for _ in chart.y))
        assert ">0.25<" in render(narrow) and ">1.00<" in render(narrow)
        # Control: left to itself the scale follows the values.
        assert ">0.25<" not in render(replace(narrow, limits=None))


def layered(r2: dict[tuple[str, str], float]) -> dict[str, pd.DataFrame]:
    """Tables of one decoded layer, and a window over which it is not judged."""
    rows = [
        {"layer": 1, "positions": "5..49", "family": family, "parameters": text, "r2": value}
        for (family, text), value in r2.items()
    ]
    late = {"positions": "15..49", "family": "gradient_descent", "parameters": "steps=1", "r2": 1}
    families = pd.DataFrame([{**row, "site": "decoded"} for row in rows])
    output = pd.DataFrame([{"layer": 1, "site": "output", **late}])
    crossing = pd.DataFrame([{"layer": 1, "site": "decoded", "effective_lambda": 2.5}])
    families = pd.concat([families, output])
    return {"families": families, "effective_lambda": crossing}


def test_steps_are_the_fewest_near_the_best_response() -> None:
    from probe.comparison.layers import read_layers

    scores = {
        ("spline", "20 fitted"): 0.95,
        ("gradient_descent", "steps=2 eta=0.1"): 0.9,
        ("gradient_descent", "steps=4 eta=0.1"): 0.945,
        ("gradient_descent", "steps=16 eta=0.1"): 0.95,
        ("polynomial", "degree=3"): 0.949,
    }
    (found,) = read_layers(layered(scores))
    assert (found.steps, found.degree, found.effective_lambda) == (4, 3, 2.5)
    # Control: where the response explains too little, no number of steps is told.
    (nothing,) = read_layers(layered({key: value - 0.9 for key, value in scores.items()}))
    assert (nothing.steps, nothing.degree) == (None, None)
    assert read_layers({}) == ()


# --- The command. ---


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A report of the tiny model."""
    from probe.cli import main

    folder = tmp_path_factory.mktemp("reports") / "finished"
    arguments = ["analyze", tiny, "--sequences", 256, "--only", "behaviour,spectral_response"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        main([str(argument) for argument in (*arguments, "--out", folder)])
    return folder


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> Path:
    """The tiny model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("checkpoints") / "other"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 1.5 * tensor for name, tensor in weights.items()}, folder / "model.safetensors"
    )
    return folder


def test_a_checkpoint_beside_finished_results(command, tiny, other, finished, tmp_path) -> None:
    outcome = command(
        "compare", tiny, other, finished / "results.json", "--sequences", 256, "--no-verdicts",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no losses by sequence" in outcome.out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    (group,) = found["groups"]
    first, second, recorded = group["models"]
    assert (first["label"], recorded["label"]) == ("tiny", "tiny (recorded)")
    # The same model on the same sequences: the results of both are the same to the last digit.
    assert recorded["reference"] == first["reference"] != second["reference"]
    assert recorded["verdict"] and recorded["by_layer"] and recorded["losses"] is None
    assert first["verdict"] is None and second["losses"]["difference_to_first"]["value"] != 0
    assert [obstacle["model"] for obstacle in found["not_compared"]] == ["tiny (recorded)"]
    html = (tmp_path / "out" / "compare.html").read_text()
    assert "What cannot be compared?" in html and "does not show that two models run" in html
    losses = pd.read_csv(tmp_path / "out" / "tables" / "losses.csv")
    assert set(losses["model"]) >= {"tiny", "other", "tiny (recorded)", "mesa-layer", "oracle"}


def test_results_of_other_sequences_and_tasks_are_named(command, finished, tmp_path) -> None:
    results = json.loads((finished / "results.json").read_text())
    seeded, changed = dict(results["task"], seed=5), dict(results["task"], name="contracting")
    paths = [finished]
    for name, task in (("seeded", seeded), ("changed", changed)):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "results.json")
        paths[-1].write_text(json.dumps({**results, "task": task}))
    outcome = command("compare", *paths, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    why = [obstacle["why"] for obstacle in found["not_compared"]]
    assert len(found["groups"]) == 2 and len(why) == 2
    assert "is not one that is known here" in why[0] and "seed 5 instead of 0" in why[1]


def test_a_task_of_other_width_is_named(command, tiny, tmp_path) -> None:
    from probe.checkpoints.base import load
    from probe.checkpoints.native import write_native
    from probe.models.transformer import SequenceTransformer
    from probe.sampling import generator_for

    narrow = SequenceTransformer(replace(load(tiny).model.config, d_in=5, d_out=5))
    narrow.initialise(0.3, generator_for(1))
    write_native(narrow, "linear-narrow", tmp_path / "narrow")
    outcome = command("compare", tiny, tmp_path / "narrow", "--sequences", 256, "--no-verdicts")
    assert outcome.code == 0, outcome.err
    assert (
        "Not compared: narrow with tiny: targets of width 5 (linear-narrow), not 10" in outcome.out
    )
    found = json.loads(Path("reports/compare/compare.json").read_text())
    assert [len(group["models"]) for group in found["groups"]] == [1, 1]
    assert all(group["cka"] == [] for group in found["groups"])


@pytest.mark.slow
def test_verdicts_are_those_of_the_full_analysis(command, finished, other, tmp_path) -> None:
    outcome = command("compare", finished, other, "--sequences", 256, "--json")
    assert outcome.code == 0, outcome.err
    analysed = command("analyze", other, "--sequences", 256, "--json", "--out", tmp_path / "out")
    (group,) = json.loads(outcome.out)["groups"]
    expected = json.loads(analysed.out)
    assert group["models"][1]["verdict"] == expected["verdict"]
    assert group["models"][1]["reference"] == expected["reference"]
    assert group["models"][0]["verdict"] != expected["verdict"]


def ruined(finished: Path, folder: Path, kind: str) -> Path:
    """A copy of a report with something wrong."""
    shutil.copytree(finished, folder)
    results, table = folder / "results.json", folder / "tables" / "behaviour.csv"
    plain = json.loads(results.read_text())
    if kind == "truncated":
        results.write_text(results.read_text()[:-30])
    elif kind == "version":
        results.write_text(json.dumps({**plain, "schema_version": 99}))
    elif kind == "schema":
        results.write_text(json.dumps({**plain, "verdict": "least squares"}))
    elif kind == "list":
        results.write_text("[]")
    elif kind == "bytes":
        results.write_bytes(b"\xff\xfe")
    elif kind == "column":
        table.write_text(table.read_text().replace("loss_se", "error"))
    elif kind == "words":
        table.write_text("position,predictor,loss,loss_se\n1,model,much,0\n")
    elif kind == "empty":
        table.write_text("")
    return folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated", "results.json: no JSON"),
        ("version", "schema version 99, this program reads 1"),
        ("schema", "$.verdict"),
        ("list", "states no schema_version"),
        ("bytes", "results.json: no UTF-8"),
        ("column", "lacks the column loss_se"),
        ("words", "column loss must hold numbers"),
        ("empty", "behaviour.csv: no table"),
    ],
)
def test_damaged_results(command, tiny, finished, tmp_path, kind, expected) -> None:
    folder = ruined(finished, tmp_path / "ruined", kind)
    outcome = command("compare", tiny, folder, "--sequences", 256, "--no-verdicts")
    assert expected in outcome.problem and str(folder) in outcome.problem
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.json"], "nothing.json: No such file"),
        (["nothing"], "nothing: no such file or folder"),
        (["nothing@some-preset"], "nothing: no such file or folder"),
        (["TINY@nonsense"], "leave out --preset"),
        (["TINY", "--sequences", 3], "--sequences 3: too few"),
        (["TINY", "--task", "linear-constructed"], "tokens of width 40"),
        ([], "MODEL"),
    ],
)
def test_impossible_comparisons(command, tiny, arguments, expected) -> None:
    asked = [str(argument).replace("TINY", str(tiny)) for argument in arguments]
    assert expected in command("compare", *asked).problem
    assert not list(Path().iterdir())


def test_names_are_told_apart(tiny, tmp_path) -> None:
    from probe.comparison.entries import read_entries

    shutil.copytree(tiny, tmp_path / "copies" / "tiny")
    paths = [str(tiny), str(tmp_path / "copies" / "tiny"), str(tiny)]
    labels = [entry.label for entry in read_entries(paths)]
    assert labels[1] == "tiny in copies" and len(set(labels)) == 3
    assert read_entries(paths[:1])[0].label == "tiny"
