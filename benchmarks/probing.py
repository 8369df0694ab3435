"""The published probing work, per seed: batched moments against one least squares call per cell.

Three probes (current token, next token, preconditioned query) at 50 positions of the 7 streams of
linear-6l, fitted and scored on the same sequences, as published. Peer: a loop of
torch.linalg.lstsq over positions, layers and probes, with its default driver. That driver returns
zero where leading channels are zero, as at layer 0; gelsd is right there, but slower. With
MESAPROBE_PAPER_DATA set to a copy of the published folder the checkpoint is used, otherwise a
random model of its shape.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import Row, faster, interleaved, threads
from probe.capture import capture
from probe.checkpoints.base import load
from probe.models.transformer import SequenceTransformer
from probe.moments import Moments, layer_moments
from probe.presets.base import find_preset
from probe.problem import prefix_moments, spectrum
from probe.ridge import group_sums, least_squares
from probe.sampling import generator_for
from probe.tasks.base import find_task

PRESET = "von-oswald-2023/linear-6l"
FILE = Path("linear_seq_fully/model_lin_6l_constr.pkl")
PEER = "torch.linalg.lstsq in a loop"
SIZES = (256, 4096)
RIDGE = 1e-3
CHUNK = 256
TOLERANCE = 0.01


def subject() -> SequenceTransformer:
    """The published model where its file is at hand, else a random one of the same shape."""
    folder = os.environ.get("MESAPROBE_PAPER_DATA")
    if folder:
        return load(Path(folder) / FILE, PRESET).model
    model = SequenceTransformer(find_preset(PRESET).config)
    model.initialise(0.05, generator_for(0))
    return model


def data(count: int) -> tuple[Tensor, Tensor]:
    """Streams (layers, batch, time, d) and the three targets side by side (batch, time, 3 d)."""
    task = find_task(find_preset(PRESET).task)
    sequences = task.sample(count, generator_for(1))
    problem = task.problem(sequences)
    query = spectrum(prefix_moments(problem), problem.queries).filtered_query(
        lambda mu: 1 / (mu + RIDGE)
    )
    targets = torch.cat([problem.queries, problem.targets, query.float()], -1)
    return capture(subject(), sequences.tokens, CHUNK).layers, targets


def ours(layers: Tensor, targets: Tensor) -> Tensor:
    """Losses (layers, time, probes) from moments, taken in chunks as the sweep does."""
    parts = zip(layers.split(CHUNK, 1), targets.split(CHUNK), strict=True)
    chunks = [layer_moments(x, y) for x, y in parts]
    moments = Moments(
        *(sum(getattr(c, name).double() for c in chunks) for name in ("xx", "xy", "yy"))
    )
    error = moments.squared_error(least_squares(moments))
    return group_sums(error, (targets.shape[-1] // 3,) * 3) / (2 * len(targets))


def peer(layers: Tensor, targets: Tensor) -> Tensor:
    """The same losses, one call for each."""
    probes = targets.chunk(3, -1)
    losses = layers.new_zeros(len(layers), targets.shape[1], len(probes))
    for layer, stream in enumerate(layers):
        for position in range(targets.shape[1]):
            for probe, target in enumerate(probes):
                x, y = stream[:, position], target[:, position]
                residual = y - x @ torch.linalg.lstsq(x, y).solution
                losses[layer, position, probe] = residual.square().sum() / (2 * len(y))
    return losses


def disagreement(layers: Tensor, targets: Tensor) -> float:
    """Median relative difference of the losses, where they stand above rounding."""
    a, b = ours(layers, targets), peer(layers, targets).double()
    seen = b > 1e-5 * targets.square().mean()
    return float((a / b - 1)[seen].abs().median())


def measure() -> list[Row]:
    """One row per size: medians of interleaved runs on one thread.

    Raises:
        RuntimeError: The two do not compute the same.
    """
    with threads(1):
        return [_measure(count) for count in SIZES]


def _measure(count: int) -> Row:
    layers, targets = data(count)
    difference = disagreement(layers, targets)
    if difference > TOLERANCE:
        raise RuntimeError(f"losses differ by {difference:.1%} from those of the peer")
    took = interleaved({"ours": lambda: ours(layers, targets), PEER: lambda: peer(layers, targets)})
    return faster(f"probing, {count} sequences", took["ours"], PEER, took[PEER])
