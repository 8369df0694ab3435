"""Sums on disk: one uncompressed archive of arrays, each with a checksum, and no pickles."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probe.errors import InputError
from probe.files import writing_atomically

ABOUT = "about"  # the one entry that is no array of sums

Sums = Mapping[str, Tensor]
About = Mapping[str, int | float]


def write_sums(path: Path, sums: Sequence[Sums], about: About) -> None:
    """Writes sums and what is to be known about them, array by array.

    Raises:
        OSError: The disk is full, or the file cannot be written; an earlier one is still there.
    """
    arrays = {f"{at}/{name}": t.numpy() for at, one in enumerate(sums) for name, t in one.items()}
    note = np.frombuffer(json.dumps({**about, "keys": len(sums)}).encode(), dtype=np.uint8)
    with writing_atomically(path) as file:
        np.savez(file, allow_pickle=False, **{ABOUT: note}, **arrays)


def read_sums(path: Path) -> tuple[tuple[dict[str, Tensor], ...], About]:
    """Reads what `write_sums` wrote.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(archive[ABOUT].tobytes())
            sums: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(about.pop("keys")))
            for entry in archive.files:
                at, _, name = entry.partition("/")
                if entry != ABOUT:
                    sums[int(at)][name] = torch.from_numpy(archive[entry])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: damaged ({error!s:.100})") from None
    return sums, about
