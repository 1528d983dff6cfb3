"""How long a batch takes, learned while serving: t(rows) ≈ a + b·rows per model, bucket and device."""

from collections.abc import Hashable
from typing import Final

FORGETTING: Final = 0.97
"""Weight of a sample relative to the next one: about the last 33 batches count."""

OUTLIER_FACTOR: Final = 8.0
"""A sample counts as at most so many times the prediction: one page fault must not look like a slow model, and
a model that really became slow is followed within a few batches."""

TRUSTED_SAMPLES: Final = 4.0
"""Weight of samples below which nothing is an outlier: the prior may be wrong by any factor."""

LINES_MAX: Final = 1024
"""Pairs of bucket and device remembered per model; beyond it the pair learned first starts from the prior again."""

_PRIOR_FIXED_NS: Final = 200_000.0
_PRIOR_ROW_NS: Final = 20_000.0


class LinearCost:
    """Least squares with exponential forgetting for a ≥ 0, b ≥ 0.

    Until the batches differ in size, a and b cannot be told apart: the line then keeps its proportions and is
    scaled through the mean. A fit with b < 0 becomes a constant, one with a < 0 a line through the origin.
    """

    __slots__ = ("_weight", "_x", "_xx", "_xy", "_y", "fixed_ns", "row_ns")

    def __init__(self, prior: "LinearCost | None" = None) -> None:
        self.fixed_ns: float = prior.fixed_ns if prior else _PRIOR_FIXED_NS
        """a: device time of a batch whatever its size, in nanoseconds."""
        self.row_ns: float = prior.row_ns if prior else _PRIOR_ROW_NS
        """b: device time per row, in nanoseconds."""
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def predicted_ns(self, rows: int) -> int:
        """Device time of a batch of `rows`, in nanoseconds; at least 1."""
        return int(self.fixed_ns + self.row_ns * rows) + 1

    def learn(self, rows: int, compute_ns: int) -> None:
        """A batch of `rows` took `compute_ns` (above 0) of device time."""
        sample_ns = float(compute_ns)
        if self._weight >= TRUSTED_SAMPLES:
            sample_ns = min(sample_ns, OUTLIER_FACTOR * self.predicted_ns(rows))
        self._weight = FORGETTING * self._weight + 1.0
        self._x = FORGETTING * self._x + rows
        self._y = FORGETTING * self._y + sample_ns
        self._xx = FORGETTING * self._xx + rows * rows
        self._xy = FORGETTING * self._xy + rows * sample_ns
        self._fit()

    def _fit(self) -> None:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance < 0.01 * mean_x * mean_x:
            scale = mean_y / (self.fixed_ns + self.row_ns * mean_x)
            self.fixed_ns, self.row_ns = self.fixed_ns * scale, self.row_ns * scale
            return
        row_ns = (self._xy / self._weight - mean_x * mean_y) / variance
        fixed_ns = mean_y - row_ns * mean_x
        if row_ns < 0.0:
            row_ns, fixed_ns = 0.0, mean_y
        elif fixed_ns < 0.0:
            row_ns, fixed_ns = self._xy / self._xx, 0.0
        self.fixed_ns, self.row_ns = fixed_ns, row_ns


class CostTable:
    """The costs of one model. What a new bucket or device costs is guessed from what was learned last."""

    __slots__ = ("_costs", "_prior")

    def __init__(self) -> None:
        self._costs: dict[tuple[Hashable, str], LinearCost] = {}
        self._prior = LinearCost()

    def of(self, bucket: Hashable, device: str) -> LinearCost:
        """The cost of a bucket on a device; the prior where nothing was learned yet."""
        return self._costs.get((bucket, device), self._prior)

    def knows(self, bucket: Hashable, device: str) -> bool:
        """Whether anything was learned of this bucket on this device."""
        return (bucket, device) in self._costs

    def learn(self, bucket: Hashable, device: str, rows: int, compute_ns: int) -> None:
        """A batch of `rows` of this bucket took `compute_ns` on this device; 0 or less says nothing."""
        if compute_ns <= 0:
            return
        cost = self._costs.get((bucket, device))
        if cost is None:
            if len(self._costs) >= LINES_MAX:
                del self._costs[next(iter(self._costs))]
            cost = self._costs[bucket, device] = LinearCost(self._prior)
        cost.learn(rows, compute_ns)
        self._prior = cost
