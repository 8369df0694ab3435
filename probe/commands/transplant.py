"""`mesaprobe transplant`: a found optimizer replaced by one explicit mesa-layer."""

from pathlib import Path

import click

from probe.commands.options import (
    checkpoint_argument,
    load_with_task,
    output_folder,
    preset_option,
    seed_option,
    sequences_option,
    task_option,
    workers_option,
)


@click.command()
@checkpoint_argument
@preset_option
@task_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="The results.json of a finished analysis of CHECKPOINT; without, it is analysed first.",
)
@click.option(
    "--fine-tune",
    "tuning_steps",
    metavar="STEPS",
    type=click.IntRange(min=0),
    default=0,
    help="Train the new layer and the read-out for some steps.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="Replace nothing if the loss would rise by more than this share.",
)
@sequences_option
@seed_option
@workers_option
@click.option("--json", "as_json", is_flag=True, help="Print transplant.json instead of a summary.")
def transplant(
    checkpoint: Path,
    preset: str | None,
    task_name: str | None,
    out: Path | None,
    results: Path | None,
    tuning_steps: int,
    tolerance: float,
    sequences: int,
    seed: int,
    workers: int,
    as_json: bool,
) -> None:
    """Replaces the layers of CHECKPOINT that learn by one mesa-layer that solves least squares.

    Its projections are solved in closed form from captured activations. The folder gets the new
    checkpoint, its analysis in report/, and transplant.html. Where there is nothing to replace, or
    too much would be lost, the page says so and no checkpoint is written.
    """
    from probe.plan import Plan
    from probe.progress import reporting
    from probe.report.page import write_page
    from probe.transplant.page import transplant_page
    from probe.transplant.procedure import carry_out

    subject, task = load_with_task(checkpoint, preset, task_name)
    name = f"{subject.name.replace('#', '-')}-explicit"
    folder = output_folder(out or Path("checkpoints") / name)
    plan = Plan(task, sequences, seed, workers=workers)
    with reporting(f"transplanting into {subject.name}") as progress:
        done = carry_out(subject, plan, results, tuning_steps, tolerance, folder, progress)
    page = transplant_page(subject.name, done.found, done.before, done.after)
    path = write_page(page, folder)
    if as_json:
        click.echo((folder / "transplant.json").read_text(encoding="utf-8"), nl=False)
        return
    click.echo(f"Report: {path}")
    if done.after is not None:
        click.echo(f"Checkpoint: {folder}")
    click.echo(page.answer)


NAMED = {"transplant": transplant}
