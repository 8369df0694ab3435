"""Other people's parsers: quiet, and what they trip over in one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import InputError

PANIC = "PanicException"  # of libraries in Rust: made at run time, and no Exception


@contextmanager
def refusing(place: Path, what: str) -> Iterator[None]:
    """What transformers makes of damaged files becomes one line; it prints nothing meanwhile.

    Raises:
        InputError: Anything was raised inside. Damaged files bring out any kind of exception.
    """
    try:
        with _quiet():
            yield
    except InputError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == PANIC):
            raise
        reason = ascii(" ".join(f"{type(error).__name__}: {error}".split()))[1:-1]
        raise InputError(f"{place}: {what}: {reason:.200}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor warnings."""
    # Slow to import, and formats are imported to recognise any file.
    from transformers.utils import logging as untyped

    bars: Any = untyped
    shown, silenced = bars.is_progress_bar_enabled(), logging.root.manager.disable
    bars.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
        if shown:
            bars.enable_progress_bar()
