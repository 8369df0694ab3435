"""`mesaprobe describe`: what is in a checkpoint."""

import json
from pathlib import Path

import click

from probe.commands.options import (
    adapter_option,
    checkpoint_argument,
    hub_option,
    load_with_task,
    preset_option,
    task_option,
)


@click.command()
@checkpoint_argument
@preset_option
@task_option
@adapter_option
@hub_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def describe(
    checkpoint: Path,
    preset: str | None,
    task_name: str | None,
    adapter: str | None,
    allow_hub: bool,
    as_json: bool,
) -> None:
    """Shows the tensors, hook sites and sizes of CHECKPOINT."""
    from probe.description import describe_subject
    from probe.progress import print_table

    subject, task = load_with_task(checkpoint, preset, task_name, adapter, allow_hub)
    described = describe_subject(subject, task)
    if as_json:
        click.echo(json.dumps(described.to_dict(), indent=2))
        return
    for title, columns, rows in described.tables():
        print_table(title, columns, rows)


NAMED = {"describe": describe}
