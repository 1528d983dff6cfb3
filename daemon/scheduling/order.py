"""Order policies: which of one tenant's requests (of one model, bucket and priority class) goes first."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Protocol

from .lazy_queue import LazyQueue
from .request import Request


class OrderPolicy(Protocol):
    """The queue of one tenant. Taking and dropping is lazy: a request without a home is gone (see LazyQueue)."""

    def push(self, request: Request) -> None:
        """Add a request, or one that comes back after its worker's death: it gets its old place again."""

    def peek(self) -> Request | None:
        """The living request that goes first; None where there is none."""

    def key(self, request: Request) -> float:
        """What the policy sorts by, lowest first: comparable between the queues of one model."""

    def living(self) -> Iterator[Request]:
        """Each living request once, in order; used when the policy is exchanged."""

    def clear(self) -> None:
        """Drop what lazy deletion has left; only called when nothing in it is alive."""


class Fcfs(LazyQueue):
    """First come, first served: by place of submission."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(attrgetter("seq"))

    def key(self, request: Request) -> float:
        return request.seq


ORDER_POLICIES: dict[str, Callable[[], OrderPolicy]] = {"fcfs": Fcfs}
"""Name, as the knob `order` takes it, to a maker of empty queues."""
