"""Threads of this process, each with its own copies of the models."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import local

from probe.engines.base import Gathered, Order, Work, Worker, in_order
from probe.plan import Lease, Plan
from probe.threads import one_thread


class Threads:
    """As many threads as the plan has workers; torch computes with one thread in each."""

    name = "local"

    def workers(self, plan: Plan) -> int:
        """See `Engine`."""
        return plan.workers

    def gather(self, work: Work, leases: Sequence[Lease], order: Order) -> Iterator[Gathered]:
        """See `Engine`."""
        own = local()

        def measure(lease: Lease) -> Gathered:
            if not hasattr(own, "worker"):
                own.worker = work.worker.copy()
            worker: Worker = own.worker
            return worker.measure(lease, order)

        workers = self.workers(work.worker.plan)
        with one_thread(), ThreadPoolExecutor(workers) as pool:
            yield from in_order(lambda lease: pool.submit(measure, lease), leases, workers + 1)
