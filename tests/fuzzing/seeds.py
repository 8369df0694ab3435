"""Small valid folders of every format, and the commands that read them; written when they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CASE = "{case}"  # the folder of the case, in an argument


@dataclass(frozen=True)
class Command:
    """Arguments of `mesaprobe`.

    Attributes:
        arguments: With `{case}` for the folder.
        share: How often it is taken; dear ones seldom.
    """

    arguments: tuple[str, ...]
    share: int = 10

    def at(self, folder: Path) -> list[str]:
        """The arguments for a case in this folder."""
        return [argument.replace(CASE, str(folder)) for argument in self.arguments]


@dataclass(frozen=True)
class Seed:
    """A valid folder.

    Attributes:
        write: Writes it.
        commands: What reads it; each ends with code 0 while nothing is mutated.
    """

    write: Callable[[Path], None]
    commands: tuple[Command, ...]

    @property
    def choices(self) -> list[int]:
        """The indices of the commands, each as often as its share."""
        return [at for at, command in enumerate(self.commands) for _ in range(command.share)]


def command(text: str, share: int = 10) -> Command:
    """Arguments parted by spaces."""
    return Command(tuple(text.split()), share)


def all_seeds() -> Mapping[str, Seed]:
    """By name."""
    from fuzzing import foreign_seeds, own_seeds, run_seeds

    return {**own_seeds.SEEDS, **foreign_seeds.SEEDS, **run_seeds.SEEDS}


def write_all(place: Path, seeds: Mapping[str, Seed]) -> None:
    """Each into a folder of its name."""
    for name, seed in seeds.items():
        (place / name).mkdir(parents=True)
        seed.write(place / name)
