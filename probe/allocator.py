"""Keeps freed memory for the next shard, where the C library is glibc.

Every shard frees tensors of tens of megabytes and asks for the same again. By default glibc gives
such blocks back to the system each time, and the system zeroes new pages for the next shard.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """No effect on other systems."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Gives freed memory back to the system, so that what is held is what is in use.

    No effect on other systems.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
