"""An adaptive limit of the requests inside of a model: waiting or running.

Source: Netflix concurrency-limits, Gradient2Limit.java. With `short` the latency of now and `long` its average,

    gradient = clamp(tolerance · long / short, 0.5, 1)
    limit    ← 0.8 · limit + 0.2 · (gradient · limit + allowance)

so the limit grows by a few requests as long as latency stays within `tolerance` of its average, and shrinks in
proportion when it does not. Where less than half of the limit is used, latency says nothing about it, and it stays.

The original has one flaw: under overload that lasts, the average follows the latency that the limit itself allows, so
both grow without end. Here the service time is known (cost.py), so the average counts at most as twice the latency of a
full pipeline without a queue.
"""

from typing import Final

TOLERANCE: Final = 1.5
ALLOWANCE: Final = 4.0
"""Requests that may queue beside those that the gradient allows."""
SMOOTHING: Final = 0.2
LONG: Final = 2 / 601
"""Weight of a sample in the average of latency: a window of 600 batches."""
WARM_UP: Final = 10
"""Samples of which the average is the plain mean."""


class GradientLimit:
    """The limit of one model; it learns from one sample per batch."""

    __slots__ = ("_limit", "_long_ns", "_samples")

    def __init__(self, least: int) -> None:
        self._limit = float(2 * least)
        self._long_ns = 0.0
        self._samples = 0

    @property
    def limit(self) -> int:
        """Requests that may be inside."""
        return int(self._limit)

    def learn(self, latency_ns: float, inside: int, least: int, most: int, pipeline_ns: float) -> None:
        """A batch came back; `latency_ns` is its requests' mean from arrival to completion, `inside` counts them too.

        The limit stays within `least` (what the workers can hold, so that batches still fill) and `most`; a request
        that finds no queue takes about `pipeline_ns`.
        """
        self._samples += 1
        weight = max(LONG, 1 / self._samples) if self._samples <= WARM_UP else LONG
        self._long_ns += weight * (latency_ns - self._long_ns)
        if self._long_ns > 2 * latency_ns:
            self._long_ns *= 0.95
        self._long_ns = min(self._long_ns, 2 * pipeline_ns)
        if 2 * inside >= self._limit:
            gradient = min(1.0, max(0.5, TOLERANCE * self._long_ns / latency_ns))
            self._limit += SMOOTHING * (gradient * self._limit + ALLOWANCE - self._limit)
        self._limit = min(max(self._limit, least), max(least, most))
