"""`mesaprobe validate`: the verdicts graded on models of known algorithm."""

from pathlib import Path

import click

from probe.commands.options import seed_option, workers_option
from probe.errors import InputError


@click.command()
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


NAMED = {"validate": validate}
