"""A server in virtual time: requests arrive as given, workers compute one batch after the other."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

from tensord.daemon.scheduling import Batch, Request, Scheduler
from tensord.ipc.errors import TensordError

from .rig import FAR_NS, make

BATCH_NS = 4_000_000
"""Time of a full batch in the tests that use this."""


@dataclass
class Outcome:
    """What became of whom, and when."""

    done: list[tuple[Request, int]] = field(default_factory=list)
    refused: list[tuple[Request, TensordError]] = field(default_factory=list)
    evicted: list[tuple[Request, TensordError]] = field(default_factory=list)
    queued_most: int = 0

    def in_time(self, since_ns: int = 0) -> int:
        """Requests that came since then and were answered before their deadline."""
        return sum(request.arrival_ns >= since_ns and end_ns <= request.deadline_ns for request, end_ns in self.done)

    def admitted(self, since_ns: int = 0) -> int:
        return sum(request.arrival_ns >= since_ns for request, _ in [*self.done, *self.evicted])

    def rows(self, user: str) -> int:
        """Rows answered to a user."""
        return sum(request.rows for request, _ in self.done if request.tenant.partition("/")[0] == user)

    def p99_ns(self, tenant: str) -> int:
        latencies = sorted(end - request.arrival_ns for request, end in self.done if request.tenant == tenant)
        return latencies[len(latencies) * 99 // 100]


def serve(
    scheduler: Scheduler[Request],
    arrivals: Iterable[Request],
    compute_ns: Callable[[Batch[Request]], float],
    until_ns: int = FAR_NS,
) -> Outcome:
    """Run until all is answered, or until `until_ns`."""
    coming = sorted(arrivals, key=lambda request: request.arrival_ns, reverse=True)
    ends: list[tuple[int, int, int, Batch[Request]]] = []
    free: dict[int, int] = {}
    outcome = Outcome()
    now = 0
    while True:
        times = [max(now, wake_ns)] if (wake_ns := scheduler.wake_at()) is not None else []
        times += [coming[-1].arrival_ns] if coming else []
        times += [ends[0][0]] if ends else []
        if not times or min(times) > until_ns:
            return outcome
        now = min(times)
        while ends and ends[0][0] <= now:
            _, _, took_ns, batch = heappop(ends)
            scheduler.complete(now, batch, took_ns)
            outcome.done += [(request, now) for request in batch.requests]
        while coming and coming[-1].arrival_ns <= now:
            request = coming.pop()
            error = scheduler.submit(now, request)
            if error is not None:
                outcome.refused.append((request, error))
        outcome.queued_most = max(outcome.queued_most, scheduler.queued)
        for batch in scheduler.dispatch(now):
            took_ns = max(1, int(compute_ns(batch)))
            free[batch.worker] = max(now, free.get(batch.worker, 0)) + took_ns
            heappush(ends, (free[batch.worker], batch.id, took_ns, batch))
        outcome.evicted += scheduler.expire(now)


def poisson(seed: int, every_ns: float, count: int, patience_ns: int = FAR_NS, **fields: Any) -> list[Request]:
    """So many requests, one every `every_ns` on average."""
    random = Random(seed)
    at_ns = 0.0
    requests = []
    for _ in range(count):
        at_ns += random.expovariate(1 / every_ns)
        requests.append(make(arrival_ns=int(at_ns), deadline_ns=int(at_ns) + patience_ns, **fields))
    return requests
