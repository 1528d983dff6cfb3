"""How long a batch computes."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .shapes import Shape


@dataclass(frozen=True)
class Line:
    """t(rows) = fixed + row · rows, on a device of speed 1."""

    fixed_ns: float
    row_ns: float

    def ns(self, rows: int) -> float:
        return self.fixed_ns + self.row_ns * rows


@dataclass(frozen=True)
class Service:
    """One model's device time.

    Each request brings a factor, drawn from `shape` when it is made. A batch takes what its line says, times the
    factor of the request that leads it. So a request that runs alone has a service time of its own, whatever the
    order in which it is served, and a batch varies as much as a request does.
    """

    line: Line
    buckets: Mapping[Hashable, Line] = field(default_factory=dict)
    """Lines of buckets that have one of their own."""
    shape: Shape = field(default_factory=Shape)

    def compute_ns(self, bucket: Hashable, rows: int, factor: float, speed: float = 1.0) -> int:
        """Device time of a batch; at least 1."""
        line = self.buckets.get(bucket, self.line)
        return max(1, round(line.ns(rows) * factor / speed))
