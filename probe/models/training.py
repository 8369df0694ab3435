"""Training from a recipe: AdamW on sequences that are fresh in every step.

The loss is the paper's: half the squared norm of the error, averaged over batch and positions.
One thread and one random stream per step make the weights a function of the recipe alone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import InputError
from probe.linalg import LinAlgError
from probe.models.recipes import Optimiser, Recipe
from probe.models.training_folder import TrainingFolder
from probe.models.transformer import SequenceTransformer
from probe.sampling import generator_for
from probe.tasks.base import Task, asked_tokens, find_task
from probe.threads import one_thread

VERSION = 1
HELD_OUT, SHARD = 2048, 256
CURVE_POINTS = 100
STEPS_TO_A_STATE = 100  # at most so many are lost by an interruption
# Streams of training; far from the splits of an analysis, which must meet no trained sequence.
INIT, FRESH, TEST = 9001, 9002, 9003

Progress = Callable[[int, int, float], None]
Loss = TypeVar("Loss", float, Tensor)


def train(
    recipe: Recipe,
    out: Path,
    progress: Progress | None = None,
    resume: bool = False,
    device: str = "cpu",
) -> Path:
    """Trains a model and writes it as a native folder, with training.json beside the weights.

    Takes minutes to hours on one thread; memory is that of one batch. On a CPU the weights are
    the same bits for the same recipe on the same machine, interrupted and resumed or not.

    Args:
        recipe: What to train, and how.
        out: Folder to write. Until the training has ended, only `unfinished/` in it is touched.
        progress: Called after every step with step (from 1), steps in all and the step's loss.
        resume: Whether to go on with an unfinished training in `out`, if there is one; a
            finished one is left as it is.
        device: Where the model runs; the sequences are drawn on the CPU.

    Returns:
        The folder.

    Raises:
        InputError: `out` holds other things than trainings, or an unfinished one that is not to
            be resumed or was of another recipe; or the loss is no longer a finite number.
    """
    folder = TrainingFolder.claimed(out, recipe, resume)
    if resume and folder.is_finished:
        return out
    started = time.perf_counter()
    with one_thread():
        trainer = _begun(recipe, folder, device)
        begun_at = trainer.done
        _go_on(trainer, folder, progress)
        held_out = _finite(
            lambda: held_out_loss(trainer.model, trainer.task, recipe.seed), "after the last step"
        )
    curve = thinned(trainer.losses, CURVE_POINTS)
    log = {
        "version": VERSION,
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "checkpoints": sorted(recipe.checkpoints.steps(trainer.done)),
        "loss_curve": [list(point) for point in curve],
        "final_loss": curve[-1][1],
        "held_out_loss": held_out,
        "held_out_sequences": HELD_OUT,
        "device": device,
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_count_from_step": begun_at,
    }
    folder.finish(trainer.model, _table(trainer.losses, recipe.optimiser), log)
    return out


class Trainer:
    """A model on its way: weights, moments of AdamW, and the loss of every step so far.

    The sequences of a step depend on the seed and its number alone, so this is all there is.
    """

    def __init__(self, recipe: Recipe, device: str = "cpu"):
        self.seed, self.settings = recipe.seed, recipe.optimiser
        self.task = find_task(recipe.task)
        self.model = SequenceTransformer(recipe.model)
        self.model.initialise(self.settings.init_std, generator_for(recipe.seed, INIT))
        self.model.to(device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            self.settings.peak_rate,
            weight_decay=self.settings.weight_decay,
        )
        self.losses: list[float] = []

    @property
    def done(self) -> int:
        """Number of steps taken."""
        return len(self.losses)

    def step(self) -> float:
        """Takes one step; returns the loss before its update.

        Raises:
            InputError: The loss is not finite; the weights are left as they were.
        """
        settings = self.settings
        generator = generator_for(self.seed, FRESH, self.done)
        loss = _finite(
            lambda: _loss_on_fresh(self.model, self.task, settings.batch, generator),
            f"at step {self.done + 1} of {settings.steps}",
        )
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.model.parameters(), settings.gradient_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.done)
        self.optimiser.step()
        self.losses.append(loss.item())
        return self.losses[-1]

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, after at least one step."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for name, parameter in self.model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes to a state that `state` returned.

        Raises:
            InputError: It is not one of this recipe.
        """
        self._check(state)
        self.losses = state["losses"].tolist()
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state[f"weight.{name}"])
            self.optimiser.state[parameter] = {
                "step": state[f"step.{name}"].clone(),
                "exp_avg": state[f"exp_avg.{name}"].to(parameter, copy=True),
                "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(parameter, copy=True),
            }

    def _check(self, state: Mapping[str, Tensor]) -> None:
        wanted: dict[str, tuple[int, ...]] = {}
        for name, parameter in self.model.named_parameters():
            shapes = {key: parameter.shape for key in ("weight", "exp_avg", "exp_avg_sq")}
            wanted |= {f"{key}.{name}": tuple(shape) for key, shape in shapes.items()}
            wanted[f"step.{name}"] = ()
        if wrong := sorted((wanted.keys() | {"losses"}) ^ state.keys()):
            raise InputError(f"missing or unknown tensor {ascii(wrong[0])[1:-1]:.100}")
        losses = state["losses"]
        if losses.dtype != torch.float64 or losses.dim() != 1:
            raise InputError("losses are no list of float64 numbers")
        if not 1 <= len(losses) <= self.settings.steps:
            raise InputError(f"{len(losses)} losses of {self.settings.steps} steps")
        for name, shape in wanted.items():
            found = state[name]
            if tuple(found.shape) != shape or found.dtype != torch.float32:
                kind = f"{tuple(found.shape)} {found.dtype}"
                raise InputError(f"{name} is {kind}, expected {shape} torch.float32")
            if name.startswith("step.") and float(found) != len(losses):
                raise InputError(f"{name} is {float(found)} after {len(losses)} losses")
        if unfit := [name for name in state if not state[name].isfinite().all()]:
            raise InputError(f"{unfit[0]} holds numbers that are not finite")


