"""Models that the user's own code says how to read."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from probe.checkpoints.base import Source, Subject, hash_of, row_of
from probe.errors import InputError
from probe.models.hooked import HookedModel
from probe.models.wrapped import Wrapped

GROUP = "mesaprobe.adapters"


class Adapted:
    """FILE.py:FUNCTION, or the name of an entry point in the group `mesaprobe.adapters`."""

    name = "adapter"

    def recognises(self, source: Source) -> bool:
        """Where the user names an adapter."""
        return source.adapter is not None

    def read(self, source: Source) -> Subject:
        """Executes the user's code; raises InputError as `load_adapted` does."""
        assert source.adapter is not None
        return load_adapted(source.adapter, source.path)


def load_adapted(spec: str, path: Path) -> Subject:
    """Reads a model by an adapter: a function from a path to a `HookedModel`.

    The adapter is the user's own code and is executed with all that it may do.

    Args:
        spec: FILE.py:FUNCTION, or the name of an entry point in the group `mesaprobe.adapters`.
        path: Handed to the function; what it means is the function's business.

    Raises:
        InputError: No such adapter, an error in it, or a model that is none.
    """
    with _one_line(spec):
        build = _function(spec)
        model = build(path)
    if not isinstance(model, HookedModel):
        raise InputError(f"{spec}: made a {type(model).__name__}, not a HookedModel")
    model.eval().requires_grad_(False)
    module = model.module if isinstance(model, Wrapped) else model
    named = dict(module.named_parameters())
    if (
        bad := next((n for n, p in named.items() if not bool(p.isfinite().all())), None)
    ) is not None:
        raise InputError(f"{spec}: {bad} holds NaN or infinity")
    tensors = tuple(row_of(name, name, parameter) for name, parameter in named.items())
    original = model.bare if isinstance(model, Wrapped) else None
    name = path.resolve().name or type(module).__name__
    return Subject(name, "adapter", model, None, hash_of(tensors), tensors, original=original)


def _function(spec: str) -> Callable[[Path], Any]:
    """The function that a spec names; its file is executed."""
    file, found, function = spec.rpartition(":")
    if not found:
        return _installed(spec)
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--adapter {spec}: no file {file}")
    build = getattr(_executed(path.resolve()), function, None)
    if not callable(build):
        raise InputError(f"--adapter {spec}: {file} has no function {function!r}")
    return build


def _installed(name: str) -> Callable[[Path], Any]:
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise InputError(f"--adapter {name}: not FILE.py:FUNCTION, nor installed; known: {names}")
    build: Callable[[Path], Any] = known[name].load()
    return build


def _executed(path: Path) -> Any:
    """The module of a file. As Python does for a script, what lies beside it can be imported."""
    name = f"mesaprobe_adapter_{path.stem}"
    described = importlib.util.spec_from_file_location(name, path)
    assert described is not None and described.loader is not None  # the file is there, as .py
    module = importlib.util.module_from_spec(described)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # behind all else: it must shadow nothing
    sys.modules[name] = module  # dataclasses look their module up
    described.loader.exec_module(module)
    return module


@contextmanager
def _one_line(spec: str) -> Iterator[None]:
    """Any error of the user's code becomes one line with its place."""
    try:
        yield
    except (Exception, SystemExit) as error:
        file = Path(os.path.realpath(spec.rpartition(":")[0]))  # also of a link to itself
        where = _place(error, file)
        if isinstance(error, InputError) and where is None:
            raise
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{where or spec}: {' '.join(what.split())}") from None


def _place(error: BaseException, file: Path) -> str | None:
    """FILE:LINE of the innermost line of a file that an error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file]
    return f"{file}:{lines[-1]}" if lines else None


NAMED = {Adapted.name: Adapted()}
