"""How many rows a batch may have so that its requests are answered in time: additive increase, multiplicative decrease.

Source: D. Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017, section 4.3.1: the
largest batch grows by a fixed amount as long as the target is met, and is cut by a tenth when it is missed, so it
stays near the largest size that meets the target, and follows a device that changes.

Clipper's latency is that of the batch alone. Here it is *latency* = wait + service: from the arrival of the oldest
request to the release, and from there to the completion (earlier batches of the worker included). Three changes make
that stable:

* A miss by waiting alone, with wait > service, is no fault of the size: a queue stands, smaller batches would make it
  longer, and only larger ones may drain it. There the service alone is held against the target.
* Only a batch that the size limited speaks for growing: three rows, because no more waited, prove nothing.
* After a cut the batches released before it say nothing about the new size: one cut per round, as in TCP.
"""

from typing import Final

GROWTH_ROWS: Final = 1.0
"""Added for each batch that met the target."""

CUT: Final = 0.9
"""The factor for one that missed it (Clipper: a backoff by 10 %)."""


class AdaptiveRows:
    """The largest batch, between 1 and `rows_max`."""

    __slots__ = ("_cut_ns", "_rows", "rows_max", "target_ns")

    def __init__(self, rows: float, rows_max: int, target_ns: int) -> None:
        """It starts with `rows`. `rows_max` and `target_ns` may be changed at any time."""
        self.rows_max = rows_max
        self.target_ns = target_ns
        self._rows = max(rows, 1.0)
        self._cut_ns = -1

    @property
    def rows(self) -> int:
        """Rows of the next batch at most."""
        return min(int(self._rows), self.rows_max)

    def learn(self, now: int, arrival_ns: int, released_ns: int, *, full: bool) -> None:
        """A batch is through; its oldest request came at `arrival_ns`. `full`: the size limited it."""
        if released_ns < self._cut_ns:
            return
        wait_ns, service_ns = released_ns - arrival_ns, now - released_ns
        latency_ns = service_ns if wait_ns > service_ns else wait_ns + service_ns
        if latency_ns > self.target_ns:
            if full or service_ns > self.target_ns:
                self._rows = max(CUT * min(self._rows, self.rows_max), 1.0)
                self._cut_ns = now
        elif full:
            self._rows = min(self._rows + GROWTH_ROWS, float(self.rows_max))
