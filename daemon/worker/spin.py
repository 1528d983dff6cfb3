"""How a worker waits: first spinning, where there is a core for it and it pays, then asleep.

A sleeping worker takes 30 to 80 µs to wake on a core that has gone idle, a spinning one none. That is most of the time
of a single request, and next to nothing for a batch of thirty: then the core is better left to the clients. Spinning
is poll(2) without a timeout, since a loop over memory would hold the interpreter's lock.
"""

import select
import time
from typing import Final

ABSENT_NS: Final = 200_000
"""A look that took longer than this was interrupted by somebody who computes. A client or the front end that is woken
on this core takes some 20 µs; that costs less than a wake-up and is no reason to sleep."""

ABSENT_SHARE_MAX: Final = 0.05
"""More of the time than this interrupted so: somebody else needs the core."""

LOOK_NS: Final = 1_000_000_000
"""Over which this is judged."""

PAUSE_NS: Final = 10_000_000_000
"""How long not to spin after that."""

SPIN_ROWS_MAX: Final = 8
"""Rows of the last batch up to which spinning pays: with more, a wake-up is shared by so many."""


class Spin:
    """The waiting of one worker."""

    def __init__(self) -> None:
        self.allowed = False
        """Whether a core is left for it."""
        self.duration_ns = 0
        self.last_rows = 0
        """Rows of the batch that was answered last."""
        self._absent_ns = 0
        self._looked_ns = 0
        self._pause_until_ns = 0

    def wait(self, poller: select.poll, timeout_ms: float) -> dict[int, int]:
        """What is readable, by descriptor; empty after `timeout_ms`."""
        if self.worthwhile():
            now = time.monotonic_ns()
            stop = now + self.duration_ns
            while now < stop:
                events = poller.poll(0)
                before, now = now, time.monotonic_ns()
                if now - before > ABSENT_NS:
                    self._absent_ns += now - before
                if events:
                    return dict(events)
        return dict(poller.poll(timeout_ms))

    def worthwhile(self) -> bool:
        """Whether to spin now."""
        if not self.allowed or not self.duration_ns or self.last_rows > SPIN_ROWS_MAX:
            return False
        now = time.monotonic_ns()
        elapsed_ns = now - self._looked_ns
        if elapsed_ns > LOOK_NS:
            if self._absent_ns > ABSENT_SHARE_MAX * elapsed_ns:
                self._pause_until_ns = now + PAUSE_NS
            self._absent_ns, self._looked_ns = 0, now
        return now >= self._pause_until_ns
