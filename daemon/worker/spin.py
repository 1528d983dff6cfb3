"""How a worker waits: first spinning, where there is a core for it and it pays, then asleep.

A sleeping worker takes 30 to 80 µs to wake on a core that has gone idle, a spinning one none. That is most of the time
of a single request, and next to nothing for a batch of thirty: then the core is better left to the clients. Spinning
is poll(2) without a timeout, since a loop over memory would hold the interpreter's lock.
"""

import resource
import select
import time
from typing import Final

PREEMPTIONS_PER_S_MAX: Final = 50
"""More involuntary context switches than this while spinning: somebody else needs the core."""

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
        self._preemptions = 0
        self._looked_ns = 0
        self._pause_until_ns = 0

    def wait(self, poller: select.poll, timeout_ms: float) -> dict[int, int]:
        """What is readable, by descriptor; empty after `timeout_ms`."""
        if self.worthwhile():
            stop = time.monotonic_ns() + self.duration_ns
            while True:
                events = poller.poll(0)
                if events:
                    return dict(events)
                if time.monotonic_ns() >= stop:
                    break
        return dict(poller.poll(timeout_ms))

    def worthwhile(self) -> bool:
        """Whether to spin now."""
        if not self.allowed or not self.duration_ns or self.last_rows > SPIN_ROWS_MAX:
            return False
        now = time.monotonic_ns()
        if now - self._looked_ns > 1_000_000_000:
            preemptions = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            elapsed_s = (now - self._looked_ns) / 1e9
            if self._looked_ns and (preemptions - self._preemptions) / elapsed_s > PREEMPTIONS_PER_S_MAX:
                self._pause_until_ns = now + PAUSE_NS
            self._preemptions, self._looked_ns = preemptions, now
        return now >= self._pause_until_ns
