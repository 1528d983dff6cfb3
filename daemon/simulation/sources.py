"""Where requests come from: open loops, whatever happens; closed loops, when an answer was there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from .request import SimulatedRequest
from .shapes import Shape
from .workload import Arrivals, Workload, arrivals_ns, draws, think_times_ns

PATIENCE_NS: Final = 1_000_000
"""A client of a closed loop that was refused waits at least so long, or it would ask again at the same instant."""


class Source(Protocol):
    """Makes requests. The engine asks for one after the other, so that few are in memory."""

    closed: bool
    """Whether an answer makes its client send another request; ended() is only called where it does."""

    def first(self) -> Iterable[SimulatedRequest]:
        """What is under way when time begins."""

    def after(self, request: SimulatedRequest) -> SimulatedRequest | None:
        """`request`, of this source, has arrived: what comes next, whatever becomes of it."""

    def ended(self, request: SimulatedRequest, now: int, retry_ns: int | None) -> SimulatedRequest | None:
        """`request` got its answer now, or an error that says when to try again: what its client sends next."""


class OpenSource:
    """Requests that come whatever happens, in order of `sent_ns`."""

    closed = False

    def __init__(self, requests: Iterator[SimulatedRequest]) -> None:
        self._requests = requests

    def first(self) -> Iterable[SimulatedRequest]:
        request = next(self._requests, None)
        return [] if request is None else [request]

    def after(self, request: SimulatedRequest) -> SimulatedRequest | None:  # noqa: ARG002
        return next(self._requests, None)

    def ended(self, request: SimulatedRequest, now: int, retry_ns: int | None) -> SimulatedRequest | None:  # noqa: ARG002
        return None


class ClosedSource:
    """Clients that wait for their answer, think, and ask again. They do not begin all at once, but after a thought."""

    closed = True

    def __init__(self, clients: int, make: Callable[[int, int], SimulatedRequest], think_ns: Iterator[int]) -> None:
        self._clients = clients
        self._make = make
        self._think_ns = think_ns

    def first(self) -> Iterable[SimulatedRequest]:
        return [self._make(next(self._think_ns), client) for client in range(1, self._clients + 1)]

    def after(self, request: SimulatedRequest) -> SimulatedRequest | None:  # noqa: ARG002
        return None

    def ended(self, request: SimulatedRequest, now: int, retry_ns: int | None) -> SimulatedRequest | None:
        pause_ns = next(self._think_ns)
        if retry_ns is not None:
            pause_ns = max(pause_ns, retry_ns, PATIENCE_NS)
        return self._make(now + pause_ns, request.flow)


def source_of(number: int, workload: Workload, shape: Shape, seed: Sequence[int]) -> Source:
    """The source of workload `number`; its service times have `shape`."""
    drawn = draws(workload, shape, (*seed, number))
    model, deadline_ns, row_bytes = workload.model, workload.deadline_ns, workload.row_bytes

    def make(sent_ns: int, flow: int) -> SimulatedRequest:
        draw = next(drawn)
        return SimulatedRequest(
            number, model, draw, sent_ns, sent_ns + deadline_ns,
            flow=flow, nbytes=draw[0] * row_bytes, latest=workload.latest,
        )  # fmt: skip

    if workload.arrivals is Arrivals.CLOSED:
        return ClosedSource(workload.clients, make, think_times_ns(workload, (*seed, number)))
    return OpenSource(make(sent_ns, number + 1) for sent_ns in arrivals_ns(workload, (*seed, number)))
