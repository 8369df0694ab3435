"""A whole analysis against what cannot be avoided: its forward passes and its matrix products.

The peer does, in as many workers and with the same shards:

- one pass of the model and of its twin over both splits, one of the model over the nudged
  sequences, over those that the signatures change, and over what the ablations, the edits of the
  last attention and the atlas run again, from where they differ and no further than they are read;
- products of matrices of the same shapes for the moments: the columns of the response with
  themselves and with the stream, the stream with itself and with what the probes decode, the
  blocks of the reconstruction with the updates, the hats of every objective with themselves, each
  once for every view and on as many sequences as the analysis takes.

Sampling, eigendecompositions, columns, fits, the heads' own problems, derivatives, single tokens
that are edited, intervals and figures are not among them. Times are CPU seconds of all threads, and
the peer is measured before and after the analysis: other work on the machine touches the ratio
little.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from probe.checkpoints.base import Subject, load, transformer_of
from probe.models.config import ModelConfig
from probe.models.transformer import SequenceTransformer
from probe.pilot import scout
from probe.pipeline import Request, analyze
from probe.plan import FIT, SHARD, TEST, Plan
from probe.response_stage import response_stages
from probe.tasks.base import find_task
from probe.threads import one_thread

SEQUENCES = 8192
DEMO = Path(__file__).parents[1] / "examples" / "demo"
TARGETS = 250  # numbers that a position's probes decode
BLOCKS, OBJECTIVES, PLACES = 110, 13, 15  # of the reconstruction; of the objectives


def subject() -> Subject:
    """The published seven-layer softmax model where its data is, else the demo."""
    data = os.environ.get("MESAPROBE_PAPER_DATA")
    if data:
        path = Path(data) / "linear_seq_fully" / "model_sm_7l_fullfledged.pkl"
        return load(path, "von-oswald-2023/softmax-7l")
    return load(DEMO)


def measure() -> list[dict[str, object]]:
    """One ratio, and the seconds behind it."""
    model = subject()
    plan = Plan(find_task(str(model.task)), SEQUENCES, seed=0)
    columns = response_stages(scout(plan, model.model.layers))[0].columns.width
    work = Peer(model, plan, columns)
    before = _seconds(work.run)
    ours = _seconds(lambda: analyze(Request(model, plan)))
    peer = (before + _seconds(work.run)) / 2
    name = f"analyze {model.name}, {SEQUENCES} sequences, CPU"
    row: dict[str, object] = {"name": name, "ratio": ours / peer, "ours_s": ours, "peer_s": peer}
    return [{**row, "peer": "its forward passes and matrix products (ratio: ours over peer)"}]


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@dataclass(frozen=True)
class Peer:
    """The unavoidable work of a model and a plan.

    Attributes:
        subject: The model.
        plan: The data.
        columns: Number of columns of the response.
    """

    subject: Subject
    plan: Plan
    columns: int

    def run(self) -> None:
        """All of it."""
        plan = self.plan
        shards = [(split, shard) for split in (FIT, TEST) for shard in plan.shards(split)]
        models = [deepcopy(transformer_of(self.subject)) for _ in range(plan.workers)]
        tokens = plan.draw(FIT, 0, SHARD).tokens
        with one_thread(), torch.no_grad(), ThreadPoolExecutor(plan.workers) as pool:
            for start in range(0, len(shards), plan.workers):
                group = zip(shards[start : start + plan.workers], models, strict=False)
                list(pool.map(lambda job: self._shard(job[0][0], job[1], tokens), group))
        with one_thread(), torch.no_grad():
            self._once(models[0], tokens)

    def _shard(self, split: int, model: SequenceTransformer, tokens: Tensor) -> None:
        """One shard of one split: the model, the twin, and the moments."""
        model(tokens)
        model(tokens)
        _response(split, model.config, tokens.shape[1], self.columns)
        _probes(split, model.config, tokens.shape[1])
        _others(model.config, tokens.shape[1])

    def _once(self, model: SequenceTransformer, tokens: Tensor) -> None:
        """Passes whose number the sequences do not change much."""
        layers, time_ = len(model.config.blocks), tokens.shape[1]
        half = self.plan.sequences // 2
        whole = half // 4  # nudged sequences of the test split
        whole += half // 8 * 3  # turned, scaled and spliced ones
        whole += min(half, 512) * (layers + 1) // 2  # half of the blocks for each that is removed
        whole += 256 + 64  # the atlas and its twin
        for _ in range(-(-whole // SHARD)):
            model(tokens)
        stream = torch.zeros(SHARD, time_ // 2, model.config.d_model)
        for _ in range(2 * 2 * 2 * min(half, 1024) // SHARD):  # by view, position and edit
            model.resume(stream, layers - 1)


def _response(split: int, config: ModelConfig, time_: int, columns: int) -> None:
    """Columns with themselves, on a quarter also of swapped contexts; with the stream."""
    rows = torch.ones(64, SHARD // 64 * time_ * config.d_out, columns)
    rows.mT @ rows
    few = rows[:, : rows.shape[1] // 4, : columns - 20]
    few.mT @ few
    if split == FIT:
        stream = torch.ones(time_, SHARD, (len(config.blocks) + 1) * config.d_model)
        torch.ones(time_, columns * config.d_out, SHARD) @ stream


def _probes(split: int, config: ModelConfig, time_: int) -> None:
    """Stream and targets: own ones, and those of another sequence."""
    stream = torch.ones(len(config.blocks) + 1, time_, SHARD, config.d_model)
    targets = torch.ones(time_, SHARD, TARGETS)
    if split == FIT:
        stream.mT @ stream
    for _ in range(2):
        stream.mT @ targets if split == FIT else stream @ torch.ones(config.d_model, TARGETS)


def _others(config: ModelConfig, time_: int) -> None:
    """Blocks and updates of three views; the hats of all objectives on a quarter."""
    x = torch.ones(64, SHARD // 64 * time_, BLOCKS)
    y = torch.ones(64, SHARD // 64 * time_, len(config.blocks) * config.d_model)
    for _ in range(2):  # own pairs and those of another sequence
        x.mT @ x
    for _ in range(3):  # and the twin's updates
        x.mT @ y
    hats = torch.ones(OBJECTIVES, 64, SHARD // 64 // 4 * PLACES * config.d_out, 65)
    hats.mT @ hats
