"""The loop of one process of the load: one thread, one epoll, requests that begin, wait for a place, and end.

closed loop   every place begins its next request when the answer to the one before was read
open loop     arrivals are due by the schedule; one that finds no free place waits, and its latency has begun

start ──── warm-up ────▶ measured ──── window ────▶ end ──── the last answers ────▶ given up
"""

import math
import resource
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Final

import numpy as np

from tensord.ipc.client.arena import ArenaSlot
from tensord.ipc.client.call import Call
from tensord.ipc.errors import ConnectionLost, DeadlineExceeded, TensordError

from ..frontend.timer import Timer
from .connection import LoadConnection
from .tally import PARTS, Tally

LATE_NS: Final = 1_000_000
"""An arrival that is seen later than this, with a place for it, is late through the load's own fault."""

DRAIN_NS: Final = 10_000_000_000
"""How long the last answers are waited for, unless the requests' timeout is shorter."""

DRAIN_STOPPED_NS: Final = 1_000_000_000
"""The same when somebody wants it to end."""

GRACE_NS: Final = 500_000_000
"""The daemon's own answer to a request whose time is over comes a moment later."""

PROGRESS_NS: Final = 200_000_000
NEVER_NS: Final = 2**62


class Stage(Enum):
    """Where the run is."""

    WARMING = auto()
    """Requests begin, and are not measured."""
    MEASURING = auto()
    """Requests that begin are measured."""
    DRAINING = auto()
    """No request begins, except those that arrived before; the last answers come."""


class Place:
    """Room for one request in flight."""

    __slots__ = ("_answered", "_load", "call", "connection", "copy_ns", "since_ns", "slot")

    def __init__(self, load: "Load", connection: LoadConnection, slot: ArenaSlot | None) -> None:
        self.connection = connection
        self.slot = slot
        """Where its tensors lie, on the arena lane."""
        self.call: Call | None = None
        """The request in flight."""
        self.since_ns = 0
        """From when its latency counts."""
        self.copy_ns = 0
        self._load = load
        self._answered = lambda: load.answered(self)

    def begin(self, since_ns: int) -> None:
        """A request whose latency counts from `since_ns`; it is sent at the next flush."""
        connection = self.connection
        slot = self.slot
        self.since_ns = since_ns
        if slot is not None:
            started_ns = time.monotonic_ns()
            for view, array in zip(slot.inputs.values(), connection.arrays, strict=True):
                np.copyto(view, array)
            self.copy_ns = time.monotonic_ns() - started_ns
        call = self.call = connection.begin(slot, since_ns + self._load.timeout_ns)
        call.hook = self._answered
        self._load.begun(connection)
        connection.session.admit(call)


