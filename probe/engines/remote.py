"""What travels to another process and back, for engines that measure in several."""

import pickle
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from probe.code_version import code_version
from probe.engines.base import Gathered, Order, Setup, Work, Worker
from probe.errors import InputError
from probe.plan import Lease
from probe.threads import one_thread

Array = npt.NDArray[np.float64]
Found = tuple[list[dict[str, Array]], float, int]  # the fields of Gathered


@dataclass(frozen=True)
class Parcel:
    """How a worker is made, what it measures, and by what code."""

    setup: Setup
    order: Order
    code: str


def parcel_of(work: Work, order: Order) -> bytes:
    """Everything that another process needs besides the checkpoint and the program.

    Engines of one program hand these to each other; no file is read as one.

    Raises:
        InputError: The models of the work were made in this process.
    """
    if work.setup is None:
        raise InputError(f"{work.name}: its models are not in a checkpoint that others can load")
    return pickle.dumps(Parcel(work.setup, order, code_version()))


def measure(parcel: bytes, device: str, lease: Lease) -> Found:
    """Measures a lease in this process.

    Sums travel as arrays: tensors would be shared through files in memory, of which containers
    have few.

    Raises:
        InputError: The code here is not that of who asks, or as `Worker.measure`.
    """
    opened = _opened(parcel)
    with one_thread():
        gathered = _worker(opened.setup, device).measure(lease, opened.order)
    arrays = [{name: t.numpy() for name, t in sums.items()} for sums in gathered.sums]
    return arrays, gathered.clipped, gathered.batch_size


def gathered_of(found: Found) -> Gathered:
    """What came back, as tensors; arrays that nobody may change are copied."""
    arrays, clipped, batch_size = found
    sums = tuple({name: _tensor(a) for name, a in one.items()} for one in arrays)
    return Gathered(sums, clipped, batch_size)


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@lru_cache(maxsize=1)
def _opened(parcel: bytes) -> Parcel:
    opened: Parcel = pickle.loads(parcel)
    if opened.code != code_version():
        raise InputError("a worker has another version of the program or of its libraries")
    return opened


@lru_cache(maxsize=2)
def _worker(setup: Setup, device: str) -> Worker:
    return setup.worker(device)
