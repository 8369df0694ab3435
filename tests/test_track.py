"""Series whose onset is known: weights that turn from untrained to a planted optimizer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from probe.checkpoints.native import write_native
from probe.errors import InputError
from probe.models.transformer import SequenceTransformer
from probe.plan import Plan
from probe.planted.descent import plant_descent
from probe.report.page import write_page
from probe.sampling import generator_for, normal
from probe.tracking.conclusion import answer, conclude
from probe.tracking.measure import measure
from probe.tracking.onset import Absent, Present, Rises
from probe.tracking.page import track_page
from probe.tracking.series import read_series

SEQUENCES = 512


@pytest.fixture(scope="module")
def optimizer(small_constructed_task) -> SequenceTransformer:
    """Two gradient steps, which are half of all there is to see."""
    return plant_descent(small_constructed_task, "gd", (0.12, 0.12), "gradient_descent").model


def blend(optimizer: SequenceTransformer, share: float, seed: int = 0) -> SequenceTransformer:
    """Weights on the way from random ones to the optimizer's, of their own size."""
    model = SequenceTransformer(optimizer.config)
    model.load_state_dict(optimizer.state_dict())
    generator = generator_for(seed, 7)
    with torch.no_grad():
        for weight in model.parameters():
            noise = normal(generator, *weight.shape).to(weight) * weight.square().mean().sqrt()
            weight.copy_(share * weight + (1 - share) * noise)
    return model


def write(folder: Path, models: dict[int, SequenceTransformer], task: str = "small") -> Path:
    for step, model in models.items():
        write_native(model, task, folder / f"step-{step:06d}")
    return folder


def tracked(folder: Path, task, sequences: int = SEQUENCES):
    track = measure(read_series(folder), Plan(task, sequences, 0, workers=1))
    return track, conclude(track)


@pytest.fixture(scope="module")
def risen(optimizer, small_constructed_task, tmp_path_factory):
    """Random until step 200, the optimizer from 300 on; step 200 is a copy of step 100."""
    shares = {0: 0.0, 100: 0.05, 300: 0.99, 400: 1.0}
    models = {step: blend(optimizer, share) for step, share in shares.items()}
    models[200] = models[100]
    folder = write(tmp_path_factory.mktemp("series") / "risen", models)
    return (folder, *tracked(folder, small_constructed_task))


def test_the_onset_lies_where_the_weights_turn(risen) -> None:
    _, track, found = risen
    onset = found.onset
    assert isinstance(onset, Rises) and onset.lasts
    assert (onset.lo, onset.hi) == (100, 300) and 100 < onset.step < 300
    assert found.learner == 300
    assert "An optimizer appears at step" in answer(found)
    assert "95 % interval 100 to 300" in answer(found)
    by_step = {m.step: m.output for m in track.measurements}
    reading = by_step[400]
    assert reading.own.value(reading.response) > 0.95
    assert reading.own.value(reading.foreign) < 0.2  # the control reads nothing
    assert found.fall is not None and (found.fall.lo, found.fall.hi) == (100, 300)
    assert found.fall_within is not None and found.fall_within[0].lo > 0.8
    assert "the loss falls fastest with it" in answer(found)


def test_the_layers_rise_where_the_algorithm_runs(risen) -> None:
    _, _, found = risen
    assert isinstance(found.onsets["decoded:0"], Absent)
    assert isinstance(found.onsets["readout:0"], Absent)
    for site in ("decoded:1", "readout:1", "readout:2"):
        onset = found.onsets[site]
        assert isinstance(onset, Rises) and (onset.lo, onset.hi) == (100, 300), site


def test_a_copy_is_named_and_measured_once(risen, tmp_path) -> None:
    _, track, found = risen
    assert [m.step for m in track.measurements] == [0, 100, 300, 400]
    copies = {p.step: p.copy_of for p in track.series.checkpoints}
    assert copies == {0: None, 100: None, 200: 100, 300: None, 400: None}
    write_page(track_page(track, found), tmp_path)
    rows = (tmp_path / "tables" / "track.csv").read_text().splitlines()
    assert len(rows) == 6 and rows[3].startswith("200,step-000200,,") and rows[3].endswith(",100")
    assert "step 200 has the weights of step 100" in (tmp_path / "track.html").read_text()
    results = json.loads((tmp_path / "track.json").read_text())
    assert results["onset"]["lo"] == 100 and results["answer"] == answer(found)
    assert [row["duplicate_of"] for row in results["checkpoints"]] == [None, None, 100, None, None]
    hashes = [row["sha256"] for row in results["checkpoints"]]
    assert hashes[1] == hashes[2] and len(set(hashes)) == 4


def test_untrained_models_have_no_onset(optimizer, small_constructed_task, tmp_path) -> None:
    models = {step: blend(optimizer, 0.0, seed=step) for step in (10, 20, 30)}
    track, found = tracked(write(tmp_path, models), small_constructed_task)
    assert isinstance(found.onset, Absent) and found.learner is None
    assert answer(found).startswith("No optimizer appears in this series")
    write_page(track_page(track, found), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "track.json").read_text())["onset"]["rises"] == "never"


