"""Files that are gone, elsewhere, something else than a file, or not to be read."""

import os
from pathlib import Path

from fuzzing.edit import Edit, Rng, no_code

_SWOLLEN = 3 << 30  # bytes, none of which take room on the disk


def _remove(path: Path, rng: Rng) -> None:
    path.unlink()


def _empty(path: Path, rng: Rng) -> None:
    path.write_bytes(b"")


def _rename(path: Path, rng: Rng) -> None:
    names = ("config.json", "model.safetensors", "state.pt", "results.json", "a\nb", "x" * 200, "é")
    path.rename(path.with_name(rng.choice((*names, path.name.upper(), f"{path.name}.bak"))))


def _other_suffix(path: Path, rng: Rng) -> None:
    path.rename(path.with_suffix(rng.choice((".pt", ".pkl", ".bin", ".safetensors", ".json", ""))))


def _copy(path: Path, rng: Rng) -> None:
    """Over another file of the folder, or beside it."""
    beside = [*_beside(path), path.with_name("model_999.pt"), path.with_name("config.yaml")]
    rng.choice(beside).write_bytes(path.read_bytes())


def _swap(path: Path, rng: Rng) -> None:
    other = rng.choice(_beside(path))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def _beside(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.iterdir() if p.is_file() and no_code(p)) or [path]


def _folder_in_its_place(path: Path, rng: Rng) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, rng: Rng) -> None:
    """To nothing, to itself, to the folder that it lies in, or to what never ends."""
    targets = (
        "nowhere",
        path.name,
        ".",
        "/dev/zero",
        "/dev/urandom",
        "/dev/null",
        "/proc/self/mem",
    )
    path.unlink()
    path.symlink_to(rng.choice(targets))


def _pipe(path: Path, rng: Rng) -> None:
    """Nobody ever writes into it."""
    path.unlink()
    os.mkfifo(path)


def _forbid(path: Path, rng: Rng) -> None:
    path.chmod(0)


def _forbid_folder(path: Path, rng: Rng) -> None:
    path.parent.chmod(rng.choice((0o000, 0o100, 0o400, 0o500)))


def _swell(path: Path, rng: Rng) -> None:
    os.truncate(path, _SWOLLEN)


EDITS = {
    "remove": Edit(_remove),
    "empty": Edit(_empty),
    "rename": Edit(_rename),
    "other_suffix": Edit(_other_suffix),
    "copy": Edit(_copy, no_code),
    "swap": Edit(_swap, no_code),
    "folder_in_its_place": Edit(_folder_in_its_place),
    "link": Edit(_link),
    "pipe": Edit(_pipe),
    "forbid": Edit(_forbid),
    "forbid_folder": Edit(_forbid_folder),
    "swell": Edit(_swell, no_code),
}
