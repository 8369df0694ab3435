"""Second moments of all residual streams of a GPT-2 (12 blocks, 768 wide) on 8 x 256 tokens.

Peers, interleaved in the same run: the plain forward pass, which also makes logits of 50,257 words,
and the same blocks alone, which is what the moments cost on top of.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from probe.capture import read_sites
from probe.models.bridge import BridgedModel
from probe.streaming import stream_sums

BATCH, TIME, REPEATS = 8, 256, 5


def measure() -> list[dict[str, object]]:
    """Ratios to the peers."""
    torch.manual_seed(0)
    model = BridgedModel(GPT2LMHeadModel(GPT2Config(attn_implementation="eager")))
    tokens = torch.randint(model.vocabulary, (BATCH, TIME))
    sites = model.layer_sites()
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: stream_sums(model, [tokens], sites),
        "the plain forward pass": lambda: model(tokens),
        "its blocks alone": lambda: read_sites(model, tokens, {sites[-1]: lambda stream: None}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for repeat in range(REPEATS + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if repeat:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
    took = {name: median(times) for name, times in seconds.items()}
    ours = took.pop("ours")
    return [
        {
            "name": "moments of 13 residual streams, GPT-2",
            "peer": f"{name} (ratio: ours over peer)",
            "ours_s": ours,
            "peer_s": peer,
            "ratio": ours / peer,
        }
        for name, peer in took.items()
    ]