def test_an_optimizer_from_the_first_has_no_onset_either(
    optimizer, small_constructed_task, tmp_path
) -> None:
    models = {step: blend(optimizer, 1 - step / 1e5) for step in (10, 20, 30)}
    track, found = tracked(write(tmp_path, models), small_constructed_task)
    assert isinstance(found.onset, Present) and found.learner == 10
    assert "is there at the first checkpoint, step 10" in answer(found)
    write_page(track_page(track, found), tmp_path / "out")
    assert (tmp_path / "out" / "track.md").stat().st_size > 1000


def test_groups_of_checkpoints_do_not_show(risen, small_constructed_task, monkeypatch) -> None:
    from probe.tracking import measure as measuring

    _, track, _ = risen
    monkeypatch.setattr(measuring, "TOGETHER", 1)
    told = []
    plan = Plan(small_constructed_task, SEQUENCES, 0, workers=2)
    again = measure(track.series, plan, lambda done, total: told.append((done, total)))
    for one, other in zip(track.measurements, again.measurements, strict=True):
        assert torch.equal(one.losses, other.losses)
        assert torch.equal(one.output.response.error, other.output.response.error)
        assert torch.equal(one.output.foreign.error, other.output.foreign.error)
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_what_is_kept_of_a_checkpoint_is_small(risen) -> None:
    """Sums by block of each member's error; a view would keep all products of a sweep alive."""
    _, track, _ = risen
    for measurement in track.measurements:
        readings = measurement.sites.values()
        kept = [measurement.losses, measurement.sequences]
        kept += [tensor for r in readings for tensor in (r.own.energy, r.own.oracle_error)]
        kept += [score.error for r in readings for score in (*r.own.scores, r.foreign)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        assert 1e4 < sum(storages.values()) < 1e6


# --- Folders that are no series. ---


@pytest.fixture
def three(tiny_model, tmp_path) -> Path:
    return write(tmp_path / "run", {step: tiny_model("linear", step) for step in (5, 40, 300)})


def test_checkpoints_are_ordered_by_number(three) -> None:
    (three / "step-000300").rename(three / "epoch1-step-300")
    series = read_series(three)
    assert [point.step for point in series.checkpoints] == [5, 40, 300]
    assert series.task == "small" and series.left_out == ()


def test_a_training_folder_is_read_through(three, tiny_model, tmp_path) -> None:
    out = tmp_path / "training"
    write_native(tiny_model("linear", 300), "small", out)
    shutil.move(three, out / "checkpoints")
    assert [point.step for point in read_series(out).checkpoints] == [5, 40, 300]


def test_what_is_no_checkpoint_is_left_out_and_named(three, tiny_model) -> None:
    (three / "figures7").mkdir()
    (three / "log.txt").write_text("900")
    write_native(tiny_model("linear", 9), "small", three / "best")
    series = read_series(three)
    assert len(series.checkpoints) == 3
    assert series.left_out == (
        "best (no number in its name)",
        "figures7 (holds no config.json)",
    )


def break_series(kind: str, folder: Path, tiny_model) -> None:
    if kind == "twice":
        shutil.copytree(folder / "step-000040", folder / "again-40")
    elif kind == "few":
        shutil.rmtree(folder / "step-000040")
    elif kind == "copies":
        shutil.rmtree(folder / "step-000040")
        shutil.copytree(folder / "step-000005", folder / "step-000040")
    elif kind == "shape":
        write_native(tiny_model("softmax"), "small", folder / "step-000040")
    elif kind == "task":
        write_native(tiny_model("linear", 40), "other", folder / "step-000040")
    elif kind == "silent":
        for step in (5, 40, 300):
            write_native(tiny_model("linear", step), None, folder / f"step-{step:06d}")
    elif kind == "damaged":
        (folder / "step-000040" / "model.safetensors").unlink()
    elif kind == "gone":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("twice", "again-40 and step-000040 are both named for step 40"),
        ("few", "holds 2 distinct checkpoints"),
        ("copies", "holds 2 distinct checkpoints"),
        ("shape", "step-000040: not of the shape"),
        ("task", "step-000040: not of the task"),
        ("silent", "give --task NAME"),
        ("damaged", "step-000040: holds no model.safetensors"),
        ("gone", "no such folder"),
    ],
)
def test_bad_folders(three, tiny_model, kind, expected) -> None:
    assert read_series(three).task == "small"
    break_series(kind, three, tiny_model)
    with pytest.raises(InputError, match=expected):
        read_series(three)


def test_models_that_do_not_fit_the_task_are_refused(three, small_task) -> None:
    wide = replace(small_task, width=5)
    with pytest.raises(InputError, match="tokens of width 5"):
        measure(read_series(three), Plan(wide, 256, 0))
