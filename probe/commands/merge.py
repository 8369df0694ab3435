"""`mesaprobe merge`: the parts of a run that were measured apart."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from probe.commands.carrying import AllParts, carry_out, print_outcomes
from probe.commands.wanted import Wanted
from probe.errors import InputError

PART = "part.json"


@click.command()
@click.argument("parts", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the whole report."
)
@click.option("--fresh", is_flag=True, help="Start over, whatever an earlier merge has finished.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a summary.")
def merge(parts: tuple[Path, ...], out: Path, fresh: bool, as_json: bool) -> None:
    """Joins the parts that `mesaprobe analyze --shard I/N` has written to each DIR.

    It is called twice: when all parts have measured the half that fits, and, after the same
    commands were run again, when all have measured the half that tests. The report is the same as
    without parts, to the byte; what no part has is measured here.
    """
    from probe.engines.parts import Waiting
    from probe.journal import FOLDER, key_in
    from probe.run_key import key_of

    wanted, folders = _read_parts(parts)
    asked = wanted.read()
    key = json.loads(json.dumps(key_of(asked)))
    for folder in folders:
        if (known := key_in(folder / FOLDER)) is None:
            raise InputError(f"{folder}: this part has measured nothing")
        if known != key:
            differs = sorted(name for name in key if known.get(name) != key[name])
            raise InputError(f"{folder}: measured for another run: {', '.join(differs)} differ")
    try:
        print_outcomes([carry_out(asked, out, AllParts(folders), fresh)], as_json)
    except Waiting as said:
        click.echo(str(said))


def write_part(folder: Path, numbers: tuple[int, int], wanted: Wanted) -> None:
    """Says in a folder which part it holds, and of what.

    Raises:
        InputError: It holds another part, or cannot be written.
    """
    from probe.files import write_atomically

    number, of = numbers
    path = folder / PART
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and _read_part(folder)[:2] != (number, of):
            raise InputError(f"{folder}: holds another part than {number}/{of}")
        stated = {"number": number, "of": of, "wanted": asdict(wanted.anywhere())}
        write_atomically(path, json.dumps(stated, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _read_parts(parts: tuple[Path, ...]) -> tuple[Wanted, tuple[Path, ...]]:
    """What was wanted, and the folders of the parts in their order.

    Raises:
        InputError: A part is missing, or there twice, or they are not of one run.
    """
    read = [(*_read_part(folder), folder) for folder in parts]
    _, of, wanted, _ = read[0]
    if any(other[1] != of for other in read):
        raise InputError("the parts are not of one run: there are different numbers of parts")
    numbers = sorted(number for number, *_ in read)
    if numbers != list(range(1, of + 1)):
        given = ", ".join(map(str, numbers))
        raise InputError(f"there are {of} parts in all; given are the parts {given}")
    return wanted, tuple(folder for *_, folder in sorted(read, key=lambda one: one[0]))


def _read_part(folder: Path) -> tuple[int, int, Wanted]:
    from pydantic import TypeAdapter

    from probe.files import read_text

    path = folder / PART
    try:
        stated = json.loads(read_text(path))
        wanted = TypeAdapter(Wanted).validate_python(stated["wanted"])
        return int(stated["number"]), int(stated["of"]), wanted
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not what `analyze --shard` writes ({error!s:.80})") from None


NAMED = {"merge": merge}
