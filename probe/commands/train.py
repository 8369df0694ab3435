"""`mesaprobe train`: a model by a recipe."""

from pathlib import Path

import click


@click.command()
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


NAMED = {"train": train}