class Load:
    """The load of this process, on open connections."""

    def __init__(
        self, connections: list[LoadConnection], depth: int, timeout_ns: int, arrivals: Iterator[int] | None
    ) -> None:
        """With `depth` places on each connection. `arrivals` is None for a closed loop.

        Raises TensordError when there are no arenas for the places.
        """
        self.timeout_ns = timeout_ns
        self.tally = Tally()
        self._connections = {connection.socket.fileno(): connection for connection in connections}
        self._places = [Place(self, each, each.maybe_lease()) for _ in range(depth) for each in connections]
        """In an order that fills all connections evenly."""
        self._free: deque[Place] = deque()
        self._in_flight = 0
        self._unsent: set[LoadConnection] = set()
        self._is_open = arrivals is not None
        self._arrivals = arrivals or iter(())
        self._next_arrival_ns = NEVER_NS
        self._waiting: deque[int] = deque()
        """Arrivals without a place, the oldest first."""
        self._stage = Stage.WARMING
        self._measured_ns = self._end_ns = self._given_up_ns = NEVER_NS
        self._part_ns = 1
        self._usage_s = (0.0, 0.0)
        self._epoll = select.epoll()
        self._timer = Timer()

    # ── the run ─────────────────────────────────────────────────────────────────────────────────

    def run(self, start_ns: int, warmup_ns: int, window_ns: int, stop_fd: int, say: Callable[[Tally], None]) -> Tally:
        """From `start_ns` until the last answer is here; ends early when `stop_fd` is readable.

        `say` is told now and then what there is so far.
        """
        for fd in (self._timer.fd, stop_fd, *self._connections):
            self._epoll.register(fd, select.EPOLLIN)
        self._measured_ns = start_ns + warmup_ns
        self._end_ns = self._measured_ns + window_ns
        self._given_up_ns = self._end_ns + min(DRAIN_NS, self.timeout_ns + GRACE_NS)
        self._part_ns = math.ceil(window_ns / PARTS)
        time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
        self._begin(start_ns)
        next_say_ns = start_ns
        while self._stage is not Stage.DRAINING or self._in_flight or self._waiting:
            now = time.monotonic_ns()
            if now >= self._given_up_ns:
                break
            if now >= next_say_ns:
                say(self.tally)
                next_say_ns = now + PROGRESS_NS
            self._take_arrivals(now)
            self._pass_marks(now)
            self._flush()
            self._timer.arm(min(next_say_ns, self._next_arrival_ns, self._next_mark_ns()))
            for fd, events in self._epoll.poll():
                if fd == self._timer.fd:
                    self._timer.fired()
                elif fd == stop_fd:
                    self._epoll.unregister(stop_fd)
                    self._stop()
                else:
                    self._turn(self._connections[fd], events)
        self._count_unanswered()
        return self.tally

    def _begin(self, start_ns: int) -> None:
        if self._is_open:
            self._free.extend(self._places)
            self._arrivals = (start_ns + each_ns for each_ns in self._arrivals)
            self._next_arrival_ns = next(self._arrivals)
        else:
            for place in self._places:
                place.begin(start_ns)

    def _next_mark_ns(self) -> int:
        if self._stage is Stage.WARMING:
            return self._measured_ns
        return self._end_ns if self._stage is Stage.MEASURING else self._given_up_ns

    def _pass_marks(self, now: int) -> None:
        if self._stage is Stage.WARMING and now >= self._measured_ns:
            self._stage = Stage.MEASURING
            self._usage_s = _usage_s()
        if self._stage is Stage.MEASURING and now >= self._end_ns:
            self._close_window()

    def _close_window(self) -> None:
        """From now on nothing begins. What the process has used is that of the window, if there was one."""
        if self._stage is Stage.MEASURING:
            tally = self.tally
            tally.window_s = (self._end_ns - self._measured_ns) / 1e9
            tally.cpu_s, tally.busy_s = (
                after - before for after, before in zip(_usage_s(), self._usage_s, strict=True)
            )
        self._stage = Stage.DRAINING
        self._next_arrival_ns = NEVER_NS

    def _stop(self) -> None:
        """End early: the window, if it has not ended, and the waiting for answers."""
        now = time.monotonic_ns()
        if self._stage is not Stage.DRAINING:
            self._end_ns = now
            self._close_window()
        self._given_up_ns = min(self._given_up_ns, now + DRAIN_STOPPED_NS)

    def _lose(self, error: TensordError) -> None:
        """A connection has ended: with fewer it would be another load."""
        if not self.tally.lost:
            self.tally.lost = error.reason if isinstance(error, ConnectionLost) else str(error)
            self._stop()

    def _count_unanswered(self) -> None:
        self.tally.failed += self._in_flight
        missing = [place.since_ns for place in self._places if place.call is not None]
        self.tally.unanswered = sum(map(self._is_measured, (*missing, *self._waiting)))

    def _is_measured(self, since_ns: int) -> bool:
        return self._measured_ns <= since_ns < self._end_ns

    # ── sockets ─────────────────────────────────────────────────────────────────────────────────

    def _turn(self, connection: LoadConnection, events: int) -> None:
        if events & ~select.EPOLLOUT:
            error = connection.receive()
            if error is not None:
                self._epoll.unregister(connection.socket)
                self._unsent.discard(connection)
                self._lose(error)
            elif connection.session.closing:
                self._lose(ConnectionLost("it is shutting down"))
        if events & select.EPOLLOUT and connection.session.end_error is None:
            self._epoll.modify(connection.socket, select.EPOLLIN)
            self._unsent.add(connection)

    def _flush(self) -> None:
        for connection in self._unsent:
            if not connection.flush():
                self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        self._unsent.clear()

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def _take_arrivals(self, now: int) -> None:
        """Begin what is due, or let it wait for a place."""
        tally = self.tally
        while self._next_arrival_ns <= min(now, self._end_ns - 1):
            due_ns, self._next_arrival_ns = self._next_arrival_ns, next(self._arrivals)
            measured = self._is_measured(due_ns)
            if self._free:
                tally.late += measured and now - due_ns > LATE_NS
                self._begin_arrival(self._free.popleft(), due_ns)
            else:
                tally.held += measured
                self._waiting.append(due_ns)

    def _begin_arrival(self, place: Place, due_ns: int) -> None:
        place.begin(due_ns)
        if self._is_measured(due_ns):
            self.tally.send_delay.observe(time.monotonic_ns() - due_ns)

    def begun(self, connection: LoadConnection) -> None:
        """A request waits to be sent on this connection."""
        self._in_flight += 1
        self.tally.sent += 1
        self._unsent.add(connection)

    def answered(self, place: Place) -> None:
        """The answer to a place's request is here, or its connection has ended."""
        now = time.monotonic_ns()
        call, place.call = place.call, None
        assert call is not None
        self._in_flight -= 1
        if call.error is None:
            self._count_result(place, now)
        else:
            self.tally.failed += 1
            if self._is_measured(place.since_ns):
                self.tally.count_error(call.error)
        if place.connection.session.end_error is None:
            self._follow(place, now)

    def _follow(self, place: Place, now: int) -> None:
        """The place is free: for an arrival that waits, for the next request of a closed loop, or for later."""
        while self._waiting:
            due_ns = self._waiting.popleft()
            if now < due_ns + self.timeout_ns:
                self._begin_arrival(place, due_ns)
                return
            if self._is_measured(due_ns):
                self.tally.count_error(DeadlineExceeded("client", (now - due_ns - self.timeout_ns) / 1e6))
        if self._is_open or now >= self._end_ns:
            self._free.append(place)
        else:
            place.begin(now)

    def _count_result(self, place: Place, now: int) -> None:
        tally = self.tally
        tally.answered += 1
        if self._measured_ns <= now < self._end_ns:
            tally.parts[(now - self._measured_ns) // self._part_ns] += 1
        if not self._is_measured(place.since_ns):
            return
        session = place.connection.session
        latency_ns = now - place.since_ns
        queue_ns, compute_ns = session.queue_us * 1000, session.compute_us * 1000
        tally.latency.observe(latency_ns)
        tally.queue.observe(queue_ns)
        tally.compute.observe(compute_ns)
        elsewhere_ns = latency_ns - queue_ns - compute_ns
        if place.slot is not None:
            tally.copy_in.observe(place.copy_ns)
            elsewhere_ns -= place.copy_ns
        tally.elsewhere.observe(elsewhere_ns)
        batch_rows = session.batch_rows
        tally.batches[batch_rows] = tally.batches.get(batch_rows, 0.0) + place.connection.plan.rows / batch_rows


def _usage_s() -> tuple[float, float]:
    """Seconds that this process has computed; the same and those that it was ready to, and had no core."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = usage.ru_utime + usage.ru_stime
    try:
        waited_ns = int(Path("/proc/self/schedstat").read_text().split()[1])
    except (OSError, IndexError):  # a kernel without scheduler statistics
        waited_ns = 0
    return cpu_s, cpu_s + waited_ns / 1e9
