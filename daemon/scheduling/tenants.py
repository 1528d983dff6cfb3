"""Fair shares of one model among its users, and of a user among its names: deficit round robin in device time.

Source: M. Shreedhar, G. Varghese, "Efficient Fair Queueing using Deficit Round Robin", SIGCOMM 1995. Two
changes, neither of which alters the shares:

* A tenant may send while its deficit counter is above zero and pays a debt back in later rounds ("surplus
  round robin"), so nobody needs to know the price of a request before its batch is formed.
* The laps in which a tenant in debt would be passed over are computed, not walked: a tenant carries the number
  of the round in which it may send again, and the ring is a heap by (round, turn). That matters because a
  tenant's requests may wait in several buckets and classes, each with a ring of its own, while its account is
  one: the rings find out lazily that somebody was served elsewhere. Numbers only grow, so an entry that is out
  of date stands too early, never too late.

There are two levels of it: users and, inside of each, the names that its clients give. A tenant is one name of one
user. Both pay the price. As debt is the user's, a name invented for each request gains nothing.
"""

from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

from .codel import CoDel
from .users import User

QUANTUM_NS: Final = 100_000
"""What a tenant's deficit grows by in a round, in nanoseconds of predicted device time. One value for all buckets and
devices, since rounds must mean the same everywhere. Smaller mixes tenants more finely within a batch; larger gives
longer runs of one tenant's rows. As laps are computed, it may be far smaller than a request."""

_turns = count(1)


class Turns:
    """A place in one level of deficit round robin."""

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
        """Pay for device time, or get some back (negative); True when the turn is over."""
        self.deficit_ns -= cost_ns / self.weight
        if self.deficit_ns > 0:
            return False
        laps = int(-self.deficit_ns // QUANTUM_NS) + 1
        self.round += laps
        self.deficit_ns += laps * QUANTUM_NS
        self.turn = next(_turns)
        return True


class Share(Turns):
    """What one user has used of one model, over all buckets, priority classes and names, and what it has waiting."""

    __slots__ = ("names", "names_round", "nbytes", "requests", "rows", "user")

    def __init__(self, user: User, round_: int) -> None:
        super().__init__(round_, user.policy.weight)
        self.user = user
        self.names_round = 0
        """The latest round in which one of its names was served."""
        self.names = 0
        """Names that have requests waiting. This and the rest is only counted while the model is crowded."""
        self.requests = 0
        self.rows = 0
        self.nbytes = 0


class Account(Turns):
    """What one tenant has used of its user's share."""

    __slots__ = ("codel", "name", "rows", "share")

    def __init__(self, name: str, share: Share) -> None:
        super().__init__(share.names_round)
        self.name = name
        self.share = share
        self.rows = 0
        """Rows that wait, counted while the model is crowded."""
        self.codel = CoDel()

    def pay(self, cost_ns: float) -> bool:
        """Charge the user, and among its names this one; True when either turn is over."""
        over = self.charge(cost_ns)
        return self.share.charge(cost_ns) or over


class Entry(Protocol):
    """What has turns in a ring."""

    @property
    def turns(self) -> Turns: ...

    def is_empty(self) -> bool:
        """It has nothing to send."""

    def leave(self) -> None:
        """The ring has dropped it."""


E = TypeVar("E", bound=Entry)


class Ring(Generic[E]):
    """Those that have something to send in one bucket and class, lowest (round, turn) first."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, E]] = []

    def add(self, entry: E) -> None:
        """`entry` has requests and is not in the ring."""
        turns = entry.turns
        heappush(self._heap, (turns.round, turns.turn, entry))

    def first(self) -> E:
        """The one whose turn it is. At least one in the ring has requests."""
        heap = self._heap
        while True:
            _, turn, entry = heap[0]
            if entry.is_empty():
                heappop(heap)
                entry.leave()
            elif turn != entry.turns.turn and len(heap) > 1:
                heapreplace(heap, (entry.turns.round, entry.turns.turn, entry))
            else:
                return entry

    def is_empty(self) -> bool:
        """Nobody has anything to send; those in front who have nothing are dropped."""
        heap = self._heap
        while heap and heap[0][2].is_empty():
            heappop(heap)[2].leave()
        return not heap

    def clear(self) -> None:
        self._heap.clear()
