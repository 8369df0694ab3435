"""Which code computes: unfinished work of other code is not gone on with."""

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import probe
from probe.analysis import analysis_packages

LIBRARIES = ("numpy", "scipy", "torch", "transformer-lens")  # their versions move last digits
SUFFIXES = frozenset({".css", ".jinja", ".json", ".npz", ".py", ".safetensors", ".toml"})


@cache
def code_version() -> str:
    """Hash of the sources of the program and of all installed analyses, and of libraries below."""
    digest = hashlib.sha256()
    for package in (probe, *analysis_packages()):
        for place in package.__path__:
            for name, content in _sources(Path(place)):
                digest.update(f"{package.__name__}/{name}\0".encode() + content)
    for library in LIBRARIES:
        digest.update(f"{library} {version(library)}\0".encode())
    return digest.hexdigest()


def _sources(folder: Path) -> Iterable[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()
