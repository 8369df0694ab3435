"""A whole analysis against what cannot be avoided: its forward passes and its matrix products.

The peer forwards the same sequences through the model and its twin, and multiplies matrices of
the same shapes: columns with columns and with the stream, the stream with itself and with what the
probes decode. Eigendecompositions, sampling, fits and intervals are not among them.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from probe.checkpoints.base import Subject, load
from probe.pilot import scout
from probe.pipeline import Request, analyze
from probe.plan import FIT, SHARD, TEST, Plan
from probe.response_stage import response_stages
from probe.tasks.base import find_task
from probe.threads import one_thread

SEQUENCES = 8192
DEMO = Path(__file__).parents[1] / "examples" / "demo"
TARGETS = 250


def subject() -> Subject:
    """The published six-layer linear model where its data is, else the demo."""
    data = os.environ.get("MESAPROBE_PAPER_DATA")
    if data:
        path = Path(data) / "linear_seq_fully" / "model_lin_6l_constr.pkl"
        return load(path, "von-oswald-2023/linear-6l")
    return load(DEMO)


def measure() -> list[dict[str, object]]:
    """One ratio, and the seconds behind it."""
    model = subject()
    plan = Plan(find_task(str(model.task)), SEQUENCES, seed=0)
    columns = response_stages(scout(plan, len(model.model.blocks)))[0].columns.width
    peer = _seconds(lambda: _unavoidable(model, plan, columns))
    ours = _seconds(lambda: analyze(Request(model, plan)))
    name = f"analyze {model.name}, {SEQUENCES} sequences"
    row: dict[str, object] = {"name": name, "ratio": ours / peer, "ours_s": ours, "peer_s": peer}
    return [{**row, "peer": "its forward passes and matrix products (ratio: ours over peer)"}]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _unavoidable(model: Subject, plan: Plan, columns: int) -> None:
    tokens = plan.draw(FIT, 0, SHARD).tokens
    shards = [(split, shard) for split in (FIT, TEST) for shard in plan.shards(split)]
    pair = [(deepcopy(model.model), deepcopy(model.model)) for _ in range(plan.workers)]
    with one_thread(), torch.no_grad(), ThreadPoolExecutor(plan.workers) as pool:
        for start in range(0, len(shards), plan.workers):
            group = shards[start : start + plan.workers]
            jobs = zip(group, pair, strict=False)
            list(pool.map(lambda job: _shard(job[0][0], job[1], tokens, columns), jobs))


def _shard(split: int, models: tuple[torch.nn.Module, ...], tokens: Tensor, columns: int) -> None:
    for model in models:
        model(tokens)
    config = models[0].config
    time_, layers = tokens.shape[1], len(config.blocks) + 1
    rows = torch.ones(64, 4 * time_ * config.d_out, columns)
    stream = torch.ones(layers, time_, SHARD, config.d_model)
    targets = torch.ones(time_, SHARD, TARGETS)
    for _ in range(2):  # own and swapped contexts
        rows.mT @ rows
    for _ in range(2):  # own and another sequence's targets
        stream.mT @ targets if split == FIT else stream @ torch.ones(config.d_model, TARGETS)
    if split == FIT:
        stream.mT @ stream
        sample = torch.ones(time_, columns * config.d_out, SHARD)
        sample @ stream.permute(1, 2, 0, 3).flatten(2)
