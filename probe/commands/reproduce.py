"""`mesaprobe reproduce`: published results beside ours."""

from pathlib import Path

import click

from probe.commands.options import seed_option


@click.command()
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


NAMED = {"reproduce": reproduce}
