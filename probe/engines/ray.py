"""The machines of a Ray cluster.

Every lease is a task: Ray gives it to a free worker, and to another one if that dies or its node
does. Workers load the checkpoint from its path and keep it for the next lease; only sums come back.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from probe.engines import remote
from probe.engines.base import Gathered, Order, Work, in_order
from probe.errors import InputError
from probe.plan import Lease, Plan

DEATHS = 5  # of workers over one lease, after which the lease is to blame


@dataclass(frozen=True)
class RayCluster:
    """All free processors of a cluster, or all of its GPUs.

    Attributes:
        device: What each worker computes on: "cpu", or "cuda" for one GPU each.
        slots: How many leases are under way at once.
    """

    device: str
    slots: int

    @property
    def name(self) -> str:
        """See `Engine`."""
        return f"Ray on {self.device}"

    def workers(self, plan: Plan) -> int:
        """See `Engine`."""
        return self.slots

    @classmethod
    def joined(cls, address: str, device: str) -> "RayCluster":
        """The cluster at an address; "auto" finds the one that this machine belongs to.

        Raises:
            InputError: Ray is not installed, there is no cluster, or it lacks such devices.
        """
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(f"--address {address}: no Ray cluster ({reason})") from None
        kind = "GPU" if device == "cuda" else "CPU"
        slots = int(ray.cluster_resources().get(kind, 0))
        if slots < 1:
            raise InputError(f"--address {address}: the cluster has no {kind}")
        return cls(device, slots)

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """See `Engine`.

        Raises:
            InputError: Workers died over a lease again and again, or as in a worker.
        """
        ray = _ray()
        parcel = ray.put(remote.parcel_of(work, order))
        task = ray.remote(
            num_cpus=0 if self.device == "cuda" else 1,
            num_gpus=1 if self.device == "cuda" else 0,
            max_retries=DEATHS,
        )(remote.measure)

        def submit(lease: Lease) -> "Future[remote.Found]":
            future: Future[remote.Found] = task.remote(parcel, self.device, lease).future()
            return future

        try:
            for found in in_order(submit, leases, self.slots + 1):
                yield remote.gathered_of(found)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"the cluster lost a lease {DEATHS} times: {reason}") from None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'mesaprobe[ray]'") from None
    return ray