def thinned(losses: Sequence[float], most: int) -> list[tuple[int, float]]:
    """At most so many points (step, mean loss over the steps since the point before)."""
    window = -(-len(losses) // most)
    parts = [losses[start : start + window] for start in range(0, len(losses), window)]
    ends = [min(window * (index + 1), len(losses)) for index in range(len(parts))]
    means = [math.fsum(part) / len(part) for part in parts]
    return list(zip(ends, means, strict=True))


def learning_rate(optimiser: Optimiser, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then a cosine from peak to floor.

    The warm-up ends and the cosine starts at step `warmup`; the floor is reached in the last
    step of `decay`.
    """
    if step < optimiser.warmup:
        return optimiser.peak_rate * (step + 1) / optimiser.warmup
    left = max(1, optimiser.decay - optimiser.warmup - 1)
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


def _begun(recipe: Recipe, folder: TrainingFolder, device: str) -> Trainer:
    """A trainer where the unfinished training stopped, or at step 0."""
    trainer = Trainer(recipe, device)
    state = folder.read_state()
    if state is not None:
        try:
            trainer.restore(state)
        except InputError as error:
            raise InputError(f"{folder.state_path}: {error}") from None
    return trainer


def _go_on(trainer: Trainer, folder: TrainingFolder, progress: Progress | None) -> None:
    """Takes the steps that are left, and keeps weights and states on the way."""
    steps = trainer.settings.steps
    kept = folder.recipe.checkpoints.steps(steps)
    if not trainer.done and 0 in kept:
        folder.write_checkpoint(trainer.model, 0)
    while trainer.done < steps:
        loss = trainer.step()
        if trainer.done in kept:
            folder.write_checkpoint(trainer.model, trainer.done)
        if trainer.done % STEPS_TO_A_STATE == 0 or trainer.done == steps:
            folder.write_state(trainer.state())
        if progress is not None:
            progress(trainer.done, steps, loss)


def _finite(measure: Callable[[], Loss], when: str) -> Loss:
    """A loss, refused if it is no number."""
    try:
        loss = measure()
        value = loss.item() if isinstance(loss, Tensor) else loss
    except LinAlgError:  # a mesa-layer was given keys that are no longer finite
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"training failed: the loss is {value} {when}; a lower peak_rate may help")
    return loss


def _table(losses: Sequence[float], optimiser: Optimiser) -> str:
    """loss.csv: every step with its loss and its learning rate."""
    rows = (
        f"{step},{loss!r},{learning_rate(optimiser, step - 1)!r}"
        for step, loss in enumerate(losses, 1)
    )
    return "\n".join(["step,loss,learning_rate", *rows]) + "\n"


def _loss_on_fresh(
    model: SequenceTransformer, task: Task, count: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    sequences = task.sample(count, generator)
    tokens, targets = sequences.tokens, task.problem(sequences).targets
    device = next(model.parameters()).device
    said = model(tokens.to(device))[:, asked_tokens(task)]
    return sequence_loss(said, targets.to(device))
