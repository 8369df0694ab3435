"""A case: which valid folder, which command, which mutations."""

import random
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors import SafetensorError

from fuzzing.mutations import MUTATIONS
from fuzzing.seeds import Seed

MOST = 3  # mutations of a case
LARGEST = 2**26  # bytes of a file that can be changed again


@dataclass(frozen=True)
class Mutation:
    """One change of a folder.

    Attributes:
        kind: Key of `MUTATIONS`.
        seed: Of the choice of the file and of all else.
    """

    kind: str
    seed: int

    def apply(self, folder: Path) -> None:
        """Changes the folder, the same way each time; leaves it where the kind has no place."""
        rng, edit = random.Random(self.seed), MUTATIONS[self.kind]
        if there := [path for path in files_in(folder) if edit.suits(path)]:
            with suppress(
                OSError, RuntimeError, MemoryError, SafetensorError
            ):  # an earlier mutation does not let this one write, or made what it reads too large
                edit.change(rng.choice(there), rng)


@dataclass(frozen=True)
class Case:
    """What is run; `place` holds the folders of the seeds by name.

    Attributes:
        seed: Name of the valid folder.
        command: Index into the seed's commands.
        mutations: Applied one after the other.
    """

    seed: str
    command: int
    mutations: tuple[Mutation, ...]

    def prepare(self, place: Path, folder: Path) -> None:
        """Writes the mutated copy."""
        shutil.copytree(place / self.seed, folder)
        for mutation in self.mutations:
            mutation.apply(folder)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file of failures."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Case":
        """Reads what `to_dict` wrote."""
        mutations = tuple(Mutation(**mutation) for mutation in plain["mutations"])
        return cls(plain["seed"], plain["command"], mutations)


def files_in(folder: Path) -> list[Path]:
    """Files that can still be changed, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if _can_change(path))


def _can_change(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o400) and found.st_size < LARGEST


def cases(name: str, seed: Seed) -> st.SearchStrategy[Case]:
    """Mutations of one seed; every kind is as likely as any other."""
    mutation = st.builds(Mutation, st.sampled_from(sorted(MUTATIONS)), st.integers(0, 2**32 - 1))
    mutations = st.lists(mutation, min_size=1, max_size=MOST).map(tuple)
    return st.builds(Case, st.just(name), st.sampled_from(seed.choices), mutations)
