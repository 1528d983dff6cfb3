"""The event loop in virtual time: it drives the scheduler as the front end does, with workers that only take time.

The front end is one event loop, and so a server itself: all that has come by the time it is free is one turn

    complete(…), submit(…), … → dispatch() → expire() → sleep until wake_at() or an event

that keeps it busy for a time per request and per batch. What it releases and answers in a turn leaves at the turn's
end. A batch then takes `latency_ns` there and as much back; meanwhile nobody is busy. A worker computes its batches
one after the other, in the order in which they were released to it, and needs `worker_ns` of its own for each. A
request of more rows than a batch is cut into parts, and answered when all of them have ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final, NamedTuple, TypeAlias

from tensord.ipc.errors import Cancelled, TensordError

from ..scheduling.policy import GlobalPolicy, ModelPolicy
from ..scheduling.request import Batch
from ..scheduling.scheduler import Scheduler
from ..scheduling.users import TenantLookup, own_user
from .parts import Parts, cut_request
from .request import SimulatedRequest
from .service import Service
from .sources import Source
from .tally import Tally

NEVER: Final = 2**62

Run: TypeAlias = tuple[Batch[SimulatedRequest], int, int]
"""A batch, and when its device began and ended it."""


@dataclass(frozen=True)
class Hop:
    """What the way through the daemon costs, beside device time."""

    latency_ns: int = 0
    """From the front end to the worker, and as much back, per batch."""
    request_ns: int = 0
    """The front end's own time for a request: reading, submitting, answering."""
    batch_ns: int = 0
    """The same for a batch: releasing it and taking its answer."""
    worker_ns: int = 0
    """The worker's own time for a batch, beside device time: the next one waits for that, too."""


@dataclass(frozen=True)
class SimulatedModel:
    """A model version."""

    name: str
    policy: ModelPolicy
    service: Service
    workers: Sequence[int]
    """The ids of those that have it loaded."""
    splits: bool = True
    """A request of more rows than a batch is cut; else it runs alone, as theory's queues have it."""


class Device(NamedTuple):
    """Where a worker computes."""

    name: str
    speed: float = 1.0
    """Device time is divided by it."""
    weight: float = 1.0
    """Its share of batches with the balance weighted_round_robin."""


Refused: TypeAlias = tuple[SimulatedRequest, TensordError]


