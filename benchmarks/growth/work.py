"""What is measured, each in a process of its own: prepared first, then run (`benchmarks.child`)."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.machine import threads
from probe.capture import read_sites
from probe.checkpoints.native import write_native
from probe.cli import main as mesaprobe
from probe.models.attention import LinearAttention
from probe.models.bridge import BridgedModel
from probe.models.config import BlockConfig, ModelConfig
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for
from probe.stream_probes import stream_probes
from probe.streaming import next_token

DEMO = Path(__file__).parents[2] / "examples" / "demo"
TASK = "garg-linear-5d"  # eleven questions: the least work per sequence
WORDS, TARGETS, BATCH, HEAD = 512, 16, 2, 32


def small_model(folder: Path) -> Path:
    """One untrained layer of linear attention, as a native folder."""
    block = BlockConfig(LinearAttention(heads=2, d_head=5))
    model = SequenceTransformer(ModelConfig(5, 10, 1, (block,), projected=True))
    model.initialise(0.1, generator_for(0))
    write_native(model, TASK, folder)
    return folder


def analyze_small(sequences: str, workers: str) -> Callable[[], None]:
    """The command on one small layer, with the analyses that every run has."""
    folder = Path(tempfile.mkdtemp())
    return _command(small_model(folder), folder, sequences, workers, "--only", "behaviour")


def analyze_demo(sequences: str, workers: str) -> Callable[[], None]:
    """The command on the demo, with all its analyses."""
    return _command(DEMO, Path(tempfile.mkdtemp()), sequences, workers)


def _command(
    model: Path, folder: Path, sequences: str, workers: str, *more: str
) -> Callable[[], None]:
    counts = ["--sequences", sequences, "--workers", workers]
    arguments = ["analyze", str(model), "--out", str(folder / "report"), *counts, *more]
    return lambda: mesaprobe(arguments)


def _language_model(layers: int, width: int, time: int) -> BridgedModel:
    torch.manual_seed(0)
    shape = {"n_embd": width, "n_layer": layers, "n_head": width // HEAD, "n_positions": time}
    config = GPT2Config(vocab_size=WORDS, attn_implementation="eager", **shape)
    return BridgedModel(GPT2LMHeadModel(config))


def probes(layers: str, width: str, time: str, batches: str) -> Callable[[], None]:
    """Probes of all streams of a GPT-2: moments of as many batches to fit as to score."""
    model, tokens = _stream(layers, width, time, batches)
    targets = next_token(torch.ones(WORDS, TARGETS).normal_())
    return _on_one_thread(lambda: stream_probes(model, tokens, tokens, targets))


def forward(layers: str, width: str, time: str, batches: str) -> Callable[[], None]:
    """The blocks alone, on the same batches."""
    model, tokens = _stream(layers, width, time, batches)
    last = {model.layer_sites()[-1]: lambda stream: None}
    return _on_one_thread(lambda: [read_sites(model, part, last) for part in (*tokens, *tokens)])


def _stream(layers: str, width: str, time: str, batches: str) -> tuple[BridgedModel, list]:
    model = _language_model(int(layers), int(width), int(time))
    drawn = [torch.randint(WORDS, (BATCH, int(time))) for _ in range(int(batches))]
    return model, drawn


def eigendecomposition(width: str) -> Callable[[], None]:
    """Of a symmetric matrix in float64, as a probe of that width takes it."""
    rows = torch.randn(2 * int(width), int(width), dtype=torch.float64)
    gram = rows.T @ rows
    return _on_one_thread(lambda: torch.linalg.eigh(gram))


def _on_one_thread(run: Callable[[], object]) -> Callable[[], None]:
    def work() -> None:
        with threads(1):
            run()

    return work


if __name__ == "__main__":
    small_model(Path(sys.argv[1]))
