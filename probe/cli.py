"""The `mesaprobe` command. Commands import what is heavy by themselves, so that help is fast."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from probe import __version__
from probe.allocator import keep_freed_memory
from probe.errors import InputError

if TYPE_CHECKING:
    from probe.checkpoints.base import Subject
    from probe.tasks.base import Task

BAD_INPUT = 2

checkpoint_argument = click.argument("checkpoint", type=click.Path(path_type=Path))
preset_option = click.option(
    "--preset", metavar="NAME", help="What the file does not state; see `mesaprobe list presets`."
)
task_option = click.option(
    "--task", "task_name", metavar="NAME", help="Task; the checkpoint's own by default."
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
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto takes CUDA where there is one.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mesaprobe")
def app() -> None:
    """Finds the learning algorithm that a trained transformer runs on its own context."""


@app.command()
@checkpoint_argument
@preset_option
@task_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@sequences_option
@seed_option
@click.option("--only", metavar="A,B", default="", help="Run these analyses only.")
@click.option(
    "--protocol",
    type=click.Choice(["held-out", "von-oswald-2023"]),
    default="held-out",
    show_default=True,
    help="The second adds numbers by the published protocol.",
)
@click.option(
    "--discriminate",
    is_flag=True,
    help="Try the families that are left open under other inputs, which part them.",
)
@batch_option
@workers_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a summary.")
def analyze(
    checkpoint: Path,
    preset: str | None,
    task_name: str | None,
    out: Path | None,
    sequences: int,
    seed: int,
    only: str,
    protocol: str,
    discriminate: bool,
    batch_size: int,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Analyses CHECKPOINT and writes a report."""
    from probe.pipeline import Request
    from probe.pipeline import analyze as run
    from probe.progress import reporting
    from probe.report.results import json_text, results_dict
    from probe.report.write import write_report
    from probe.sweep import Plan

    subject, task = _load(checkpoint, preset, task_name)
    folder = out or Path("reports") / subject.name.replace("#", "-")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    plan = Plan(task, sequences, seed, batch_size, workers, _device(device))
    names = tuple(name for name in only.split(",") if name)
    with reporting(f"analysing {subject.name}") as progress:
        request = Request(subject, plan, names, protocol != "held-out", discriminate)
        report = run(request, progress)
    page = write_report(report, folder)
    if as_json:
        click.echo(json_text(results_dict(report)), nl=False)
    else:
        click.echo(f"Report: {page}")
        click.echo(report.verdict.statement)


@app.command()
@checkpoint_argument
@click.option("--reference", type=click.Choice(["mesa"]), default="mesa", show_default=True)
@preset_option
@task_option
@sequences_option
@seed_option
@batch_option
@workers_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(
    checkpoint: Path,
    reference: str,
    preset: str | None,
    task_name: str | None,
    sequences: int,
    seed: int,
    batch_size: int,
    workers: int,
    as_json: bool,
) -> None:
    """Sets CHECKPOINT beside the mesa-layer fitted to its task."""
    from probe.pipeline import compare_with_mesa
    from probe.progress import print_table, reporting
    from probe.report.results import json_text, reference_dict
    from probe.sweep import Plan

    subject, task = _load(checkpoint, preset, task_name)
    plan = Plan(task, sequences, seed, batch_size, workers)
    with reporting(f"comparing {subject.name} with the mesa-layer") as progress:
        found = compare_with_mesa(subject, plan, progress)
    if as_json:
        click.echo(json_text(reference_dict(found)), nl=False)
        return
    print_table(
        f"{subject.name} beside the mesa-layer on {task.name}",
        ("", "value"),
        [
            ("loss of the model", f"{found.model_loss:.4f}"),
            (f"loss of the mesa-layer (lambda {found.ridge:.3g})", f"{found.loss:.4f}"),
            (
                "excess of the model, 95 % interval",
                f"{found.excess_of_model:.4f} [{found.excess_lo:.4f}, {found.excess_hi:.4f}]",
            ),
            ("agreement, R^2 of the model's predictions", f"{found.agreement_r2:.4f}"),
            ("share of the model's error explained", f"{found.error_r2:.4f}"),
        ],
    )


@app.command()
@checkpoint_argument
@click.argument("out", type=click.Path(path_type=Path))
@preset_option
def convert(checkpoint: Path, out: Path, preset: str | None) -> None:
    """Writes CHECKPOINT to the folder OUT in the native format."""
    from probe.checkpoints.base import load
    from probe.checkpoints.native import write_native

    subject = load(checkpoint, preset)
    if out.exists():
        raise InputError(f"{out}: exists already")
    write_native(subject.model, subject.task, out)
    click.echo(f"{out}: {len(subject.tensors)} tensors, sha256 {subject.sha256[:16]}")


@app.command()
@checkpoint_argument
@preset_option
@task_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def describe(checkpoint: Path, preset: str | None, task_name: str | None, as_json: bool) -> None:
    """Shows the tensors, hook sites and sizes of CHECKPOINT."""
    from probe.description import describe_subject
    from probe.progress import print_table

    subject, task = _load(checkpoint, preset, task_name)
    described = describe_subject(subject, task)
    if as_json:
        click.echo(json.dumps(described.to_dict(), indent=2))
        return
    for title, columns, rows in described.tables():
        print_table(title, columns, rows)


