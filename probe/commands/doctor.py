"""`mesaprobe doctor`: is the model read as it should be, and does a finished run still stand?"""

from pathlib import Path

import click

from probe.commands.options import adapter_option, hub_option, preset_option
from probe.errors import InputError


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@preset_option
@adapter_option
@hub_option
def doctor(target: Path, preset: str | None, adapter: str | None, allow_hub: bool) -> None:
    """Audits TARGET, a checkpoint or the folder of a finished run.

    Exit code 0: every check passed, and nothing has changed since the run but versions. 2: not so.
    """
    from probe.checkpoints.base import load
    from probe.doctor import examine, is_run, reexamine
    from probe.progress import print_table

    if is_run(target):
        found = reexamine(target, allow_hub, adapter)
    else:
        found = examine(load(target, preset, allow_hub, adapter))
    rows: list[tuple[str, ...]] = [
        (
            "right" if check.ok else "WRONG",
            check.name,
            check.must_read,
            check.reads,
            f"{check.error:.1e}" if check.tolerance else "",
            f"{check.tolerance:.0e}" if check.tolerance else "",
        )
        for check in sorted(found.checks, key=lambda check: check.ok)
    ]
    columns = ("", "check", "must read", "reads", "error", "at most")
    print_table("Audit", columns, rows)
    if found.drifts:
        changed = [(d.name, d.then, d.now, "" if d.harmless else "WRONG") for d in found.drifts]
        print_table("Changed since the run", ("what", "then", "now", ""), list(changed))
    if complaint := found.complaint:
        raise InputError(f"{target}: {complaint}")


NAMED = {"doctor": doctor}
