"""`mesaprobe analyze`: the whole instrument on one checkpoint."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from probe.commands.carrying import (
    Cluster,
    Devices,
    Local,
    OnePart,
    Outcome,
    Way,
    carry_out,
    print_outcomes,
)
from probe.commands.merge import write_part
from probe.commands.options import (
    adapter_option,
    batch_option,
    device_option,
    hub_option,
    preset_option,
    seed_option,
    task_option,
    workers_option,
)
from probe.commands.wanted import Wanted
from probe.errors import InputError


@click.command()
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True)
@preset_option
@task_option
@click.option("--text", type=click.Path(), help="What a language model reads without a task.")
@click.option("--length", type=int, help="Tokens of a window of the text; 64 by default.")
@hub_option
@adapter_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the report; of several, a folder for each in it.",
)
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
    "--devices", metavar="0,1", help="A process for each of these devices: numbers of GPUs, or cpu."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who measures: this machine, or a Ray cluster.",
)
@click.option("--address", default="auto", show_default=True, help="Of the Ray cluster.")
@click.option(
    "--shard", metavar="I/N", help="Measure part I of N only; `mesaprobe merge` joins the parts."
)
@click.option("--fresh", is_flag=True, help="Start over, whatever an earlier run has finished.")
@click.option(
    "--plan", "plan_only", is_flag=True, help="After a short trial, print what a run will take."
)
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a summary.")
def analyze(
    checkpoints: tuple[str, ...],
    out: Path | None,
    devices: str | None,
    engine: str,
    address: str,
    shard: str | None,
    fresh: bool,
    plan_only: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Analyses each CHECKPOINT, or all in a folder of them, and writes a report.

    A language model without --task is read on --text, or on random tokens: what do its heads do?

    What a run has finished is kept beside its report until that is written: after it was stopped or
    killed, the same command goes on from there.
    """
    paths = _expanded(checkpoints)
    way = _way(engine, address, devices, shard)
    if devices:
        options["device"] = Devices(devices).kind
    outcomes: list[Outcome] = []
    for path, place in zip(paths, _places(paths, out), strict=True):
        wanted = Wanted(checkpoint=path, **options)
        try:
            if plan_only:
                _print_plan(wanted)
            else:
                outcomes += [replace(one, name=path) for one in _one(wanted, place, way, fresh)]
        except InputError as error:
            if len(paths) == 1:
                raise
            outcomes.append(Outcome(path, str(error)))
    print_outcomes(outcomes, as_json)
    if failed := [outcome.name for outcome in outcomes if outcome.results is None]:
        raise InputError(f"not analysed: {', '.join(failed)}")


def _way(engine: str, address: str, devices: str | None, shard: str | None) -> Way:
    """Who measures."""
    by: Local | Devices | Cluster = Devices(devices) if devices else Local()
    if engine == "ray":
        if devices:
            raise InputError("--devices is for this machine; a Ray cluster knows its own")
        by = Cluster(address)
    return OnePart(shard, by) if shard else by


def _expanded(checkpoints: tuple[str, ...]) -> list[str]:
    """Checkpoints, and those in folders that are none themselves."""
    from probe.checkpoints.base import checkpoints_in

    found = [(one, checkpoints_in(Path(one))) for one in checkpoints]
    return [str(path) for one, inside in found for path in inside or [Path(one)]]


def _places(paths: Sequence[str], out: Path | None) -> list[Path | None]:
    """The folder of each report; None where it is to be called as the model is.

    Raises:
        InputError: Two checkpoints have the same name.
    """
    if len(paths) == 1:
        return [out]
    names = [Path(path).name.replace("#", "-") for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"two checkpoints are called {twice[0]}; their reports need two names")
    return [(out or Path("reports")) / name for name in names]


def _print_plan(wanted: Wanted) -> None:
    from probe.planning import estimate
    from probe.progress import print_table

    asked = wanted.read()
    print_table(f"{asked.subject.name}: what a run will take", *estimate(asked).table())


def _one(wanted: Wanted, place: Path | None, way: Way, fresh: bool) -> Iterator[Outcome]:
    """The outcome of one checkpoint; none yet of a part."""
    from probe.engines.parts import Waiting

    asked = wanted.read()
    folder = place or Path("reports") / asked.subject.name.replace("#", "-")
    try:
        if isinstance(way, OnePart):
            write_part(folder, way.numbers, wanted)
        yield carry_out(asked, folder, way, fresh)
    except Waiting as said:
        click.echo(str(said))


NAMED = {"analyze": analyze}
