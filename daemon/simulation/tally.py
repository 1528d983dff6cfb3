"""What is counted while a simulation runs: all that happens within its window."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from ..scheduling.request import Batch, ReleaseReason
from .parts import Parts
from .request import SimulatedRequest

T = TypeVar("T", int, str)


@dataclass(slots=True)
class Times:
    """Of the answered requests of one workload, in nanoseconds, in order of their answers."""

    waits: "array[int]" = field(default_factory=lambda: array("q"))
    """From arrival to the start of its batch on the device; of one that was cut, of the last of its batches."""
    services: "array[int]" = field(default_factory=lambda: array("q"))
    """Device time of its batch; of one that was cut, of all its batches."""
    responses: "array[int]" = field(default_factory=lambda: array("q"))
    """From arrival to answer."""


@dataclass(slots=True)
class Usage:
    """What the answered requests of one tenant, or of one model, had; a part counts as a request."""

    requests: int = 0
    rows: int = 0
    device_ns: float = 0.0
    """A batch's device time is shared out by rows."""

    def add(self, requests: int, rows: int, device_ns: float) -> None:
        self.requests += requests
        self.rows += rows
        self.device_ns += device_ns


class Tally:
    """Counts what leaves within [from_ns, until_ns): in equilibrium that is as much, and the same, as what arrives.

    What still waits at the end is in the queue's length, and nowhere else.
    """

    def __init__(self, from_ns: int, until_ns: int) -> None:
        self.from_ns = from_ns
        self.until_ns = until_ns
        self.times: dict[int, Times] = {}
        """By workload."""
        self.tenants: dict[str, Usage] = {}
        self.models: dict[int, Usage] = {}
        self.arrived = 0
        self.answered = 0
        self.answered_rows = 0
        """Rows of all batches."""
        self.in_time = 0
        """Answered before their deadline."""
        self.refused: Counter[int] = Counter()
        """By error code."""
        self.batches: Counter[int] = Counter()
        """By rows."""
        self.released: Counter[ReleaseReason] = Counter()
        self.busy_ns: Counter[int] = Counter()
        """By worker."""
        self.waiting = 0
        """Now: accepted, and not begun."""
        self._waiting_since_ns = 0
        """Sum of when each of those began to, within the window."""
        self._waited_ns = 0

    def queued(self, request: SimulatedRequest) -> None:
        """It was accepted."""
        self.waiting += 1
        self._waiting_since_ns += max(request.sent_ns, self.from_ns)
        if self.from_ns <= request.sent_ns < self.until_ns:
            self.arrived += 1

    def _left(self, request: SimulatedRequest, at_ns: int) -> None:
        since_ns = request.sent_ns
        if since_ns < self.from_ns:
            since_ns = self.from_ns
        if at_ns > self.until_ns:
            at_ns = self.until_ns
        self.waiting -= 1
        self._waiting_since_ns -= since_ns
        if at_ns > since_ns:
            self._waited_ns += at_ns - since_ns

    def refuse(self, request: SimulatedRequest, code: int, now: int) -> None:
        """It gets an error, without having been accepted."""
        if self.from_ns <= request.sent_ns < self.until_ns:
            self.arrived += 1
        self.count_refused(code, now)

    def drop(self, request: SimulatedRequest, code: int, now: int) -> None:
        """It gets an error after it waited."""
        self._left(request, now)
        self.count_refused(code, now)

    def give_up(self, whole: SimulatedRequest, now: int) -> None:
        """A part of it failed: it waits no more, and gets its error when none of its parts runs any more."""
        self._left(whole, now)
        assert whole.parts is not None
        whole.parts.waiting = 0

    def count_refused(self, code: int, now: int) -> None:
        """An error is answered."""
        if self.from_ns <= now < self.until_ns:
            self.refused[code] += 1

    def begin(self, batch: Batch[SimulatedRequest], begun_ns: int, ended_ns: int) -> None:
        """A batch was released, and it is known when a device computes it."""
        for request in batch.requests:
            if request.whole is None:
                self._left(request, begun_ns)
            else:
                self._begin_part(request.whole, begun_ns)
        busy_ns = min(ended_ns, self.until_ns) - max(begun_ns, self.from_ns)
        if busy_ns > 0:
            self.busy_ns[batch.worker] += busy_ns

    def _begin_part(self, whole: SimulatedRequest, begun_ns: int) -> None:
        parts = whole.parts
        assert parts is not None
        if parts.waiting:
            parts.begin(begun_ns)
            if not parts.waiting:
                self._left(whole, parts.begun_ns)

    def answer(self, batch: Batch[SimulatedRequest], begun_ns: int, ended_ns: int, replied_ns: int) -> None:
        """A batch is through, and its requests have their answers, those apart that were cut."""
        if not self.from_ns <= replied_ns < self.until_ns:
            return
        requests, service_ns = batch.requests, ended_ns - begun_ns
        self.batches[batch.rows] += 1
        self.released[batch.reason] += 1
        self.answered_rows += batch.rows
        _usage(self.models, batch.model).add(len(requests), batch.rows, service_ns)
        row_ns = service_ns / batch.rows
        for request in requests:
            _usage(self.tenants, request.tenant).add(1, request.rows, row_ns * request.rows)
            if request.whole is None:
                self._answered(request, begun_ns, service_ns, replied_ns)

    def answer_whole(self, whole: SimulatedRequest, parts: Parts, replied_ns: int) -> None:
        """The last batch of a request that was cut is through."""
        if self.from_ns <= replied_ns < self.until_ns:
            self._answered(whole, parts.begun_ns, parts.service_ns, replied_ns)

    def _answered(self, request: SimulatedRequest, begun_ns: int, service_ns: int, replied_ns: int) -> None:
        times = self.times.get(request.workload)
        if times is None:
            times = self.times[request.workload] = Times()
        sent_ns = request.sent_ns
        times.waits.append(begun_ns - sent_ns)
        times.services.append(service_ns)
        times.responses.append(replied_ns - sent_ns)
        self.answered += 1
        if replied_ns <= request.deadline_ns:
            self.in_time += 1

    def close(self, now: int) -> None:
        """The simulation ended; without an end of its own, the window ends now."""
        self.until_ns = min(self.until_ns, max(now, self.from_ns + 1))

    @property
    def window_s(self) -> float:
        return (self.until_ns - self.from_ns) / 1e9

    @property
    def queue_length(self) -> float:
        """Requests that wait, on average over time."""
        waited_ns = self._waited_ns + self.waiting * self.until_ns - self._waiting_since_ns
        return waited_ns / (self.until_ns - self.from_ns)


def _usage(table: dict[T, Usage], key: T) -> Usage:
    usage = table.get(key)
    if usage is None:
        usage = table[key] = Usage()
    return usage
