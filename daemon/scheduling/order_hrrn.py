"""Highest response ratio next: whoever has waited longest for its size goes first.

Theory
------
The ratio (wait + service) / service is what a request's response time would be, in units of its service time, if it
started now. It begins at 1 and grows with time, faster for short requests: they overtake, but a long one gets its turn
after a wait in proportion to its length. Source: P. Brinch Hansen, "Short-Term Scheduling in Multiprogramming
Systems", SOSP 1971; "An Analysis of Response Ratio Scheduling", IFIP Congress 1971.

The ratios of two requests cross as time goes by, so no fixed key sorts them. But among requests of equal service time
the oldest always has the highest ratio. Requests therefore stand in one FCFS queue per class of service time, on a
grid of quarter octaves, and only the heads are compared.

This is HRRN exactly, for service times rounded to the grid. A rounded time is off by at most a factor of 2^(1/8), about
9 %, so nobody is passed over by a request whose true wait / service is less than 2^(-1/4), about 84 %, of its own:
finer than any prediction. A peek costs a look at each class that somebody waits in, seldom more than ten, whatever the
length of the queue.
"""

from collections.abc import Iterable
from math import log2
from operator import attrgetter
from typing import ClassVar, Final

from .lazy_queue import LazyQueue
from .request import Request

CLASSES_PER_OCTAVE: Final = 4

_by_seq = attrgetter("seq")
_SERVICE_NS: Final[tuple[float, ...]] = tuple(
    2.0 ** (number / CLASSES_PER_OCTAVE) for number in range(64 * CLASSES_PER_OCTAVE + 1)
)
"""The service time that a class stands for."""


def service_class(predicted_ns: int) -> int:
    """The class of requests that are predicted to take so long."""
    return round(CLASSES_PER_OCTAVE * log2(predicted_ns)) if predicted_ns > 1 else 0


class HighestResponseRatioNext:
    """The highest (wait + service) / service first."""

    __slots__ = ("_lines",)
    by_age: ClassVar = False

    def __init__(self) -> None:
        self._lines: dict[int, LazyQueue] = {}
        """The FCFS queues of the classes of service time, those only in which somebody waits, or has just waited."""

    def push(self, request: Request) -> None:
        number = service_class(request.predicted_ns)
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = LazyQueue(_by_seq)
        line.push(request)

    def peek(self, now: int) -> Request | None:
        best: Request | None = None
        best_key = 0.0
        empty: list[int] = []
        for number, line in self._lines.items():
            head = line.peek()
            if head is None:
                empty.append(number)
                continue
            key = (head.arrival_ns - now) / _SERVICE_NS[number]
            if best is None or key < best_key or (key == best_key and head.seq < best.seq):
                best, best_key = head, key
        for number in empty:
            del self._lines[number]
        return best

    def key(self, request: Request, now: int) -> float:
        """1 − ratio."""
        return (request.arrival_ns - now) / _SERVICE_NS[service_class(request.predicted_ns)]

    def living(self) -> Iterable[Request]:
        return [request for line in self._lines.values() for request in line.living()]

    def clear(self) -> None:
        self._lines.clear()
