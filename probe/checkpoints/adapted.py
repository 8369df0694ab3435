"""A module of the user's, read as the user's own function says."""

import hashlib
import importlib.util
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from probe.checkpoints.base import Source, Subject, row_of
from probe.errors import InputError
from probe.models.hooked import HookedModel
from probe.models.wrapped import WrappedLanguage, WrappedSequence

GROUP = "mesaprobe.adapters"


class Adapted:
    """FILE.py:FUNCTION, or the name of an entry point in the group "mesaprobe.adapters".

    The function is the user's own code and is run because the user asked for it. It gets the path
    and returns a `HookedModel`, as `probe.models.wrapped` makes from a module and a layout.
    """

    name = "adapter"

    def recognises(self, source: Source) -> bool:
        """Where the user names an adapter."""
        return source.adapter is not None

    def read(self, source: Source) -> Subject:
        """Calls the function.

        Raises:
            InputError: There is no such function, it fails, or it returns something else.
        """
        assert source.adapter is not None
        build = _function(source.adapter)
        try:
            model = build(source.path)
        except InputError:
            raise
        except Exception as error:  # the user's code can fail in any way
            raise InputError(f"--adapter {source.adapter}: {_told(error)}") from None
        if not isinstance(model, HookedModel):
            kind = type(model).__name__
            raise InputError(f"--adapter {source.adapter}: returned {kind}, no HookedModel")
        return _subject(source.path, model)


def _subject(path: Path, model: HookedModel) -> Subject:
    table = tuple(row_of(name, name, tensor.detach()) for name, tensor in model.named_parameters())
    whole = hashlib.sha256("".join(row.sha256 for row in table).encode()).hexdigest()
    wrapped = isinstance(model, WrappedSequence | WrappedLanguage)
    original = _bare(model.inner) if wrapped else None
    return Subject(path.name, "adapter", model.eval(), None, whole, table, original=original)


def _bare(inner: Any) -> Callable[..., Any]:
    """What the module says by itself."""

    def said(tokens: Any) -> Any:
        answer = inner(tokens)
        return answer[0] if isinstance(answer, tuple) else answer

    return said


def _function(spec: str) -> Callable[[Path], Any]:
    named = {entry.name: entry for entry in entry_points(group=GROUP)}
    if spec in named:
        return named[spec].load()
    file, _, name = spec.rpartition(":")
    if not file or not Path(file).is_file():
        known = f"; installed: {', '.join(named)}" if named else ""
        raise InputError(f"--adapter {spec}: expected FILE.py:FUNCTION{known}")
    loader = importlib.util.spec_from_file_location("mesaprobe_adapter", file)
    if loader is None or loader.loader is None:
        raise InputError(f"--adapter {spec}: {file} is no Python file")
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
    except Exception as error:  # as above
        raise InputError(f"--adapter {spec}: {_told(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--adapter {spec}: {file} has no function {name}")
    return function


def _told(error: Exception) -> str:
    """The last line of the user's code that was reached, and what went wrong there."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}: {type(error).__name__}: {error!s:.200}"


NAMED = {Adapted.name: Adapted()}
