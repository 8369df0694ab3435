"""What a mutation is made of."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Rng = random.Random
CODE = (".py",)  # an adapter is the user's own program, which is run as it stands


@dataclass(frozen=True)
class Edit:
    """One way to change a file or what lies beside it.

    Attributes:
        change: Does it.
        suits: Whether it can be done to a file.
    """

    change: Callable[[Path, Rng], None]
    suits: Callable[[Path], bool] = lambda path: True


def ends_in(*suffixes: str) -> Callable[[Path], bool]:
    """Files of these kinds."""
    return lambda path: path.suffix in suffixes


def no_code(path: Path) -> bool:
    """Files that nobody runs."""
    return path.suffix not in CODE


def edits_of_bytes(
    suits: Callable[[Path], bool], *changes: Callable[[bytes, Rng], bytes]
) -> dict[str, Edit]:
    """Edits by the names of functions from the content of a file to another."""

    def as_edit(change: Callable[[bytes, Rng], bytes]) -> Edit:
        def on_file(path: Path, rng: Rng) -> None:
            path.write_bytes(change(path.read_bytes(), rng))

        return Edit(on_file, suits)

    return {change.__name__: as_edit(change) for change in changes}
