"""Identical requests in flight: one of them is computed, the others wait for its answer. Pure."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..requests import InferRequest
    from .response_cache import ModelCache

_SWEEP_ENTRIES_MIN: Final = 64


class Flight:
    """Requests with the same key, none of which has its answer yet."""

    __slots__ = ("followers", "kept", "key", "leader", "looking")

    def __init__(self, kept: "ModelCache", key: bytes, leader: "InferRequest") -> None:
        self.kept = kept
        self.key = key
        self.leader: InferRequest | None = leader
        """The one that is computed; None once all have left."""
        self.followers: dict[InferRequest, None] = {}
        """Those that get its answer, in the order in which they came. Each still has its own slots and deadline."""
        self.looking = False
        """The second tier is being asked: the leader waits, too."""


class Waiting:
    """Requests that wait for an answer without being in the scheduler, by deadline."""

    __slots__ = ("_deadlines", "_next", "_requests")

    def __init__(self) -> None:
        self._requests: set[InferRequest] = set()
        self._deadlines: list[tuple[int, int, InferRequest]] = []
        """A heap; whoever has left is dropped when it comes to the front, or when most have."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: "InferRequest") -> bool:
        return request in self._requests

    def add(self, request: "InferRequest") -> None:
        """It waits."""
        self._requests.add(request)
        self._next += 1
        heappush(self._deadlines, (request.deadline_ns, self._next, request))
        if len(self._deadlines) > 2 * len(self._requests) + _SWEEP_ENTRIES_MIN:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._requests]
            heapify(self._deadlines)

    def discard(self, request: "InferRequest") -> None:
        """It waits no longer, if it did."""
        self._requests.discard(request)

    def overdue(self, now_ns: int) -> Iterator["InferRequest"]:
        """Those whose deadline has passed; each still waits, and whoever is not told to leave comes no second time."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, request = heappop(self._deadlines)
            if request in self._requests:
                yield request

    def wake_at(self) -> int | None:
        """When the next deadline passes; None: nobody waits."""
        while self._deadlines and self._deadlines[0][2] not in self._requests:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None
