"""Fair shares of one model among its tenants: deficit round robin in predicted device time.

Source: M. Shreedhar, G. Varghese, "Efficient Fair Queueing using Deficit Round Robin", SIGCOMM 1995. Two
changes, neither of which alters the shares:

* A tenant may send while its deficit counter is above zero and pays a debt back in later rounds ("surplus
  round robin"), so nobody needs to know the price of a request before its batch is formed.
* The laps in which a tenant in debt would be passed over are computed, not walked: a tenant carries the number
  of the round in which it may send again, and the ring is a heap by (round, turn). That matters because a
  tenant's requests may wait in several buckets and classes, each with a ring of its own, while its account is
  one: the rings find out lazily that somebody was served elsewhere. Numbers only grow, so an entry that is out
  of date stands too early, never too late.
"""

from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .queues import TenantQueue

QUANTUM_NS: Final = 100_000
"""What a tenant's deficit grows by in a round, in nanoseconds of predicted device time. One value for all buckets and
devices, since rounds must mean the same everywhere. Smaller mixes tenants more finely within a batch; larger gives
longer runs of one tenant's rows. As laps are computed, it may be far smaller than a request."""

_turns = count(1)


class Account:
    """What one tenant has used of one model, over all buckets and priority classes."""

    __slots__ = ("deficit_ns", "round", "turn", "weight")

    def __init__(self, round_: int, weight: float = 1.0) -> None:
        self.round = round_
        """The round in which it may send next."""
        self.turn = next(_turns)
        """Its place within the round; a new one for every round, so it also tells whether an entry is current."""
        self.deficit_ns = 0.0
        """Predicted device time, divided by the weight, that it may still use in this round."""
        self.weight = weight

    def join(self, round_: int) -> None:
        """It has something to send again, while the others are in `round_`: credit is lost, debt is kept."""
        if self.round < round_:
            self.round = round_
            self.turn = next(_turns)
            self.deficit_ns = 0.0

    def charge(self, cost_ns: float) -> bool:
        """Pay for device time, or get some back (negative); True when the tenant's turn is over."""
        self.deficit_ns -= cost_ns / self.weight
        if self.deficit_ns > 0:
            return False
        laps = int(-self.deficit_ns // QUANTUM_NS) + 1
        self.round += laps
        self.deficit_ns += laps * QUANTUM_NS
        self.turn = next(_turns)
        return True


class Ring:
    """The tenants that have something to send in one bucket and class, lowest (round, turn) first."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, TenantQueue]] = []

    def add(self, tenant: "TenantQueue") -> None:
        """`tenant` has requests and is not in the ring."""
        heappush(self._heap, (tenant.account.round, tenant.account.turn, tenant))

    def first(self) -> "TenantQueue":
        """The tenant whose turn it is. At least one tenant in the ring has requests."""
        heap = self._heap
        while True:
            _, turn, tenant = heap[0]
            if not tenant.count:
                heappop(heap)
                tenant.leave()
            elif turn != tenant.account.turn and len(heap) > 1:
                heapreplace(heap, (tenant.account.round, tenant.account.turn, tenant))
            else:
                return tenant

    def clear(self) -> None:
        self._heap.clear()
