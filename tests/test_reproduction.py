"""Reproduction: its mathematics against outside references, its walk over folders, its outcome."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch


def _lstsq_loss(x: np.ndarray, y: np.ndarray, rcond: float) -> float:
    weights = np.linalg.lstsq(x, y, rcond=rcond)[0]
    return float(((x @ weights - y) ** 2).sum() / (2 * len(x)))


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_in_sample_loss_equals_lstsq_on_every_cell(rank: int) -> None:
    from probe.reproduction.in_sample import fit

    rng = np.random.default_rng(0)
    # Activations of low rank with float32 rounding on top, as at the first positions of a model.
    x = (rng.normal(size=(3, 5, 64, rank)) @ rng.normal(size=(3, 5, rank, 8))).astype(np.float32)
    y = rng.normal(size=(5, 64, 2))
    kept = rng.random((5, 64)) < 0.9
    found = fit(torch.from_numpy(x), torch.from_numpy(kept)).loss(torch.from_numpy(y))
    rcond = 64 * np.finfo(np.float32).eps
    for layer in range(3):
        for position in range(5):
            rows = kept[position]
            cell = x[layer, position, rows].astype(np.float64)
            expected = _lstsq_loss(cell, y[position, rows], rcond)
            assert found[layer, position] == pytest.approx(expected, rel=1e-9)


def test_in_sample_fit_leaves_rounding_noise_alone() -> None:
    from probe.reproduction.in_sample import fit

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, generator=generator) @ torch.randn(1, 40, generator=generator)
    y = torch.randn(256, 3, generator=generator)
    everyone = torch.ones(256, dtype=torch.bool)
    cut = fit(x, everyone).loss(y)
    # Taken for exact numbers, the rounding of x offers 39 directions that fit y a good deal better.
    assert fit(x.double(), everyone).loss(y) < 0.95 * cut


def test_one_sample_more_than_columns_is_fitted_exactly() -> None:
    from probe.reproduction.in_sample import fit

    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(9, 8, generator=generator), torch.randn(8, 2, generator=generator)
    loss = fit(x, torch.ones(9, dtype=torch.bool)).loss(x.double() @ weights.double())
    assert loss < 1e-10


def test_outliers_are_two_spreads_above_the_mean_norm() -> None:
    from probe.reproduction.measure import without_outliers

    targets = torch.ones(1, 9, 1, dtype=torch.float64)
    targets[0, 0], targets[0, 1] = 4.0, 0.0
    assert without_outliers(targets).tolist() == [[False] + [True] * 8]


def test_recursion_inverts_well_conditioned_matrices() -> None:
    from probe.reproduction.sources import _STATED

    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 10, 10, generator=generator).double())[0]
    eigenvalues = 1 + torch.rand(20, 10, generator=generator).double()
    matrix = (basis * eigenvalues[:, None]) @ basis.mT
    identity = torch.eye(10).double().expand(20, -1, -1)
    solved = _STATED["constructed"].solve(matrix, identity)
    exact = torch.linalg.inv(matrix)
    # Six trained steps are made for other spectra, where they reach about this accuracy.
    assert (solved - exact).norm() < 0.1 * exact.norm()


def test_recursion_with_known_constants_is_the_neumann_series() -> None:
    from probe.solvers.chebyshev_recursion import Recursion

    matrix = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    solved = Recursion((1.0,) * 60, (0.0,) * 60).solve(matrix, torch.eye(2).double())
    assert torch.allclose(solved, torch.linalg.inv(matrix), atol=1e-8)


def test_recursion_refuses_constants_of_unequal_length() -> None:
    from probe.errors import InputError
    from probe.solvers.chebyshev_recursion import Recursion

    with pytest.raises(InputError, match="2 alphas, 1 betas"):
        Recursion((1.0, 2.0), (0.0,))


def test_least_squares_leaves_out_the_last_pair() -> None:
    from probe.reproduction.algorithms import LaggedLeastSquares
    from probe.sampling import generator_for
    from probe.tasks.base import find_task

    task = find_task("linear")
    sequences = task.sample(4, generator_for(0))
    found = LaggedLeastSquares(None, 0.1).predict(task.problem(sequences), {})
    states = sequences.observations[0].double().numpy()
    keys, values = states[:11], states[1:12]  # at t = 12: pairs (s_{j-1}, s_j), j < 12
    weights = np.linalg.solve(keys.T @ keys + 0.1 * np.eye(10), keys.T @ values)
    assert np.allclose(found[0, 12], states[12] @ weights, atol=1e-8)


def _publish(folder: Path, file: str, content: object) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(pickle.dumps(content))


def _published_losses(task: str, entries: int, wrong: float = 1.0) -> dict[str, list[object]]:
    """A result file in the published form, made by the same algorithm on other samples."""
    from probe.reproduction import measure
    from probe.reproduction.algorithms import GradientStep
    from probe.tasks.base import find_task

    found, runs = find_task(task), []
    for seed in range(5):
        problem = found.problem(measure.sample(found, 99, seed))
        predicted = GradientStep(0.032).predict(problem, {})
        loss = measure.loss_by_position(predicted, problem.targets)[:, 0] * wrong
        runs.append([float(value) for value in loss])
    return {"losses": [runs] * entries}


def test_walk_compares_what_it_knows_and_says_what_it_skips(tmp_path: Path) -> None:
    from probe.reproduction import reproduce, summarise

    folder, out = tmp_path / "in", tmp_path / "out"
    _publish(
        folder, "linear_seq_fully/seqperf_results_constr_single.pkl", _published_losses("linear", 2)
    )
    (folder / "linear_seq_fully/seqperf_results_constr_multi.pkl").write_bytes(b"\x80damaged")
    (folder / "notes.txt").write_text("not known")
    steps = []
    found = reproduce(folder, out, seed=3, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(step, 5) for step in range(1, 6)]
    assert {row.checkpoint for row in found.rows} == {"GD-1"}
    assert [row.position for row in found.rows] == [*range(50), None]
    assert found.summary.worst_mean_difference < 0.05
    assert found.summary.unknown_files == 1
    reasons = {skip.what: skip.reason for skip in found.summary.skipped}
    assert "not a readable pickle" in reasons["Chebyshev-6 (constructed): loss"]
    assert (
        reasons["linear_seq_fully/model_lin_4l_constr.pkl"] == "the checkpoint is not in the folder"
    )
    assert "holds no constants" in reasons["Chebyshev-2: loss"]
    assert "GD-1" in summarise(found)
    plain = json.loads((out / "reproduction.json").read_text())
    assert plain["summary"]["within_3_spreads"] is None  # no probe was judged
    page = (out / "reproduction.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    assert "| GD-1 |" in (out / "reproduction.md").read_text()


def test_a_wrong_number_is_not_reproduced(tmp_path: Path) -> None:
    from probe.reproduction import reproduce

    file = "linear_seq_fully/seqperf_results_constr_single.pkl"
    _publish(tmp_path / "in", file, _published_losses("linear", 2, wrong=2.0))
    found = reproduce(tmp_path / "in", tmp_path / "out")
    assert found.summary.worst_mean_difference > 0.25
    assert sum(row.within for row in found.rows) < 5


def test_a_result_of_another_shape_is_skipped(tmp_path: Path) -> None:
    from probe.reproduction import reproduce

    file = "linear_seq_fully/seqperf_results_constr_single.pkl"
    _publish(tmp_path / "in", file, {"losses": [[[1.0] * 7] * 5] * 2})
    found = reproduce(tmp_path / "in", tmp_path / "out")
    assert not found.rows
    assert any("shape [7, 1], ours has [50, 1]" in skip.reason for skip in found.summary.skipped)


@pytest.mark.parametrize("content", [{}, {"losses": []}, {"losses": [[], [["a"]]]}])
def test_a_result_without_numbers_is_skipped(tmp_path: Path, content: object) -> None:
    from probe.reproduction import reproduce

    _publish(tmp_path / "in", "linear_seq_fully/seqperf_results_constr_single.pkl", content)
    found = reproduce(tmp_path / "in", tmp_path / "out")
    assert not found.rows
    assert "GD-1: loss" in {skip.what for skip in found.summary.skipped}


def test_a_folder_without_published_files_is_refused(tmp_path: Path) -> None:
    from probe.errors import InputError
    from probe.reproduction import reproduce

    with pytest.raises(InputError, match="holds no published file"):
        reproduce(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        reproduce(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_published_checkpoint_alone(paper_data: Path, tmp_path: Path) -> None:
    from probe.reproduction import reproduce

    for name in ("model_lin_6l_constr", "probing_results_constr", "seqperf_results_constr_multi"):
        target = tmp_path / "in" / f"linear_seq_fully/{name}.pkl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paper_data / f"linear_seq_fully/{name}.pkl", target)
    found = reproduce(tmp_path / "in", tmp_path / "out")
    assert found.summary.judged > 900
    assert found.summary.median_difference <= 0.05
    assert found.summary.within_3_spreads >= 0.95
    assert found.summary.worst_mean_difference <= 0.03


@pytest.mark.slow
def test_published_numbers_are_met(paper_data: Path, tmp_path: Path) -> None:
    from probe.reproduction import reproduce

    summary = reproduce(paper_data, tmp_path / "out").summary
    assert summary.judged > 4500
    assert summary.within_3_spreads >= 0.985
    assert summary.median_difference <= 0.035
    assert summary.worst_mean_difference <= 0.03
    assert len(summary.means) == 15
    assert sum(summary.excluded.values()) + summary.judged == 4800
    assert all(skip.reason for skip in summary.skipped)
    assert (tmp_path / "out/reproduction.html").stat().st_size < 3_000_000


def test_delayed_algorithm_sees_the_past_observations_alone() -> None:
    from probe.reproduction.algorithms import Delayed, LaggedLeastSquares
    from probe.sampling import generator_for
    from probe.tasks.base import find_task

    task = find_task("partial")
    problem = task.problem(task.sample(9, generator_for(0)))
    found = Delayed(LaggedLeastSquares(None, 10.0), depth=5).predict(problem, {})
    # The task states its problem on the same embedding of depth 5.
    expected = LaggedLeastSquares(None, 10.0).predict(problem, {})
    assert torch.allclose(found, expected)
