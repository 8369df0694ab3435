"""`mesaprobe design`: which solver families the inputs can tell apart."""

import json
from pathlib import Path

import click

from probe.commands.options import seed_option, sequences_option


@click.command()
@click.option("--task", "task_name", metavar="NAME", help="Task; linear by default.")
@sequences_option
@seed_option
@click.option("--against", metavar="A,B", default="", help="Compare these solver families only.")
@click.option(
    "--discriminate-from",
    "results",
    type=click.Path(path_type=Path),
    help="A results.json: compare the families that it does not reject, on its task.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def design(
    task_name: str | None,
    sequences: int,
    seed: int,
    against: str,
    results: Path | None,
    as_json: bool,
) -> None:
    """Says which solver families can be told apart, and on which inputs best.

    "A by B" is the R^2 that the best member of B lacks on predictions of A, with its standard
    error at the number of sequences; of several members of A the one that is imitated best.
    """
    from probe.design import COLUMNS, comparable, left_open
    from probe.design import design as run
    from probe.plan import Plan
    from probe.progress import print_table, reporting
    from probe.rule import Thresholds
    from probe.tasks.base import find_task
    from probe.threads import one_thread

    found = left_open(results) if results else None
    alive = tuple(name for name in against.split(",") if name)
    alive = alive or (found.families if found else comparable())
    plan = Plan(find_task(task_name or (found.task if found else "linear")), sequences, seed)
    rule = Thresholds.load()
    with reporting("measuring input laws") as progress, one_thread():
        made = run(plan, alive, rule.delta, rule.clipped, progress)
    if as_json:
        click.echo(json.dumps(made.to_dict(), indent=2))
        return
    print_table(f"Solver families on {made.task}, {sequences} sequences", COLUMNS, made.rows())
    for name, why in made.skipped.items():
        click.echo(f"left out: {name} ({why})")


NAMED = {"design": design}