@app.command()
@click.option("--task", "task_name", metavar="NAME", help="Task; linear by default.")
@sequences_option
@seed_option
@click.option("--against", metavar="A,B", default="", help="Compare these solver families only.")
@click.option(
    "--discriminate-from",
    "results",
    type=click.Path(path_type=Path),
    help="A results.json: compare the families that it does not reject, on its task.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def design(
    task_name: str | None,
    sequences: int,
    seed: int,
    against: str,
    results: Path | None,
    as_json: bool,
) -> None:
    """Says which solver families can be told apart, and on which inputs best.

    "A by B" is the R^2 that the best member of B lacks on predictions of A, with its standard
    error at the number of sequences; of several members of A the one that is imitated best.
    """
    from probe.design import COLUMNS, comparable, left_open
    from probe.design import design as run
    from probe.progress import print_table, reporting
    from probe.rule import Thresholds
    from probe.sweep import Plan
    from probe.tasks.base import find_task
    from probe.threads import one_thread

    found = left_open(results) if results else None
    alive = tuple(name for name in against.split(",") if name)
    alive = alive or (found.families if found else comparable())
    plan = Plan(find_task(task_name or (found.task if found else "linear")), sequences, seed)
    rule = Thresholds.load()
    with reporting("measuring input laws") as progress, one_thread():
        made = run(plan, alive, rule.delta, rule.clipped, progress)
    if as_json:
        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    print_table(f"Solver families on {made.task}, {sequences} sequences", COLUMNS, made.rows())
    for name, why in made.skipped.items():
        click.echo(f"left out: {name} ({why})")


@app.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/reproduction"))
@seed_option
def reproduce(folder: Path, out: Path, seed: int) -> None:
    """Measures the published checkpoints in FOLDER beside their published results."""
    from probe.progress import reporting
    from probe.reproduction import reproduce as run
    from probe.reproduction import summarise

    with reporting("reproducing") as progress:
        reproduction = run(folder, out, seed, progress)
    click.echo(summarise(reproduction))
    click.echo(f"Report: {out / 'reproduction.html'}")


@app.command()
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the checkpoint.")
def train(recipe: str, out: Path | None) -> None:
    """Trains a model by RECIPE; see `mesaprobe list recipes`."""
    from probe.models.recipes import find_recipe
    from probe.models.training import train as run
    from probe.progress import training

    found = find_recipe(recipe)
    with training(f"training {recipe}") as progress:
        folder = run(found, out or Path("checkpoints") / recipe, progress)
    click.echo(f"Checkpoint: {folder}")


@app.command()
@click.option("--models", default=200, show_default=True, help="How many models to draw.")
@seed_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/validation"))
@click.option(
    "--calibrate",
    is_flag=True,
    help="Set the thresholds, on families that are not reported on, instead of grading.",
)
@workers_option
def validate(models: int, seed: int, out: Path, calibrate: bool, workers: int) -> None:
    """Grades the verdicts, blind, on models whose algorithm is known."""
    from probe.progress import reporting
    from probe.validation import calibration
    from probe.validation.report import percent, sentence, write_report
    from probe.validation.run import validate as run

    if models < 1:
        raise InputError(f"--models {models}: at least one is needed")
    with reporting(f"{'calibrating' if calibrate else 'validating'} on {models}") as progress:
        if calibrate:
            thresholds, accuracy = calibration.calibrate(models, seed, progress, workers)
            click.echo(f"Thresholds: {calibration.write(thresholds)}")
            click.echo(f"Classes right on the models that set them: {percent(accuracy)}")
            return
        graded = run(models, seed, progress, workers)
    click.echo(f"Report: {write_report(graded, out)}")
    click.echo(sentence(graded))


@app.command("list")
@click.argument(
    "kind", type=click.Choice(["tasks", "solvers", "analyses", "presets", "recipes", "formats"])
)
def list_(kind: str) -> None:
    """Lists what is installed."""
    from probe.description import installed

    for name in installed(kind):
        click.echo(name)


def _load(checkpoint: Path, preset: str | None, task_name: str | None) -> "tuple[Subject, Task]":
    """The subject, and the task asked for or its own."""
    from probe.checkpoints.base import load
    from probe.tasks.base import find_task

    subject = load(checkpoint, preset)
    name = task_name or subject.task
    if name is None:
        raise InputError(f"{checkpoint}: states no task of its own; give --task NAME")
    return subject, find_task(name)


def _device(asked: str) -> str:
    """The device asked for, where there is one."""
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InputError("--device cuda: there is no CUDA device")
    return "cuda" if there and asked != "cpu" else "cpu"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: bad input is one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        app.main(args=arguments, prog_name="mesaprobe", standalone_mode=False)
    except (InputError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"mesaprobe: {' '.join(message.split())}", err=True)
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mesaprobe: interrupted", err=True)
        sys.exit(130)
