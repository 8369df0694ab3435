"""The published protocol on any checkpoint: five samples of 256, probes scored in sample."""

from collections.abc import Iterator

import pandas as pd
import torch

from probe.findings import Finding, Metric, Table
from probe.models.transformer import SequenceTransformer
from probe.reproduction.measure import SEEDS, SEQUENCES, Measured, Prober, sample
from probe.reproduction.published import CURRENT, LOSS, NEXT
from probe.tasks.base import Task

NAME = "von-oswald-2023"
QUANTITIES = (LOSS, CURRENT, NEXT)


def published_protocol(model: SequenceTransformer, task: Task, seed: int) -> Finding:
    """Losses by position, and least-squares probes fitted and scored on the same sequences.

    These numbers can be set beside published ones; they support nothing, since a probe that is
    scored on the sequences it was fitted to flatters wide layers.
    """
    prober = Prober(task, frozenset(QUANTITIES), None, {})
    measured = [prober.measure(model, sample(task, seed, i)) for i in range(SEEDS)]
    frame = pd.DataFrame(_rows(measured))
    last = frame[(frame.target == NEXT) & (frame.layer == frame.layer.max())]
    loss = float(frame[frame.target == LOSS].loss.mean())
    return Finding(
        analysis="published_protocol",
        question=f"What does the protocol of {NAME} give?",
        outcome="inconclusive",
        statement=(
            f"On {SEEDS} samples of {SEQUENCES} sequences the loss is {loss:.4f}; probes are "
            "scored on the sequences that they were fitted to, as was published."
        ),
        metrics={
            "loss": Metric(loss, "1/2 mean squared norm of the error, mean over positions"),
            "next_token_last_layer": Metric(
                float(last.loss.mean()), "probe of the next token from the last layer, in sample"
            ),
        },
        controls={},
        does_not_show="Scores in sample support no claim; linear_probing has held-out ones.",
        tables=(Table("published_protocol", frame),),
    )


def _rows(measured: list[Measured]) -> Iterator[dict[str, object]]:
    for quantity in QUANTITIES:
        values = torch.stack([found[quantity] for found in measured])
        mean, spread = values.mean(0), values.std(0)
        for position, layers in enumerate(mean):
            for layer, value in enumerate(layers):
                yield {
                    "layer": layer,
                    "position": position + 1,
                    "target": quantity,
                    "loss": float(value),
                    "spread": float(spread[position, layer]),
                }
