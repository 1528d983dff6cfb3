"""A queue in order of a key, made for keys that nearly always arrive in order, with lazy deletion.

Whoever takes or drops a request sets its `home` to None; the entry is thrown away when it comes to the
front. Keys that grow go to a deque in O(1) without any object of their own; the few that come late (a
request that runs again, a shorter deadline) go to a heap beside it. Both are swept when they have doubled,
so dead entries never outnumber the living by more than that.
"""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from .request import Request

_SWEEP_ENTRIES_MIN: Final = 64
_unique = count()


class LazyQueue:
    """Requests by ascending key; equal keys in order of insertion. A request counts while it has a home.

    The same request may be in it twice (it came back before its dead entry was dropped): both entries
    then live and die together.
    """

    __slots__ = ("_key", "_last_key", "_late", "_main", "_sweep_at")

    def __init__(self, key: Callable[[Request], int]) -> None:
        self._key = key
        self._main: deque[Request] = deque()
        self._last_key = 0
        self._late: list[tuple[int, int, Request]] = []
        self._sweep_at = _SWEEP_ENTRIES_MIN

    def push(self, request: Request) -> None:
        """Add a request; its home is set already."""
        key = self._key(request)
        main = self._main
        if key >= self._last_key or not main:
            main.append(request)
            self._last_key = key
            if len(main) >= self._sweep_at:
                self._sweep()
        else:
            heappush(self._late, (key, next(_unique), request))
            if len(self._late) >= self._sweep_at:
                self._sweep()

    def peek(self, now: int = 0) -> Request | None:  # noqa: ARG002 - for the order policies that go by it
        """The living request with the lowest key; None where there is none. Dead ones before it are dropped."""
        main = self._main
        while main and main[0].home is None:
            main.popleft()
        if not self._late:
            return main[0] if main else None
        return self._peek_late()

    def _peek_late(self) -> Request | None:
        main, late = self._main, self._late
        while late and late[0][2].home is None:
            heappop(late)
        if late and (not main or late[0][0] < self._key(main[0])):
            return late[0][2]
        return main[0] if main else None

    def living(self) -> Iterator[Request]:
        """Each living request once, in order of its key."""
        entries = {id(request): request for request in self._main if request.home is not None}
        entries.update((id(entry[2]), entry[2]) for entry in self._late if entry[2].home is not None)
        return iter(sorted(entries.values(), key=self._key))

    def clear(self) -> None:
        """Drop all entries, dead or alive."""
        self._main.clear()
        self._late.clear()

    def _sweep(self) -> None:
        """Drop the dead."""
        self._main = deque(request for request in self._main if request.home is not None)
        self._late = [entry for entry in self._late if entry[2].home is not None]
        heapify(self._late)
        self._sweep_at = 2 * max(len(self._main), len(self._late)) + _SWEEP_ENTRIES_MIN
