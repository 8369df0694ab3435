"""`mesaprobe train`: a model by a recipe."""

import json
from pathlib import Path

import click

from probe.commands.options import choose_device, device_option


@click.command()
@click.argument("recipe")
@click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Changes the recipe, as optimiser.steps=100; may be repeated.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write; default checkpoints/RECIPE."
)
@click.option("--resume", is_flag=True, help="Go on with the unfinished training in the folder.")
@device_option
def train(
    recipe: str, assignments: tuple[str, ...], out: Path | None, resume: bool, device: str
) -> None:
    """Trains a model by RECIPE; see `mesaprobe list recipes`."""
    from probe.models.recipes import find_recipe
    from probe.models.recipes.changes import changed
    from probe.models.training import train as run
    from probe.models.training_folder import TrainingFolder
    from probe.progress import training

    found = changed(find_recipe(recipe), assignments)
    folder = out or Path("checkpoints") / found.name
    ended = resume and TrainingFolder(folder, found).is_finished
    with training(f"training {found.name}") as progress:
        run(found, folder, progress, resume, choose_device(device))
    if not ended:
        _draw(folder)
    click.echo(f"{'Finished already' if ended else 'Checkpoint'}: {folder}")


def _draw(folder: Path) -> None:
    """Draws the loss curve beside the numbers."""
    from probe.files import write_atomically
    from probe.findings import LineChart, Series
    from probe.models.training_folder import DRAWING, LOG
    from probe.report.figures import render

    log = json.loads((folder / LOG).read_text())
    steps, losses = zip(*log["loss_curve"], strict=True)
    chart = LineChart(
        "loss",
        f"Loss through the training of {log['name']}",
        "Mean over the steps since the point before.",
        "step",
        "loss",
        (Series("loss", steps, losses),),
        log_y=True,
    )
    write_atomically(folder / DRAWING, render(chart))


NAMED = {"train": train}
