"""Order policies: which of one tenant's requests (of one model, bucket and priority class) goes first.

Theory
------
The three here sort by a number that a request has for good, so a queue of them is a queue by that number; ties go
by place of submission.

    fcfs    place of submission. Fair and blind; the least variance of the wait among orders that do not know
            the service time.
    sjf     shortest job first, by the predicted device time of the request, which is fixed when it is queued. The
            least mean wait of all orders without preemption (Smith, "Various optimizers for single-stage
            production", 1956; Kleinrock, Queueing Systems II, §3.6). A long job may wait for ever.
    edf     earliest deadline first. Meets all deadlines where any order of jobs that are all there can (Jackson,
            1955; Liu & Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment",
            JACM 1973). Under overload it may miss nearly all.

The two others change as time goes by:

    hrrn    order_hrrn.py
    mlfq    order_mlfq.py

Priority classes stand above all of them (queues.py), and so does ageing: a request that has waited long goes before
what its order policy would prefer (TenantQueue), so that nothing starves.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import ClassVar, Final, Protocol

from .lazy_queue import LazyQueue
from .order_hrrn import HighestResponseRatioNext
from .order_mlfq import Flows, MultilevelFeedback
from .request import Request

_SEQ_BITS: Final = 64


class OrderPolicy(Protocol):
    """The queue of one tenant. Taking and dropping is lazy: a request without a home is gone (see LazyQueue)."""

    by_age: ClassVar[bool]
    """Whether the oldest goes first whatever happens, so that ageing changes nothing."""

    def push(self, request: Request) -> None:
        """Add a request, or one that comes back after its worker's death: it gets its old place again."""

    def peek(self, now: int) -> Request | None:
        """The living request that goes first; None where there is none."""

    def key(self, request: Request, now: int) -> float:
        """What the policy sorts by, lowest first, then by `seq`: comparable between the queues of one model."""

    def living(self) -> Iterable[Request]:
        """Each living request once; used when the policy is exchanged."""

    def clear(self) -> None:
        """Drop what lazy deletion has left; only called when nothing in it is alive."""


class Fcfs(LazyQueue):
    """First come, first served: by place of submission."""

    __slots__ = ()
    by_age: ClassVar = True

    def __init__(self) -> None:
        super().__init__(attrgetter("seq"))

    def key(self, request: Request, now: int) -> float:  # noqa: ARG002 - the protocol's
        return request.seq


class ShortestJobFirst(LazyQueue):
    """The shortest predicted device time first."""

    __slots__ = ()
    by_age: ClassVar = False

    def __init__(self) -> None:
        super().__init__(lambda request: request.predicted_ns << _SEQ_BITS | request.seq)

    def key(self, request: Request, now: int) -> float:  # noqa: ARG002 - the protocol's
        return request.predicted_ns


class EarliestDeadlineFirst(LazyQueue):
    """The earliest deadline first."""

    __slots__ = ()
    by_age: ClassVar = False

    def __init__(self) -> None:
        super().__init__(lambda request: request.deadline_ns << _SEQ_BITS | request.seq)

    def key(self, request: Request, now: int) -> float:  # noqa: ARG002 - the protocol's
        return request.deadline_ns


ORDER_POLICIES: dict[str, Callable[[Flows], OrderPolicy]] = {
    "fcfs": lambda _: Fcfs(),
    "sjf": lambda _: ShortestJobFirst(),
    "hrrn": lambda _: HighestResponseRatioNext(),
    "mlfq": MultilevelFeedback,
    "edf": lambda _: EarliestDeadlineFirst(),
}
"""Name, as the knob `order` takes it, to a maker of empty queues; all queues of a model are given the same flows."""

BY_SERVICE_TIME: Final = frozenset({"sjf", "hrrn"})
"""The orders that need to know what a request will take before it is pushed."""
