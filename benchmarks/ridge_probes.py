"""Ridge probes at scale: 200,000 x 768 activations, 12 layers, 30 targets, 10 penalties.

Ours: one pass adds up the moments, and Cholesky factors of them answer all penalties and targets.
Peers: scikit-learn's Ridge in a loop over penalties and targets, and over penalties with all
targets at once; one fit of each is timed on every layer, its median is multiplied by the number of
fits of the loop. The floor of the pass is 2 n d^2 operations at the rate of a large product. Layers
are drawn one after the other, and one is held at a time; everything takes turns on each layer.
"""

from dataclasses import dataclass

import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from benchmarks.machine import (
    SIZE,
    Row,
    Took,
    faster,
    middle,
    once,
    product,
    thread_counts,
    threads,
)
from probe.moments import CentredMoments
from probe.ridge import penalty_grid, ridge_path
from probe.sampling import generator_for, normal
from probe.streaming import StreamSums

ROWS, WIDTH, LAYERS, TARGETS = 200_000, 768, 12, 30
CHUNK = 20_000  # rows that are drawn, checked or multiplied in float64 at once
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Layer:
    """Activations of one layer, targets, and penalties in the units of XX."""

    x: Tensor
    y: Tensor
    penalties: Tensor


def draw(layer: int) -> Layer:
    """Correlated channels with means of their own, and targets of which a tenth is noise."""
    generator = generator_for(11, layer)
    turn = normal(generator, WIDTH, WIDTH).float() / WIDTH**0.5
    mixing = torch.logspace(0, -2, WIDTH)[:, None] * turn
    means = normal(generator, WIDTH).float()
    maps = normal(generator, WIDTH, TARGETS).float()
    x, y = torch.empty(ROWS, WIDTH), torch.empty(ROWS, TARGETS)
    for some, wanted in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        some.normal_(generator=generator)
        some.copy_(some @ mixing + means)
        clean = (some - means) @ maps
        wanted.copy_(clean + 0.3 * clean.std() * torch.randn(clean.shape, generator=generator))
    grid = penalty_grid(WIDTH, torch.finfo(torch.float32).eps)
    spread = (x[:CHUNK] - means).double().square().sum() / CHUNK * ROWS / WIDTH
    return Layer(x, y, grid * spread)


def accumulate(layer: Layer) -> StreamSums:
    """The pass over the rows."""
    sums = StreamSums.empty(WIDTH, TARGETS, layer.x.device)
    sums.add_(layer.x, layer.y)
    return sums


def solve(layer: Layer, moments: CentredMoments) -> tuple[Tensor, Tensor]:
    """Weights (penalties, d, k) and offsets (penalties, k) at every penalty."""
    weights = ridge_path(moments.centred, layer.penalties)
    return weights, moments.mean_y - moments.mean_x @ weights


def one_by_one(layer: Layer, moments: CentredMoments) -> None:
    """The same weights, one penalty and target at a time."""
    eye = torch.eye(WIDTH, dtype=torch.float64)
    for penalty in layer.penalties:
        for target in moments.centred.xy.T:
            torch.linalg.solve(moments.centred.xx + penalty * eye, target)


def off(layer: Layer, fitted: tuple[Tensor, Tensor]) -> float:
    """The largest relative distance, over penalties, to predictions of a direct float64 solve."""
    parts = [
        CentredMoments.of(x, y)
        for x, y in zip(layer.x.split(CHUNK), layer.y.split(CHUNK), strict=True)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    eye, rows, worst = torch.eye(WIDTH, dtype=torch.float64), layer.x[:CHUNK].double(), 0.0
    for penalty, weights, offset in zip(layer.penalties, *fitted, strict=True):
        direct = torch.linalg.solve(whole.centred.xx + penalty * eye, whole.centred.xy)
        wanted = (rows - whole.mean_x) @ direct
        found = rows @ weights + (offset - whole.mean_y)
        worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    return worst


def times(layer: Layer, index: int) -> dict[str, Took]:
    """One time of each on this layer, on the threads in force."""
    penalty = float(layer.penalties[index % len(layer.penalties)])
    x, y = layer.x.numpy(), layer.y.numpy()
    one = y[:, index % TARGETS].copy()
    moments = accumulate(layer).centred()
    gemm = product()
    gemm()
    runs = {
        "floor": gemm,
        "pass": lambda: accumulate(layer),
        "ours": lambda: solve(layer, accumulate(layer).centred()),
        "solve": lambda: solve(layer, moments),
        "joint": lambda: Ridge(penalty).fit(x, y),
        "single": lambda: Ridge(penalty).fit(x, one),
    }
    if index == 0:  # 300 solves
        runs["solves"] = lambda: one_by_one(layer, moments)
    return {name: once(run) for name, run in runs.items()}


def measure() -> list[Row]:
    """Rows for one thread and for two.

    Raises:
        RuntimeError: Predictions are not those of a direct solve.
    """
    taken: dict[int, dict[str, list[Took]]] = {count: {} for count in thread_counts()}
    worst = 0.0
    for index in range(LAYERS):
        layer = draw(index)
        for count, kept in taken.items():
            with threads(count):
                for name, took in times(layer, index).items():
                    kept.setdefault(name, []).append(took)
        if index == 0:
            worst = off(layer, solve(layer, accumulate(layer).centred()))
            if not worst < TOLERANCE:
                raise RuntimeError(f"predictions are {worst:.1e} from those of a direct solve")
        del layer
    return [row for count, kept in taken.items() for row in _rows(count, kept, worst)]


def _rows(count: int, taken: dict[str, list[Took]], worst: float) -> list[Row]:
    took = {name: middle(times) for name, times in taken.items()}
    penalties = len(penalty_grid(WIDTH, 1.0))
    fits = penalties * TARGETS
    of = f"{ROWS:,} x {WIDTH}, {count} thread{'s' * (count > 1)}"
    probes = f"ridge probes of a layer, {of}"
    note = f"predictions within {worst:.0e} of a float64 solve"
    scaled = f"one fit on each of {LAYERS} layers, times"
    floor = _times(took["floor"], ROWS * WIDTH**2 / SIZE**3)
    whole = sum(t.wall for t in taken["ours"])
    return [
        faster(
            probes,
            took["ours"],
            f"scikit-learn Ridge per penalty and target ({scaled} {fits})",
            _times(took["single"], fits),
            note=f"{note}; {LAYERS} layers take {whole:.1f} s",
        ),
        faster(
            probes,
            took["ours"],
            f"scikit-learn Ridge per penalty, targets together ({scaled} {penalties})",
            _times(took["joint"], penalties),
        ),
        faster(
            f"moments, {of}",
            took["pass"],
            "2 n d^2 operations at the GEMM rate",
            floor,
            note=f"{floor.cpu / took['pass'].cpu:.0%} of it in CPU seconds",
        ),
        faster(
            f"{penalties} x {TARGETS} solves of width {WIDTH}, {count} thread{'s' * (count > 1)}",
            took["solve"],
            "torch.linalg.solve in a loop (once)",
            took["solves"],
        ),
    ]


def _times(took: Took, number: float) -> Took:
    return Took(number * took.wall, number * took.cpu)
