"""What to do when a batch does not fit: run it in halves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from probe.errors import InputError

LEAST = 16  # sequences of a batch that is not halved any more; `capture` rounds up to it
ON_CPU = "DefaultCPUAllocator"  # torch raises a bare RuntimeError there
Result = TypeVar("Result")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ON_CPU in str(error)


@contextmanager
def refusing_when_full(where: str) -> Iterator[None]:
    """For what cannot be run in halves.

    Raises:
        InputError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise InputError(f"out of memory in {where}; fewer --workers may help") from error


def halving(run: Callable[[int], Result], batch_size: int) -> tuple[Result, int]:
    """Runs with a batch size, and with half of it as long as memory runs out.

    Returns:
        The result, and the batch size that fitted.

    Raises:
        InputError: Not even the least batch fits.
    """
    while True:
        try:
            return run(batch_size), batch_size
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            if batch_size <= LEAST:
                raise InputError(
                    f"out of memory with {batch_size} sequences at a time; fewer --workers may help"
                ) from error
        # Outside the handler, the traceback no longer holds what the failed run had allocated.
        batch_size = max(LEAST, batch_size // 2)
