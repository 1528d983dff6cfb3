"""Durations in nanoseconds, counted in buckets that are 1/512 wide: a percentile is off by 0.1 % at most.

Below 1,024 a bucket is one nanosecond. Above, each doubling has 512 of them: the position of the highest bit chooses
the doubling, the nine bits below it the bucket.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

FINE_BITS: Final = 9


def bucket_of(duration_ns: int) -> int:
    """The bucket of a duration that is not negative."""
    shift = max(duration_ns.bit_length() - FINE_BITS - 1, 0)
    return (shift << FINE_BITS) + (duration_ns >> shift)


def bounds_ns(bucket: int) -> tuple[int, int]:
    """Lower (included) and upper (excluded) bound of a bucket."""
    shift = max((bucket >> FINE_BITS) - 1, 0)
    mantissa = bucket - (shift << FINE_BITS)
    return mantissa << shift, (mantissa + 1) << shift


class Histogram(msgspec.Struct):
    """Every duration is in it, however long; it grows with their spread, not with their number."""

    buckets: dict[int, int] = {}
    """How many durations, by bucket; without those that nobody is in."""
    count: int = 0
    sum_ns: int = 0
    max_ns: int = 0

    def observe(self, duration_ns: int) -> None:
        """Count one; a negative one, which only clocks that differ can give, as zero."""
        if duration_ns < 0:
            duration_ns = 0
        shift = duration_ns.bit_length() - (FINE_BITS + 1)
        bucket = duration_ns if shift <= 0 else (shift << FINE_BITS) + (duration_ns >> shift)
        buckets = self.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum_ns += duration_ns
        if duration_ns > self.max_ns:
            self.max_ns = duration_ns

    def percentile_ns(self, fraction: float) -> float | None:
        """The duration that `fraction` of all do not exceed; None unless one or more lie beyond it.

        Of a hundred durations nobody can tell the 99.9th percentile from the maximum.
        """
        if self.count * (1 - fraction) < 1 - 1e-9:
            return None
        rank = math.ceil(fraction * self.count)
        seen = 0
        for bucket, count in sorted(self.buckets.items()):
            seen += count
            if seen >= rank:
                low, high = bounds_ns(bucket)
                return min((low + high - 1) / 2, self.max_ns)
        raise AssertionError("the buckets add up to their count")

    @property
    def mean_ns(self) -> float | None:
        """None if nothing was counted."""
        return self.sum_ns / self.count if self.count else None

    def middles_ns(self) -> Iterator[tuple[float, int]]:
        """The middle of each bucket and its count, the shortest first."""
        for bucket, count in sorted(self.buckets.items()):
            low, high = bounds_ns(bucket)
            yield (low + high) / 2, count


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them in one."""
    whole = Histogram()
    for each in histograms:
        for bucket, count in each.buckets.items():
            whole.buckets[bucket] = whole.buckets.get(bucket, 0) + count
        whole.count += each.count
        whole.sum_ns += each.sum_ns
        whole.max_ns = max(whole.max_ns, each.max_ns)
    return whole
