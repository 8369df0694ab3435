"""One process for each device."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from threading import Thread

from probe.engines import remote
from probe.engines.base import Gathered, Order, Work, in_order
from probe.errors import InputError
from probe.plan import Lease, Plan

_device = "cpu"


@dataclass(frozen=True)
class Processes:
    """Processes of this machine that load the checkpoint for themselves.

    Attributes:
        devices: The device of each, as torch calls it.
    """

    devices: tuple[str, ...]

    @property
    def name(self) -> str:
        """See `Engine`."""
        return f"processes on {', '.join(self.devices)}"

    def workers(self, plan: Plan) -> int:
        """See `Engine`."""
        return len(self.devices)

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """See `Engine`.

        Raises:
            InputError: A process died, or as in a worker.
        """
        parcel = remote.parcel_of(work, order)
        spawn = multiprocessing.get_context("spawn")
        devices: Queue[str] = spawn.Queue()
        for device in self.devices:
            devices.put(device)
        count = len(self.devices)
        with ProcessPoolExecutor(count, spawn, _begin, (devices,)) as pool:

            def submit(lease: Lease) -> "Future[remote.Found]":
                return pool.submit(_measure, parcel, lease)

            try:
                for found in in_order(submit, leases, count + 1):
                    yield remote.gathered_of(found)
            except BrokenProcessPool:
                raise InputError(
                    "a process of --devices died, perhaps for lack of memory; what was finished is "
                    "kept, and the same command goes on from there"
                ) from None


def _begin(devices: "Queue[str]") -> None:
    """Takes a device, and sees to it that no process outlives the one that began it."""
    global _device
    _device = devices.get()
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _measure(parcel: bytes, lease: Lease) -> remote.Found:
    return remote.measure(parcel, _device, lease)
