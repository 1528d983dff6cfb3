"""The order policies by their definitions: a key for each request that waits, whoever has the lowest goes first."""

from collections import Counter
from collections.abc import Callable
from math import log2

from tensord.daemon.scheduling import ModelPolicy, Request

Key = tuple[float, ...]
"""Of a request; the last number is its place of submission, so no two have the same."""


def response_ratio(request: Request, now: int) -> float:
    """With the service time on the grid of quarter octaves."""
    service_ns = 2 ** (round(4 * log2(request.predicted_ns)) / 4)
    return 1 + (now - request.arrival_ns) / service_ns


class ReferenceFlows:
    """The levels of MLFQ by telling every quantum off, with boosts at the multiples of their period."""

    def __init__(self) -> None:
        self._used_ns: Counter[tuple[int, int]] = Counter()

    def charge(self, now: int, policy: ModelPolicy, flow: int, used_ns: int) -> None:
        self._used_ns[now // policy.mlfq_boost_ns, flow] += used_ns

    def level(self, now: int, policy: ModelPolicy, flow: int) -> int:
        used_ns = self._used_ns[now // policy.mlfq_boost_ns, flow]
        level, quantum_ns = 0, policy.mlfq_quantum_ns
        while used_ns >= quantum_ns and level < policy.mlfq_levels - 1:
            level, used_ns, quantum_ns = level + 1, used_ns - quantum_ns, 2 * quantum_ns
        return level


def preference(order: str, request: Request, now: int, level: Callable[[int], int]) -> Key:
    """The key by the order policy alone; `level` gives that of a flow."""
    match order:
        case "fcfs":
            return (request.seq,)
        case "sjf":
            return request.predicted_ns, request.seq
        case "hrrn":
            return 1 - response_ratio(request, now), request.seq
        case "mlfq":
            return level(request.flow), request.seq
        case "edf":
            return request.deadline_ns, request.seq
    raise AssertionError(order)


def place(order: str, request: Request, now: int, ageing_ns: int, level: Callable[[int], int]) -> Key:
    """The key with ageing: those that have waited long enough go first, the oldest before the others."""
    if ageing_ns and now - request.waits_since_ns >= ageing_ns:
        return -1, request.seq
    return 0, *preference(order, request, now, level)
