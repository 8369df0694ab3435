"""Plug-ins by file: a module of a package that defines `NAMED` is found without any list."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from probe.errors import InputError


def discover(package: ModuleType) -> dict[str, Any]:
    """Collects the `NAMED` tables of all modules of `package`, sorted by name.

    Raises:
        RuntimeError: Two modules claim the same name.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in getattr(module, "NAMED", {}).items():
            if name in found:
                raise RuntimeError(f"two modules of {package.__name__} define {name!r}")
            found[name] = value
    return dict(sorted(found.items()))


def choose(package: ModuleType, name: str, kind: str) -> Any:
    """Returns the plug-in `name` of `package`.

    Raises:
        InputError: No such plug-in; the message lists those that exist.
    """
    known = discover(package)
    if name not in known:
        raise InputError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return known[name]
