"""Options and steps that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from probe.errors import InputError

if TYPE_CHECKING:
    from probe.checkpoints.base import Subject
    from probe.models.hooked import HookedModel
    from probe.tasks.base import Task

checkpoint_argument = click.argument("checkpoint", type=click.Path(path_type=Path))
preset_option = click.option(
    "--preset", metavar="NAME", help="What the file does not state; see `mesaprobe list presets`."
)
task_option = click.option(
    "--task", "task_name", metavar="NAME", help="Task; the checkpoint's own by default."
)
adapter_option = click.option(
    "--adapter",
    metavar="FILE.py:FUNCTION",
    help="Your own code, which is run: FUNCTION(path) says how the model is read.",
)
hub_option = click.option(
    "--allow-hub", is_flag=True, help="A name that is no path may be fetched from the hub."
)
sequences_option = click.option(
    "--sequences", default=4096, show_default=True, help="Half of them fit, half test."
)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the data.")
batch_option = click.option(
    "--batch-size", default=256, show_default=True, help="Sequences per forward pass."
)
workers_option = click.option(
    "--workers", default=2, show_default=True, help="Threads that work on shards."
)


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto takes CUDA where there is one, and never MPS.",
)


def load_with_task(
    checkpoint: Path,
    preset: str | None,
    task_name: str | None,
    adapter: str | None = None,
    allow_hub: bool = False,
) -> "tuple[Subject, Task]":
    """The subject, and the task asked for or its own."""
    from probe.checkpoints.base import load

    return with_task(load(checkpoint, preset, allow_hub, adapter), task_name)


def with_task(subject: "Subject", task_name: str | None) -> "tuple[Subject, Task]":
    """The subject as it meets the task asked for, or its own, and that task.

    A language model meets a task of numbers in text as a model of regression.
    """
    from probe.language_task import find_prompts, posed
    from probe.models.hooked import LanguageModel
    from probe.tasks.base import find_task

    name = task_name or subject.task
    place = subject.source.path if subject.source else subject.name
    if name is None:
        raise InputError(f"{place}: states no task of its own; give --task NAME")
    if isinstance(subject.model, LanguageModel):
        return posed(subject, find_prompts(name))
    return subject, find_task(name)


def output_folder(path: Path) -> Path:
    """A place where a folder is, or can be made."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: not a folder")
    return path


def choose_device(asked: str, model: "HookedModel | None" = None) -> str:
    """The device asked for, where there is one that can be trusted."""
    from probe.devices import choose

    return choose(asked, model)
