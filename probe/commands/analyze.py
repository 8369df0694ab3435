"""`mesaprobe analyze`: the whole instrument on one checkpoint."""

from pathlib import Path

import click

from probe.commands.options import (
    adapter_option,
    batch_option,
    checkpoint_argument,
    choose_device,
    device_option,
    hub_option,
    output_folder,
    preset_option,
    seed_option,
    task_option,
    with_task,
    workers_option,
)
from probe.errors import InputError

SEQUENCES, WINDOWS = 4096, 256  # of a task; of a text


@click.command()
@checkpoint_argument
@preset_option
@task_option
@click.option(
    "--text", type=click.Path(path_type=Path), help="What a language model reads without a task."
)
@click.option("--length", type=int, help="Tokens of a window of the text; 64 by default.")
@hub_option
@adapter_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.")
@click.option(
    "--sequences",
    type=int,
    help="Half of them fit, half test; 4096 by default, 256 windows of a text.",
)
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
@click.option(
    "--plan", "plan_only", is_flag=True, help="After a short trial, print what a run will take."
)
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a summary.")
def analyze(
    checkpoint: Path,
    preset: str | None,
    task_name: str | None,
    text: Path | None,
    length: int | None,
    allow_hub: bool,
    adapter: str | None,
    out: Path | None,
    sequences: int | None,
    seed: int,
    only: str,
    thorough: bool,
    protocol: str,
    discriminate: bool,
    batch_size: int,
    workers: int,
    device: str,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Analyses CHECKPOINT and writes a report.

    A language model without --task is read on --text, or on random tokens: what do its heads do?
    """
    from probe.checkpoints.base import load
    from probe.language import Survey, survey
    from probe.limits import refuse
    from probe.models.hooked import LanguageModel
    from probe.pipeline import Request
    from probe.pipeline import analyze as run
    from probe.planning import estimate
    from probe.progress import print_table, reporting
    from probe.report.results import json_text, results_dict
    from probe.report.write import write_report
    from probe.sweep import Plan
    from probe.text import reading_of

    subject = load(checkpoint, preset, allow_hub, adapter)
    folder = output_folder(out or Path("reports") / subject.name.replace("#", "-"))
    asked: Survey | Request
    if isinstance(subject.model, LanguageModel) and task_name is None:
        asked = Survey(subject, reading_of(subject.model, text, length), sequences or WINDOWS, seed)
    else:
        if text is not None or length is not None:
            raise InputError("--text and --length are for language models without --task")
        subject, task = with_task(subject, task_name)
        count = SEQUENCES if sequences is None else sequences
        plan = Plan(task, count, seed, batch_size, workers, choose_device(device, subject.model))
        names = tuple(name for name in only.split(",") if name)
        asked = Request(subject, plan, names, thorough, protocol != "held-out", discriminate)
    if plan_only:
        print_table(f"{subject.name}: what a run will take", *estimate(asked).table())
        return
    refuse(asked, folder)
    with reporting(f"analysing {subject.name}") as progress:
        report = survey(asked, progress) if isinstance(asked, Survey) else run(asked, progress)
    page = write_report(report, folder)
    if as_json:
        click.echo(json_text(results_dict(report)), nl=False)
    else:
        click.echo(f"Report: {page}")
        click.echo(report.answer)


NAMED = {"analyze": analyze}
