"""What one process of the load counts, and what several of them counted together."""

from collections.abc import Sequence
from typing import Final

import msgspec

from tensord.ipc.errors import TensordError

from .histogram import Histogram, merged

PARTS: Final = 3
"""Parts of the window whose throughput is compared: what still rises or falls is not measured yet."""


class Errors(msgspec.Struct):
    """One class of errors."""

    count: int
    fault: str
    """Who can mend it: see tensord.ipc.errors.Fault."""
    sentence: str
    """What the first of them said."""


class Tally(msgspec.Struct):
    """Counts. "Measured" are the requests that began within the window, after the warm-up."""

    sent: int = 0
    """Requests of the whole run."""
    answered: int = 0
    """Of these, by a result."""
    failed: int = 0
    """Of these, by an error, or not at all."""

    unanswered: int = 0
    """Measured, and neither result nor error came until we stopped waiting; some were perhaps never sent."""
    errors: dict[str, Errors] = {}
    """Measured, by class."""

    latency: Histogram = msgspec.field(default_factory=Histogram)
    """From the begin of a request to the last byte of its result: measured, as all that follows."""
    copy_in: Histogram = msgspec.field(default_factory=Histogram)
    """Of this: writing the inputs into the arena."""
    queue: Histogram = msgspec.field(default_factory=Histogram)
    """Of this: waiting in the daemon for its batch to be released."""
    compute: Histogram = msgspec.field(default_factory=Histogram)
    """Of this: the model's time for the whole batch."""
    elsewhere: Histogram = msgspec.field(default_factory=Histogram)
    """Of this: the rest."""
    batches: dict[int, float] = {}
    """Batches by rows. A request of 2 rows in a batch of 8 counts as a quarter of a batch."""

    late: int = 0
    """Arrivals that this process saw too late, though there was a place for them."""
    held: int = 0
    """Arrivals that had to wait for a place, because all connections had their depth in flight."""
    send_delay: Histogram = msgspec.field(default_factory=Histogram)
    """From the scheduled arrival to the begin of sending."""

    parts: list[int] = msgspec.field(default_factory=lambda: [0] * PARTS)
    """Results that came in each part of the window."""
    window_s: float = 0.0
    """Length of the window: shorter than planned if the run ended early."""
    cpu_s: float = 0.0
    """CPU time of the process within the window."""
    busy_s: float = 0.0
    """The same, and the time that it was ready to run and had no core."""
    lost: str = ""
    """Why the daemon's connections ended during the run; empty if they did not."""

    def count_error(self, error: TensordError) -> None:
        """A measured request has failed."""
        name = type(error).__name__
        known = self.errors.get(name)
        if known is None:
            self.errors[name] = Errors(1, error.fault, str(error))
        else:
            known.count += 1

    @property
    def offered(self) -> int:
        """Measured requests, whatever became of them."""
        return self.latency.count + sum(each.count for each in self.errors.values()) + self.unanswered

    @property
    def results(self) -> int:
        """Results that came within the window."""
        return sum(self.parts)


def together(tallies: Sequence[Tally]) -> Tally:
    """What all processes counted; busy_s is that of the busiest, for one at its limit bends all figures."""
    whole = Tally()
    for each in tallies:
        for name in ("sent", "answered", "failed", "unanswered", "late", "held", "cpu_s"):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        for name, errors in each.errors.items():
            known = whole.errors.setdefault(name, Errors(0, errors.fault, errors.sentence))
            known.count += errors.count
        for rows, batches in each.batches.items():
            whole.batches[rows] = whole.batches.get(rows, 0.0) + batches
        whole.parts = [sum(pair) for pair in zip(whole.parts, each.parts, strict=True)]
        whole.window_s = max(whole.window_s, each.window_s)
        whole.busy_s = max(whole.busy_s, each.busy_s)
        whole.lost = whole.lost or each.lost
    for name in ("latency", "copy_in", "queue", "compute", "elsewhere", "send_delay"):
        setattr(whole, name, merged([getattr(each, name) for each in tallies]))
    return whole
