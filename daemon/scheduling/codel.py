"""CoDel: a queue may absorb a burst, but it may not stand.

Source: K. Nichols, V. Jacobson, "Controlling Queue Delay", ACM Queue 10 (5), 2012; the variant for requests is that of
folly (executors/Codel.h), and as in FQ-CoDel (RFC 8290) each tenant of a model has a state of its own.

A long queue is no fault: a burst fills it, and it empties. What tells a burst from a standing queue is the *minimum*
wait over an interval: as long as somebody got through quickly, the queue had been empty. Where even the minimum of the
last interval was above the target, requests that have waited for more than twice the target are refused when they come
to the front, so those behind them are answered in time. The target is never below what batching itself makes requests
wait for: the window and one batch.
"""


class CoDel:
    """The state of one tenant's queue of one model."""

    __slots__ = ("_ends_ns", "_least_ns", "standing")

    def __init__(self) -> None:
        self._ends_ns = 0
        self._least_ns = 0
        self.standing = False
        """Nobody got through quickly in the interval before this one."""

    def served(self, now: int, waited_ns: int, target_ns: int, interval_ns: int) -> None:
        """The request that waited least of those taken now had waited so long."""
        if now >= self._ends_ns:
            self.standing = self._least_ns > target_ns
            self._ends_ns = now + interval_ns
            self._least_ns = waited_ns
        elif waited_ns < self._least_ns:
            self._least_ns = waited_ns

    def emptied(self) -> None:
        """The queue was empty: the next request would not have waited at all."""
        self._least_ns = 0
        self.standing = False
