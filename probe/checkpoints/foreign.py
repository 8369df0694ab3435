"""Other people's parsers: quiet, and what they trip over in one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import InputError


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
    except Exception as error:
        reason = ascii(" ".join(f"{type(error).__name__}: {error}".split()))[1:-1]
        raise InputError(f"{place}: {what}: {reason:.200}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor warnings of transformers."""
    # Slow to import, and formats are imported to recognise any file.
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
