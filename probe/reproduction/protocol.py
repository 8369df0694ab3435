"""The published protocol on any checkpoint: five samples of 256, probes scored in sample."""

from collections.abc import Iterator

import pandas as pd
import torch

from probe.findings import Finding, Metric, Table
from probe.models.transformer import SequenceTransformer
from probe.reproduction.measure import (
    BINDING_LAYER,
    SEEDS,
    SEQUENCES,
    Measured,
    Prober,
    sample,
)
from probe.reproduction.published import BINDING, CURRENT, LOSS, NEXT
from probe.tasks.base import Task

NAME = "von-oswald-2023"
QUANTITIES = (LOSS, CURRENT, NEXT)


def published_protocol(model: SequenceTransformer, task: Task, seed: int) -> Finding:
    """Losses by position, and least-squares probes fitted and scored on the same sequences.

    These numbers can be set beside published ones; they support nothing, since a probe that is
    scored on the sequences it was fitted to flatters wide layers.
    """
    prober = Prober(task, frozenset((*QUANTITIES, BINDING)), None, {})
    measured = [prober.measure(model, sample(task, seed, i)) for i in range(SEEDS)]
    frame, binding = pd.DataFrame(_rows(measured)), _binding(measured)
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
            **_binding_metrics(binding),
        },
        controls={},
        does_not_show="Scores in sample support no claim; linear_probing has held-out ones.",
        tables=(
            Table("published_protocol", frame),
            Table("published_protocol_token_binding", binding),
        ),
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


def _binding(measured: list[Measured]) -> pd.DataFrame:
    """Mean squared error of decoding s_{t-lag} at the last position, the oldest token first."""
    errors = torch.stack([found[BINDING][:, 0] for found in measured])
    return pd.DataFrame(
        {
            "layer": BINDING_LAYER,
            "lag": range(errors.shape[1] - 1, -1, -1),
            "mean_square": errors.mean(0).numpy(),
            "spread": errors.std(0).numpy(),
        }
    )


def _binding_metrics(binding: pd.DataFrame) -> dict[str, Metric]:
    words = "mean squared error of s_{{t-{}}} decoded from layer {}, last position, in sample"
    return {
        f"token_binding_lag_{lag}": Metric(float(error), words.format(lag, BINDING_LAYER))
        for lag, error in zip(binding.lag, binding.mean_square, strict=True)
    }
