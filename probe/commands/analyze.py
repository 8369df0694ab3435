"""`mesaprobe analyze`: the whole instrument on one checkpoint."""

from pathlib import Path

import click

from probe.commands.options import (
    batch_option,
    checkpoint_argument,
    choose_device,
    device_option,
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@sequences_option
@seed_option
@click.option("--only", metavar="A,B", default="", help="Run these analyses only.")
@click.option("--thorough", is_flag=True, help="Run analyses too that take minutes.")
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
    thorough: bool,
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

    subject, task = load_with_task(checkpoint, preset, task_name)
    folder = output_folder(out or Path("reports") / subject.name.replace("#", "-"))
    plan = Plan(task, sequences, seed, batch_size, workers, choose_device(device))
    names = tuple(name for name in only.split(",") if name)
    with reporting(f"analysing {subject.name}") as progress:
        request = Request(subject, plan, names, thorough, protocol != "held-out", discriminate)
        report = run(request, progress)
    page = write_report(report, folder)
    if as_json:
        click.echo(json_text(results_dict(report)), nl=False)
    else:
        click.echo(f"Report: {page}")
        click.echo(report.answer)


NAMED = {"analyze": analyze}
