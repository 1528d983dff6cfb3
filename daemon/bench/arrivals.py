"""When requests arrive in an open loop: one schedule for the whole load, of which each process takes its share."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from .plan import Arrivals

CHUNK: Final = 4_096
"""Arrivals that are drawn at once."""


def schedule(rate_per_s: float, arrivals: Arrivals, seed: int, share: range, clients: int) -> Iterator[int]:
    """Arrivals in nanoseconds from the start, in order, without end.

    Arrival k is client k % clients's; those of the clients in `share` are returned. So the whole load does not depend
    on how many processes make it.
    """
    gap_ns = 1e9 / rate_per_s
    random = np.random.default_rng(seed)
    before_ns = 0.0
    for first in range(0, 2**62, CHUNK):
        numbers = np.arange(first, first + CHUNK)
        if arrivals is Arrivals.CONSTANT:
            times = numbers * gap_ns
        else:
            times = before_ns + random.exponential(gap_ns, CHUNK).cumsum()
            before_ns = float(times[-1])
        client = numbers % clients
        own = times[(client >= share.start) & (client < share.stop)]
        yield from own.astype(np.int64).tolist()
