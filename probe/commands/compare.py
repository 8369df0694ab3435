"""`mesaprobe compare`: models side by side, and beside the reference mesa-layer."""

from pathlib import Path

import click

from probe.commands.options import (
    batch_option,
    choose_device,
    device_option,
    output_folder,
    preset_option,
    seed_option,
    sequences_option,
    task_option,
    workers_option,
)


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--reference", type=click.Choice(["mesa"]), default="mesa", show_default=True)
@preset_option
@task_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reports/compare"),
    show_default=True,
    help="Folder of the page.",
)
@sequences_option
@seed_option
@click.option(
    "--verdicts/--no-verdicts",
    default=True,
    show_default=True,
    help="Analyse every checkpoint in full; without, losses and CKA only.",
)
@batch_option
@workers_option
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print compare.json instead of a table.")
def compare(
    models: tuple[str, ...],
    reference: str,
    preset: str | None,
    task_name: str | None,
    out: Path,
    sequences: int,
    seed: int,
    verdicts: bool,
    batch_size: int,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Sets every MODEL beside the others and beside the mesa-layer fitted to its task.

    A MODEL is a checkpoint, or finished results: a results.json or the folder of a report. A
    checkpoint that needs a preset of its own is written PATH@PRESET; --preset is for all others.
    """
    from probe.comparison import tables
    from probe.comparison.entries import read_entries
    from probe.comparison.page import build
    from probe.comparison.run import Settings
    from probe.comparison.run import compare as run
    from probe.progress import print_table, reporting
    from probe.report.page import write_page

    output_folder(out)
    entries = read_entries(models, preset, task_name)
    device = choose_device(device)
    settings = Settings(sequences, seed, batch_size, workers, device, verdicts)
    with reporting(f"comparing {', '.join(entry.label for entry in entries)}") as progress:
        comparison = run(entries, settings, progress)
    page = build(comparison)
    path = write_page(page, out)
    if as_json:
        click.echo((out / "compare.json").read_text(encoding="utf-8"), nl=False)
        return
    rows = tables.terminal_rows(comparison)
    print_table("Models beside each other", tables.TERMINAL_COLUMNS, rows)
    for obstacle in comparison.obstacles:
        click.echo(f"Not compared: {obstacle.model} with {obstacle.other}: {obstacle.why}")
    click.echo(f"Report: {path}")
    click.echo(page.answer)


NAMED = {"compare": compare}
