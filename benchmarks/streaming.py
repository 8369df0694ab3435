"""Second moments of all residual streams of a GPT-2 (12 blocks, 768 wide) on 8 x 256 tokens.

Floors, interleaved in the same run: the plain forward pass, which also makes logits of 50,257
words, and the same blocks alone, which is what the moments cost on top of. Peers: TransformerLens
keeping every hook's activations (`run_with_cache`), and, where it is installed, nnsight saving the
same streams, with one product each. Memory is what a process of its own held on top of the model.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import child
from benchmarks.machine import Row, faster, interleaved, slower, thread_counts, threads
from probe.capture import read_sites
from probe.models.bridge import BridgedModel
from probe.streaming import stream_sums

BATCH, TIME = 8, 256
OURS, PLAIN, BLOCKS = "ours", "the plain forward pass with logits", "its blocks alone"
CACHE, NNSIGHT = "TransformerLens run_with_cache, all hooks", "nnsight saving 13 streams"

Runs = dict[str, Callable[[], object]]


def gpt2() -> GPT2LMHeadModel:
    """An untrained GPT-2."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))


def runs() -> Runs:
    """Everything that is timed."""
    model = BridgedModel(gpt2())
    tokens = torch.randint(model.vocabulary, (BATCH, TIME))
    sites = model.layer_sites()
    known: Runs = {
        OURS: lambda: stream_sums(model, [tokens], sites),
        PLAIN: lambda: model(tokens),
        BLOCKS: lambda: read_sites(model, tokens, {sites[-1]: lambda stream: None}),
        CACHE: lambda: model.bridge.run_with_cache(tokens),
    }
    if importlib.util.find_spec("nnsight"):
        known[NNSIGHT] = nnsight_run(tokens)
    return {name: torch.no_grad()(run) for name, run in known.items()}


def nnsight_run(tokens: torch.Tensor) -> Callable[[], object]:
    """The streams by nnsight, and their second moments."""
    # Not a dependency: measured where it happens to be.
    import nnsight

    model: Any = nnsight.NNsight(gpt2().eval())

    def run() -> None:
        kept: list[torch.Tensor] = []
        blocks = model.transformer.h
        with model.trace(tokens):
            kept.append(blocks[0].input)
            for block in blocks:
                out = block.output
                kept.append(out[0] if isinstance(out, tuple) else out)
        if len(kept) != len(blocks) + 1:
            raise RuntimeError(f"nnsight saved {len(kept)} streams")
        for stream in kept:
            rows = stream.flatten(0, 1)
            rows.T @ rows

    return run


def alone(name: str) -> Callable[[], object]:
    """One of the runs, for a process of its own; what it returns is let go of at its end."""
    run = runs()[name]

    def work() -> None:
        run()

    return work


def memory(name: str) -> float:
    """GB that a run holds at most, on top of the model."""
    used = child.run("benchmarks.streaming:alone", name)
    return (used.peak - used.before) / 1e9


def measure() -> list[Row]:
    """Ratios for each number of threads."""
    everything = runs()
    held = {name: memory(name) for name in everything}
    return [row for count in thread_counts() for row in _rows(count, everything, held)]


def _rows(count: int, everything: Runs, held: dict[str, float]) -> list[Row]:
    with threads(count):
        took = interleaved(everything)
    of = f"moments of 13 residual streams, GPT-2, {count} thread{'s' * (count > 1)}"
    rows = []
    for name in (PLAIN, BLOCKS):
        note = f"memory: {held[OURS]:.2f} GB, {held[name]:.2f} GB"
        rows.append(slower(of, took[OURS], name, took[name], note=note))
    for name in (CACHE, NNSIGHT):
        if name in took:
            cost = took[name].wall / took[PLAIN].wall
            note = f"memory: {held[OURS]:.2f} GB, {held[name]:.2f} GB; {cost:.2f} of the plain pass"
            rows.append(faster(of, took[OURS], name, took[name], note=note))
    return rows
