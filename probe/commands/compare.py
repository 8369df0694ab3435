"""`mesaprobe compare`: a model beside the reference mesa-layer."""

from pathlib import Path

import click

from probe.commands.options import (
    batch_option,
    checkpoint_argument,
    load_with_task,
    preset_option,
    seed_option,
    sequences_option,
    task_option,
    workers_option,
)


@click.command()
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

    subject, task = load_with_task(checkpoint, preset, task_name)
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


NAMED = {"compare": compare}
