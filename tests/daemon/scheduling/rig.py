"""A scheduler in virtual time, and short ways to speak to it."""

from collections.abc import Hashable
from typing import Any

from tensord.daemon.scheduling import Batch, GlobalPolicy, ModelPolicy, Request, Scheduler, TenantPolicy
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.order import Fcfs
from tensord.daemon.scheduling.queues import BucketQueue, TenantQueue
from tensord.daemon.scheduling.tenants import Account, Share
from tensord.daemon.scheduling.users import User

MS = 1_000_000
FAR_NS = 10**15


def make(
    *,
    model: int = 0,
    bucket: Hashable = "b",
    tenant: str = "t",
    priority: int = 1,
    rows: int = 1,
    arrival_ns: int = 0,
    deadline_ns: int = FAR_NS,
    session: int = 0,
    flow: int = 0,
    nbytes: int = 0,
    latest: bool = False,
) -> Request:
    """A request whose fields stay out of the way unless they are given."""
    return Request(
        model=model,
        bucket=bucket,
        tenant=tenant,
        priority=priority,
        rows=rows,
        arrival_ns=arrival_ns,
        deadline_ns=deadline_ns,
        session=session,
        flow=flow,
        nbytes=nbytes,
        latest=latest,
    )


def tenant_queue() -> TenantQueue:
    """A tenant's queue by itself: a home for requests."""
    level = BucketQueue(ModelQueue(0, "m0", ModelPolicy(), idempotent=True), "b").levels[1]
    return TenantQueue(level, "t", Account("t", Share(User("t", TenantPolicy()), 0)), Fcfs())


class Rig:
    """A scheduler and the time. Model `key` is called "m<key>"; worker 1 is there from the start."""

    def __init__(self) -> None:
        self.now = 0
        self.scheduler: Scheduler[Request] = Scheduler(GlobalPolicy(ageing_ns=0))
        self.scheduler.add_worker(1, "cpu:0")

    def add_workers(self, *worker_ids: int) -> None:
        """Worker n is on "cpu:n-1", as worker 1 is."""
        for worker_id in worker_ids:
            self.scheduler.add_worker(worker_id, f"cpu:{worker_id - 1}")

    def model(self, key: int = 0, *, workers: tuple[int, ...] = (1,), idempotent: bool = True, **policy: Any) -> None:
        self.scheduler.add_model(key, f"m{key}", self.policy(**policy), idempotent=idempotent)
        for worker_id in workers:
            self.scheduler.add_replica(self.now, worker_id, key)

    def set_policy(self, key: int = 0, **policy: Any) -> None:
        self.scheduler.set_policy(key, self.policy(**policy))

    @staticmethod
    def policy(**policy: Any) -> ModelPolicy:
        """One that lets everybody in, and shares nothing out, unless it is given."""
        return ModelPolicy(**{"queue_rows_max": 10**9, "tenant_queue_percent": 100, "deadline_check": False, **policy})

    def expired(self) -> list[Request]:
        """Whom expire() returns now."""
        return [request for request, _ in self.scheduler.expire(self.now)]

    def submit(self, *requests: Request) -> None:
        for request in requests:
            request.arrival_ns = self.now
            assert self.scheduler.submit(self.now, request) is None

    def dispatch(self) -> list[Batch[Request]]:
        return self.scheduler.dispatch(self.now)

    def only(self) -> Batch[Request]:
        (batch,) = self.dispatch()
        return batch

    def complete(self, batch: Batch[Request], compute_ns: int = MS, *, failed: bool = False) -> None:
        self.scheduler.complete(self.now, batch, compute_ns, failed=failed)

    def run_all(self, compute_ns: int = MS) -> list[Batch[Request]]:
        """Run until nothing is left; the batches in order of release."""
        released: list[Batch[Request]] = []
        pending = self.dispatch()
        while pending:
            released += pending
            for batch in pending:
                self.now += compute_ns
                self.complete(batch, compute_ns)
            pending = self.dispatch()
        return released
