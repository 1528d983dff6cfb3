"""Serial devices in virtual time: what becomes of a stream of requests on the workers of a rig."""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from tensord.daemon.scheduling import Batch, Request

from .rig import Rig, make

Compute = Callable[[Batch[Request]], float]
"""Device time of a batch, in nanoseconds."""


class Served(NamedTuple):
    """One request of the stream."""

    request: Request
    end_ns: int | None
    """None: refused or expired."""

    @property
    def met_deadline(self) -> bool:
        return self.end_ns is not None and self.end_ns <= self.request.deadline_ns


def poisson(rate_per_ms: float, end_ns: int, seed: int, slo_ns: int = 10**15, model: int = 0) -> list[Request]:
    """Requests of one row that arrive at random, each to be answered within `slo_ns`."""
    random, now, stream = Random(seed), 0.0, []
    while (now := now + random.expovariate(rate_per_ms / 1e6)) < end_ns:
        stream.append(make(model=model, arrival_ns=int(now), deadline_ns=int(now) + slo_ns))
    return stream


def serve(rig: Rig, stream: Iterable[Request], compute: Compute) -> tuple[list[Served], list[Batch[Request]]]:
    """Drive the scheduler through the stream and to its end. A worker computes its batches one after the other."""
    scheduler = rig.scheduler
    served: list[Served] = []
    batches: list[Batch[Request]] = []
    running: list[tuple[int, int, int, Batch[Request]]] = []
    free_ns = dict.fromkeys(scheduler._workers, 0)
    todo = sorted(stream, key=lambda request: -request.arrival_ns)
    while True:
        events = [todo[-1].arrival_ns] if todo else []
        events += [running[0][0]] if running else []
        wake_ns = scheduler.wake_at()
        events += [] if wake_ns is None else [wake_ns]
        if not events:
            return served, batches
        rig.now = max(rig.now, min(events))
        while running and running[0][0] <= rig.now:
            end_ns, _, compute_ns, batch = heappop(running)
            scheduler.complete(rig.now, batch, compute_ns)
            served += [Served(request, end_ns) for request in batch.requests]
        while todo and todo[-1].arrival_ns <= rig.now:
            request = todo.pop()
            if scheduler.submit(rig.now, request) is not None:
                served.append(Served(request, None))
        released = scheduler.dispatch(rig.now)
        served += [Served(request, None) for request, _ in scheduler.expire(rig.now)]
        for batch in released:
            compute_ns = int(compute(batch))
            free_ns[batch.worker] = end_ns = max(rig.now, free_ns[batch.worker]) + compute_ns
            heappush(running, (end_ns, batch.id, compute_ns, batch))
            batches.append(batch)
