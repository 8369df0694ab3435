"""`mesaprobe convert`: any readable checkpoint to the native folder."""

from pathlib import Path

import click

from probe.commands.options import checkpoint_argument, preset_option
from probe.errors import InputError


@click.command()
@checkpoint_argument
@click.argument("out", type=click.Path(path_type=Path))
@preset_option
def convert(checkpoint: Path, out: Path, preset: str | None) -> None:
    """Writes CHECKPOINT to the folder OUT in the native format."""
    from probe.checkpoints.base import load, transformer_of
    from probe.checkpoints.native import write_native
    from probe.files import reading

    subject = load(checkpoint, preset)
    model = transformer_of(subject)
    with reading(out):
        if out.exists():
            raise InputError(f"{out}: exists already")
        write_native(model, subject.task, out)
    click.echo(f"{out}: {len(subject.tensors)} tensors, sha256 {subject.sha256[:16]}")


NAMED = {"convert": convert}