class Engine:
    """One simulation. Models are numbered in the order given; worker ids are the keys of `devices`."""

    def __init__(
        self,
        models: Sequence[SimulatedModel],
        devices: Mapping[int, Device],
        sources: Sequence[Source],
        tally: Tally,
        policy: GlobalPolicy | None = None,
        hop: Hop | None = None,
        tenants: TenantLookup = own_user,
    ) -> None:
        """Requests of workload number k come from sources[k]; the same source may make several workloads."""
        self.scheduler: Scheduler[SimulatedRequest] = Scheduler(policy or GlobalPolicy(), tenants)
        self.now = 0
        self._tally = tally
        self._hop = hop or Hop()
        self._services = [model.service for model in models]
        self._batch_rows = [model.policy.max_batch if model.splits else NEVER for model in models]
        """Requests of more rows are cut, as the front end does."""
        self._devices = devices
        self._device_free_ns = dict.fromkeys(devices, 0)
        self._sources = sources
        self._events: list[tuple[int, int, SimulatedRequest | Run]] = []
        self._unique = count()
        self._wake_ns = NEVER
        self._free_ns = 0
        for worker, device in devices.items():
            self.scheduler.add_worker(worker, device.name)
            self.scheduler.set_device_weight(device.name, device.weight)
        for key, model in enumerate(models):
            self.scheduler.add_model(key, model.name, model.policy, idempotent=True)
            for worker in model.workers:
                self.scheduler.add_replica(0, worker, key)

    def run(self, until_ns: int = NEVER) -> None:
        """Until then, or until nothing is left to do."""
        for source in dict.fromkeys(self._sources):
            for request in source.first():
                self._expect(request)
        events = self._events
        while True:
            now = self._wake_ns
            if events and events[0][0] < now:
                now = events[0][0]
            if now < self._free_ns:
                now = self._free_ns
            if now >= until_ns:
                break
            self._turn(now)
        self._tally.close(min(until_ns, self.now))

    def _expect(self, request: SimulatedRequest | None) -> None:
        if request is not None:
            heappush(self._events, (request.sent_ns, next(self._unique), request))

    def _turn(self, now: int) -> None:
        """One turn of the front end."""
        self.now = now
        events, scheduler = self._events, self.scheduler
        completed: list[Run] = []
        refused: list[Refused] = []
        arrived = 0
        while events and events[0][0] <= now:
            event = heappop(events)[2]
            if isinstance(event, tuple):
                batch, begun_ns, ended_ns = event
                scheduler.complete(now, batch, ended_ns - begun_ns)
                completed.append(event)
            else:
                arrived += 1
                error = self._submit(now, event)
                if error is not None:
                    refused.append((event, error))
        batches: list[Batch[SimulatedRequest]] = []
        self._wake_ns = NEVER
        if scheduler.has_work:
            batches = scheduler.dispatch(now)
            refused += self._expire(now)
            wake_ns = scheduler.wake_at()
            if wake_ns is not None:
                assert wake_ns > now, "the scheduler wants to be woken at once, for ever"
                self._wake_ns = wake_ns
        self._free_ns = now + arrived * self._hop.request_ns + (len(batches) + len(completed)) * self._hop.batch_ns
        for batch in batches:
            self._start(batch)
        for run in completed:
            refused += self._reply(*run)
        for request, error in refused:
            source = self._sources[request.workload]
            if source.closed:
                self._expect(source.ended(request, self._free_ns, (error.retry_after_ms or 0) * 1_000_000))

    def _submit(self, now: int, request: SimulatedRequest) -> TensordError | None:
        request.arrival_ns = now
        self._expect(self._sources[request.workload].after(request))
        if request.rows > self._batch_rows[request.model]:
            error = self._submit_parts(now, cut_request(request, self.scheduler.parts(request.model, request.rows)))
        else:
            error = self.scheduler.submit(now, request)
        if error is None:
            self._tally.queued(request)
        else:
            self._tally.refuse(request, error.code, now)
        return error

    def _submit_parts(self, now: int, parts: Parts) -> TensordError | None:
        """All of them, or none: then those that had been accepted are taken back before any ran."""
        for part in parts.parts:
            error = self.scheduler.submit(now, part)
            if error is not None:
                for accepted in parts.parts:
                    self.scheduler.cancel(now, accepted)
                return error
        return None

    def _expire(self, now: int) -> list[Refused]:
        """Those that get an error now. Of a request that was cut, what waits is taken back; what runs is waited for."""
        refused: list[Refused] = []
        for request, error in self.scheduler.expire(now):
            whole = request.whole
            if whole is None:
                self._tally.drop(request, error.code, now)
                refused.append((request, error))
                continue
            parts = whole.parts
            assert parts is not None
            if parts.error is None:
                self._tally.give_up(whole, now)
            ended = parts.end(request, error)
            for part in parts.open():
                if self.scheduler.cancel(now, part):
                    ended = parts.end(part, Cancelled())
            if ended:
                refused.append(self._refuse_whole(now, whole, parts))
        return refused

    def _refuse_whole(self, now: int, whole: SimulatedRequest, parts: Parts) -> Refused:
        assert parts.error is not None
        self._tally.count_refused(parts.error.code, now)
        return whole, parts.error

    def _start(self, batch: Batch[SimulatedRequest]) -> None:
        """The batch goes to its worker, which computes it after all that it got before."""
        worker, latency_ns = batch.worker, self._hop.latency_ns
        leader = batch.requests[0]
        compute_ns = self._services[batch.model].compute_ns(
            batch.bucket, batch.rows, leader.factor, self._devices[worker].speed
        )
        begun_ns = max(self._free_ns + latency_ns, self._device_free_ns[worker])
        ended_ns = begun_ns + compute_ns
        free_ns = self._device_free_ns[worker] = ended_ns + self._hop.worker_ns
        self._tally.begin(batch, begun_ns, ended_ns)
        heappush(self._events, (free_ns + latency_ns, next(self._unique), (batch, begun_ns, ended_ns)))

    def _reply(self, batch: Batch[SimulatedRequest], begun_ns: int, ended_ns: int) -> list[Refused]:
        """Answer who is through; returns the requests of which another part has failed."""
        now = self._free_ns
        refused: list[Refused] = []
        self._tally.answer(batch, begun_ns, ended_ns, now)
        for part in batch.requests:
            request = part.whole or part
            if request.parts is not None:
                parts = request.parts
                parts.service_ns += ended_ns - begun_ns
                if not parts.end(part):
                    continue
                if parts.error is not None:
                    refused.append(self._refuse_whole(now, request, parts))
                    continue
                self._tally.answer_whole(request, parts, now)
            source = self._sources[request.workload]
            if source.closed:
                self._expect(source.ended(request, now, None))
        return refused
