"""Training from a recipe: AdamW on sequences that are fresh in every step.

The loss is the paper's: half the squared norm of the error, averaged over batch and positions.
One thread and one random stream per step make the weights a function of the recipe alone.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probe.checkpoints.native import CONFIG, WEIGHTS, write_native
from probe.errors import InputError
from probe.files import write_atomically
from probe.models.recipes import Optimiser, Recipe
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for
from probe.tasks.base import Task, find_task
from probe.threads import one_thread

LOG = "training.json"
VERSION = 1
HELD_OUT, SHARD = 2048, 256
CURVE_POINTS = 100
# Streams of training; far from the splits of an analysis, which must meet no trained sequence.
INIT, FRESH, TEST = 9001, 9002, 9003

Progress = Callable[[int, int, float], None]


def train(recipe: Recipe, out: Path, progress: Progress | None = None) -> Path:
    """Trains a model and writes it as a native folder, with training.json beside the weights.

    Takes minutes to hours on one thread; memory is that of one batch. The weights are the same
    bits for the same recipe on the same machine.

    Args:
        recipe: What to train, and how.
        out: Folder to write; nothing in it is touched before the training has ended.
        progress: Called after every step with step (from 1), steps in all and the step's loss.

    Returns:
        The folder.

    Raises:
        InputError: `out` holds other things than an earlier training, or the loss is no longer
            a finite number.
    """
    _claim(out)
    started = time.perf_counter()
    task = find_task(recipe.task)
    model = SequenceTransformer(recipe.model)
    with one_thread():
        model.initialise(recipe.optimiser.init_std, generator_for(recipe.seed, INIT))
        curve = Curve.sampled(_steps(recipe, model, task), recipe.optimiser.steps, progress)
        held_out = held_out_loss(model, task, recipe.seed)
    write_native(model, recipe.task, out)
    log = {
        "version": VERSION,
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "loss_curve": [list(point) for point in curve.points],
        "final_loss": curve.points[-1][1],
        "held_out_loss": held_out,
        "held_out_sequences": HELD_OUT,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_atomically(out / LOG, json.dumps(log, indent=2) + "\n")
    return out


@dataclass(frozen=True)
class Curve:
    """The loss through training.

    Attributes:
        points: (step, mean loss over the steps since the point before).
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def sampled(
        cls, losses: Iterator[float], steps: int, progress: Progress | None = None
    ) -> "Curve":
        """Runs through the losses and keeps at most CURVE_POINTS means.

        Raises:
            InputError: A loss is not finite.
        """
        window = -(-steps // CURVE_POINTS)
        points, recent = [], []
        for step, loss in enumerate(losses, 1):
            if not math.isfinite(loss):
                raise InputError(
                    f"training failed: the loss is {loss} at step {step} of {steps}; "
                    "a lower peak_rate may help"
                )
            recent.append(loss)
            if step % window == 0 or step == steps:
                points.append((step, math.fsum(recent) / len(recent)))
                recent = []
            if progress is not None:
                progress(step, steps, loss)
        return cls(tuple(points))


def learning_rate(optimiser: Optimiser, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then a cosine from peak to floor."""
    if step < optimiser.warmup:
        return optimiser.peak_rate * (step + 1) / optimiser.warmup
    left = max(1, optimiser.steps - optimiser.warmup - 1)
    cosine = (1 + math.cos(math.pi * (step - optimiser.warmup) / left)) / 2
    return optimiser.floor_rate + (optimiser.peak_rate - optimiser.floor_rate) * cosine


def sequence_loss(
    predictions: Float[Tensor, "batch time d_out"], targets: Float[Tensor, "batch time d_out"]
) -> Float[Tensor, ""]:
    """1/2 |prediction - target|^2, mean over sequences and positions."""
    return 0.5 * (predictions - targets).square().sum(-1).mean()


@torch.no_grad()
def held_out_loss(model: SequenceTransformer, task: Task, seed: int) -> float:
    """The loss over HELD_OUT sequences that no step has seen."""
    losses = [
        float(_loss_on_fresh(model, task, SHARD, generator_for(seed, TEST, shard)))
        for shard in range(HELD_OUT // SHARD)
    ]
    return math.fsum(losses) / len(losses)


def _steps(recipe: Recipe, model: SequenceTransformer, task: Task) -> Iterator[float]:
    """Trains the model in place; yields the loss of every step, before its update."""
    settings = recipe.optimiser
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.peak_rate, weight_decay=settings.weight_decay
    )
    for step in range(settings.steps):
        generator = generator_for(recipe.seed, FRESH, step)
        try:
            loss = _loss_on_fresh(model, task, settings.batch, generator)
        except LinAlgError:  # a mesa-layer was given keys that are no longer finite
            yield math.nan
            return
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), settings.gradient_clip)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step)
        optimiser.step()
        yield loss.item()


def _loss_on_fresh(
    model: SequenceTransformer, task: Task, count: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    sequences = task.sample(count, generator)
    return sequence_loss(model(sequences.tokens), task.problem(sequences).targets)


def _claim(out: Path) -> None:
    """Makes the folder, or accepts one that is empty or holds nothing but an earlier training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in out.iterdir()}
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}") from None
    foreign = present - {CONFIG, WEIGHTS, LOG}
    if foreign or (present and LOG not in present):
        named = ", ".join(sorted(foreign or present)[:3])
        raise InputError(f"{out}: not empty and not an earlier training: holds {named}")
