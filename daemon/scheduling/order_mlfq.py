"""Multilevel feedback: flows that have used little device time go before flows that have used much.

Theory
------
MLFQ favours short jobs without knowing them beforehand: a job starts on the highest level, and one that uses up its
quantum there sinks to the next, where the quantum is twice as long. From time to time a boost lifts all, so that the
heavy ones do not starve and a job that has changed is judged anew. Source: F. J. Corbató, M. Merwin-Daggett,
R. C. Daley, "An Experimental Time-Sharing System", SJCC 1962; R. and A. Arpaci-Dusseau, "Operating Systems: Three Easy
Pieces", chapter 8, for the boost and for counting use over all turns, so that nobody can game the quantum.

Requests are not preempted. What is fed back is therefore the use of a *flow*: a connection or a session, of which many
requests come one behind the other. When a batch completes, each request charges its flow with its share, by rows, of
the device time that was measured. With a quantum q on the highest level, a flow that has used U since the last boost
stands on level

    ⌊log₂(U / q + 1)⌋        that is, on 0 up to q, on 1 up to q + 2q, on 2 up to q + 2q + 4q, …, on the lowest after.

So one number per flow is the whole state, time used beyond a quantum counts on the next level, and other quanta take
effect as if they had always been there. The lower level number goes first, and within a level first come, first served.

What it costs
-------------
Each queue keeps a line per flow, and per level a heap of the flows that wait, by their first request. A flow that
sinks does so in one place (Flows); its entry in a heap moves when it comes to the top. Thus a sinking costs each queue
one move, however many of the flow's requests wait. The boost forgets what was used, in one stroke; a queue then
lifts the entries that had moved down, which costs each as much as its sinking did.
"""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from operator import attrgetter
from typing import ClassVar, Final

from .policy import ModelPolicy
from .request import Request

FLOWS_MAX: Final = 65_536
"""Flows of a model that are remembered between two boosts; one more brings the next boost forward."""

_SWEEP_ENTRIES_MIN: Final = 64
_unique = count()


