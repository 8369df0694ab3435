"""`mesaprobe track`: a series of checkpoints through training."""

from pathlib import Path

import click

from probe.commands.options import (
    batch_option,
    choose_device,
    device_option,
    output_folder,
    preset_option,
    seed_option,
    task_option,
    workers_option,
)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@preset_option
@task_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@click.option(
    "--sequences",
    default=1024,
    show_default=True,
    help="For every checkpoint the same; half of them fit, half test.",
)
@seed_option
@batch_option
@workers_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print track.json instead of a summary.")
def track(
    folder: Path,
    preset: str | None,
    task_name: str | None,
    out: Path | None,
    sequences: int,
    seed: int,
    batch_size: int,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Says when an optimizer appears in DIR, a folder of checkpoints through training.

    Checkpoints are ordered by the last whole number in their names. Of a training's output folder
    the sub-folder `checkpoints` is read.
    """
    from probe.plan import Plan
    from probe.progress import reporting
    from probe.report.page import write_page
    from probe.tasks.base import find_task
    from probe.tracking.conclusion import answer, conclude
    from probe.tracking.measure import measure
    from probe.tracking.page import NAME, track_page
    from probe.tracking.series import read_series

    series = read_series(folder, preset, task_name)
    place = output_folder(out or Path("reports") / f"track-{folder.resolve().name}")
    plan = Plan(find_task(series.task), sequences, seed, batch_size, workers, choose_device(device))
    with reporting(f"tracking {len(series.distinct)} checkpoints") as progress:
        measured = measure(series, plan, progress)
    found = conclude(measured)
    page = write_page(track_page(measured, found), place)
    if as_json:
        click.echo((place / f"{NAME}.json").read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(f"Report: {page}")
        click.echo(answer(found))


NAMED = {"track": track}
