"""The `mesaprobe` command: it finds its subcommands in `probe/commands`."""

import sys
import warnings

import click

from probe import __version__, commands, registry
from probe.allocator import keep_freed_memory
from probe.errors import InputError

BAD_INPUT = 2
LONGEST = 2000  # characters of a message


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=registry.discover(commands),
)
@click.version_option(__version__, prog_name="mesaprobe")
def app() -> None:
    """Finds the learning algorithm that a trained transformer runs on its own context."""


def _tell(message: Warning | str, *where: object) -> None:
    """A message is one line, without the place in the code where it arose.

    What it quotes of a file may be long, and hold what a terminal would obey.
    """
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(message).split()))
    shown = line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
    click.echo(f"mesaprobe: {shown}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: bad input is one line on stderr and exit code 2."""
    keep_freed_memory()
    # The library means this function to be replaced; a type checker cannot know.
    warnings.showwarning = _tell  # type: ignore[assignment]
    try:
        app.main(args=arguments, prog_name="mesaprobe", standalone_mode=False)
    except (InputError, click.ClickException) as error:
        _tell(error.format_message() if isinstance(error, click.ClickException) else str(error))
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.filename is None:
            raise
        # A file or folder of the user's that cannot be opened or written: no loader foresaw it.
        _tell(f"{error.filename}: {error.strerror}")
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mesaprobe: interrupted", err=True)
        sys.exit(130)