class Flows:
    """What the flows of one model have used since the last boost; shared by all its queues."""

    __slots__ = ("_boost_ns", "_boosted_ns", "_quantum_ns", "_used_ns", "levels", "version")

    def __init__(self, policy: ModelPolicy) -> None:
        self._used_ns: dict[int, int] = {}
        """Measured device time by flow; who is not in it has used nothing."""
        self._boosted_ns = 0
        """When the last boost was due."""
        self.version = 0
        """Grows whenever a flow may have risen. Between two versions flows only sink."""
        self.obey(policy)

    def obey(self, policy: ModelPolicy) -> None:
        """Use other levels, quanta and boosts from now on. What was used is kept."""
        self.levels = policy.mlfq_levels
        self._quantum_ns = policy.mlfq_quantum_ns
        self._boost_ns = policy.mlfq_boost_ns
        self.version += 1

    def level(self, flow: int) -> int:
        """0 is the highest."""
        used_ns = self._used_ns.get(flow)
        if used_ns is None:
            return 0
        return min((used_ns // self._quantum_ns + 1).bit_length(), self.levels) - 1

    def charge(self, now: int, requests: Sequence[Request], device_ns: int) -> None:
        """A batch of these requests took so much device time."""
        self.advance(now)
        used_ns, rows = self._used_ns, sum([request.rows for request in requests])
        for request in requests:
            used_ns[request.flow] = used_ns.get(request.flow, 0) + device_ns * request.rows // rows
        if len(used_ns) > FLOWS_MAX:
            self._boost()

    def advance(self, now: int) -> None:
        """Boost if it is time."""
        elapsed_ns = now - self._boosted_ns
        if elapsed_ns >= self._boost_ns:
            self._boosted_ns = now - elapsed_ns % self._boost_ns
            self._boost()

    def _boost(self) -> None:
        if self._used_ns:
            self._used_ns = {}
            self.version += 1


Entry = tuple[int, int, int]
"""Of a line in a heap: place of submission, a number that makes the entry unique, and the flow."""


class Line:
    """The requests of one flow in one queue."""

    __slots__ = ("listed", "requests")

    def __init__(self) -> None:
        self.requests: list[tuple[int, int, Request]] = []
        """A heap by place of submission; a number makes entries unique, as a request has the place of the one that it
        replaced. The same request may be in it twice, as in LazyQueue."""
        self.listed: Entry
        """Its entry in a heap, not behind its first request. Any other is void."""


class MultilevelFeedback:
    """The flow on the highest level first, then by place of submission."""

    __slots__ = ("_entries", "_flows", "_heaps", "_lines", "_sweep_at", "_version")
    by_age: ClassVar = False

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._version = flows.version
        self._lines: dict[int, Line] = {}
        self._heaps: list[list[Entry]] = [[] for _ in range(flows.levels)]
        """Each line that is not empty, on the level of its flow or, if that has sunk since, on a higher one."""
        self._entries = 0
        """Requests in all lines, dead or alive."""
        self._sweep_at = _SWEEP_ENTRIES_MIN

    def push(self, request: Request) -> None:
        if self._version != self._flows.version:
            self._relist()
        if self._entries >= self._sweep_at:
            self._sweep()
        flow, seq = request.flow, request.seq
        line = self._lines.get(flow)
        if line is None:
            line = self._lines[flow] = Line()
        if not line.requests or seq < line.listed[0]:
            line.listed = (seq, next(_unique), flow)
            heappush(self._heaps[self._flows.level(flow)], line.listed)
        heappush(line.requests, (seq, next(_unique), request))
        self._entries += 1

    def peek(self, now: int) -> Request | None:
        flows = self._flows
        flows.advance(now)
        if self._version != flows.version:
            self._relist()
        for level, heap in enumerate(self._heaps):
            while heap:
                entry = heap[0]
                seq, _, flow = entry
                line = self._lines.get(flow)
                if line is None or entry != line.listed:
                    heappop(heap)
                    continue
                first = self._first(flow, line)
                if first is None:
                    heappop(heap)
                    continue
                place = flows.level(flow)
                if first.seq == seq and place == level:
                    return first
                line.listed = (first.seq, next(_unique), flow)
                if place == level:
                    heapreplace(heap, line.listed)
                else:
                    heappop(heap)
                    heappush(self._heaps[place], line.listed)
        return None

    def _first(self, flow: int, line: Line) -> Request | None:
        """The first living request of a line; the dead before it are dropped, and so is an empty line."""
        requests = line.requests
        while requests:
            first = requests[0][2]
            if first.home is not None:
                return first
            heappop(requests)
            self._entries -= 1
        del self._lines[flow]
        return None

    def key(self, request: Request, now: int) -> float:
        self._flows.advance(now)
        return self._flows.level(request.flow)

    def living(self) -> Iterable[Request]:
        entries = (entry for line in self._lines.values() for entry in line.requests)
        return {request.seq: request for *_, request in entries if request.home is not None}.values()

    def clear(self) -> None:
        self._lines.clear()
        self._heaps = [[] for _ in range(self._flows.levels)]
        self._version = self._flows.version
        self._entries = 0

    def _relist(self) -> None:
        """Flows may have risen: list those that had sunk where they belong now."""
        top, *lower = self._heaps
        self._heaps = [top, *([] for _ in range(self._flows.levels - 1))]
        for heap in lower:
            for entry in heap:
                heappush(self._heaps[self._flows.level(entry[2])], entry)
        self._version = self._flows.version

    def _sweep(self) -> None:
        """Drop the dead."""
        living = sorted(self.living(), key=attrgetter("seq"))
        self.clear()
        self._sweep_at = 2 * len(living) + _SWEEP_ENTRIES_MIN
        for request in living:
            self.push(request)
