"""How long a batch takes, learned while serving: t(rows) ≈ a + b·rows per model, bucket and device.

Least squares with exponential forgetting, made robust in three ways:

* *Outliers.* A sample that is off, farther from the prediction than the usual error explains, only makes its size
  (the power of two above its rows) a suspect. Where the next batch of that size is fine again it is dropped: a page
  fault, or another process on the device.
* *Change.* Where the next one is off on the same side, the device has changed or the size was never seen: the milder
  of the two is learned, and all that was known before counts nearly nothing beside it. That is a variable forgetting
  factor (Fortescue, Kershenbaum & Ydstie, "Implementation of Self-tuning Regulators with Variable Forgetting
  Factors", Automatica 1981), and follows a device that became slower within three batches.
* *Warm-up.* A first batch is often far too slow and never too fast, so at the beginning the faster one is believed.

The error of a line is the moving average of |measured - predicted| / predicted: upper_ns() adds it as a margin.

What was learned survives a restart as a plain value. A restored line counts as much as TRUSTED_SAMPLES batches.
"""

from collections.abc import Hashable, Mapping
from typing import Any, Final, Self

FORGETTING: Final = 0.97
"""Weight of a sample relative to the next one: about the last 33 batches count."""

CHANGED_WEIGHT: Final = 0.02
"""What all earlier samples together weigh beside the first one after a change: enough to remember other sizes."""

CHANGE_FACTOR_MAX: Final = 8.0
"""After a change a sample counts as at most so many times the prediction: two page faults in a row do little, and a
device that became a thousand times slower is followed in five batches."""

TRUSTED_SAMPLES: Final = 4
"""Samples below which a faster one is believed at once, and the error is not yet measured."""

ERROR_SAMPLES: Final = 16
"""The error is an average of about so many samples."""

HOP_SAMPLES: Final = 16
"""The time of a hop is an average of about so many."""

HOP_DEVIATIONS: Final = 3.0

ERROR_PRIOR: Final = 0.25
"""Relative error of a line that has yet to learn its own."""

MARGIN_ERRORS: Final = 3.0
"""Mean errors between the prediction and its upper limit: 2.4 standard deviations of normal noise."""

MARGIN_MIN: Final = 0.25
"""Within this part of the prediction a sample is never off, however exact the line was."""

LINES_MAX: Final = 1024
"""Pairs of bucket and device remembered per model; beyond it the pair learned first starts from the prior again."""

_PRIOR_FIXED_NS: Final = 200_000.0
_PRIOR_ROW_NS: Final = 20_000.0

_RESTORED_NS_MAX: Final = 1e15
_RESTORED_ROWS_MAX: Final = 2**32
_BUCKET_DEPTH_MAX: Final = 4
_BUCKET_ITEMS_MAX: Final = 64
_BUCKET_CHARACTERS_MAX: Final = 256


class LinearCost:
    """Least squares with exponential forgetting for a ≥ 0, b ≥ 0.

    Until the batches differ in size, a and b cannot be told apart: the line then keeps its proportions and is
    scaled through the mean. A fit with b < 0 becomes a constant, one with a < 0 a line through the origin.
    """

    __slots__ = ("_suspects", "_weight", "_x", "_xx", "_xy", "_y", "error", "fixed_ns", "row_ns", "samples")

    def __init__(self, prior: "LinearCost | None" = None) -> None:
        self.fixed_ns: float = prior.fixed_ns if prior else _PRIOR_FIXED_NS
        """a: device time of a batch whatever its size, in nanoseconds."""
        self.row_ns: float = prior.row_ns if prior else _PRIOR_ROW_NS
        """b: device time per row, in nanoseconds."""
        self.error = ERROR_PRIOR
        """Mean of |measured - predicted| / predicted; one sample counts as at most 1."""
        self.samples = 0
        """Batches it has seen."""
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._suspects: dict[int, tuple[int, int]] = {}
        """By size (binary digits of the rows): the last batch (rows, nanoseconds), where that was off."""

    def predicted_ns(self, rows: int) -> int:
        """Device time of a batch of `rows`, in nanoseconds; at least 1."""
        return int(self.fixed_ns + self.row_ns * rows) + 1

    def upper_ns(self, rows: int) -> int:
        """The prediction and a margin from the errors of those before: seldom exceeded."""
        return int((self.fixed_ns + self.row_ns * rows) * (1.0 + MARGIN_ERRORS * self.error)) + 1

    def learn(self, rows: int, compute_ns: int) -> None:
        """A batch of `rows` took `compute_ns` (above 0) of device time."""
        learned_ns: float | None = compute_ns
        if self.samples:
            predicted_ns = self.fixed_ns + self.row_ns * rows
            side = self._off(rows, compute_ns)
            if side:
                rows, learned_ns = self._suspect(rows, compute_ns, side)
            elif self._suspects:
                self._suspects.pop(rows.bit_length(), None)
            if self.samples >= TRUSTED_SAMPLES:
                relative_error = min(abs(compute_ns - predicted_ns) / predicted_ns, 1.0)
                self.error += (relative_error - self.error) / min(self.samples, ERROR_SAMPLES)
        self.samples += 1
        if learned_ns is not None:
            self._forget(FORGETTING)
            self._weight += 1.0
            self._x += rows
            self._y += learned_ns
            self._xx += rows * rows
            self._xy += rows * learned_ns
            self._fit()

    def _off(self, rows: int, compute_ns: int) -> int:
        """1: slower than the usual error explains, -1: faster, 0: neither."""
        predicted_ns = self.fixed_ns + self.row_ns * rows
        factor = 1.0 + max(MARGIN_MIN, MARGIN_ERRORS * self.error)
        return (compute_ns > factor * predicted_ns) - (compute_ns * factor < predicted_ns)

    def _suspect(self, rows: int, compute_ns: int, side: int) -> tuple[int, float | None]:
        """What to learn of a batch that is off on this side; no time: nothing, it is the first of its size."""
        size = rows.bit_length()
        before, self._suspects[size] = self._suspects.get(size), (rows, compute_ns)
        if before is None or self._off(*before) != side:
            if side > 0 or self.samples >= TRUSTED_SAMPLES:
                return rows, None
            before = rows, compute_ns
        self._forget(min(1.0, CHANGED_WEIGHT / (FORGETTING * self._weight)))
        ratios = [(ns / (self.fixed_ns + self.row_ns * each), each) for each, ns in (before, (rows, compute_ns))]
        ratio, rows = min(ratios) if side > 0 else max(ratios)
        return rows, min(ratio, CHANGE_FACTOR_MAX) * (self.fixed_ns + self.row_ns * rows)

    def _forget(self, factor: float) -> None:
        self._weight *= factor
        self._x *= factor
        self._y *= factor
        self._xx *= factor
        self._xy *= factor

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

    def snapshot(self) -> dict[str, float]:
        """All that restored() needs; something was learned."""
        return {
            "fixed_ns": self.fixed_ns,
            "row_ns": self.row_ns,
            "error": self.error,
            "mean_rows": self._x / self._weight,
            "mean_square_rows": self._xx / self._weight,
        }

    @classmethod
    def restored(cls, value: Mapping[Any, Any]) -> Self | None:
        """The line of a snapshot; None where `value` is none. Nothing is believed of it."""
        fixed_ns = _number(value.get("fixed_ns"), 0, _RESTORED_NS_MAX)
        row_ns = _number(value.get("row_ns"), 0, _RESTORED_NS_MAX)
        error = _number(value.get("error"), 0, 1)
        mean = _number(value.get("mean_rows"), 1, _RESTORED_ROWS_MAX)
        square = _number(value.get("mean_square_rows"), 1, _RESTORED_ROWS_MAX**2)
        if fixed_ns is None or row_ns is None or error is None or mean is None or square is None:
            return None
        if fixed_ns + row_ns < 1:
            return None
        line = cls()
        line.fixed_ns, line.row_ns, line.error, line.samples = fixed_ns, row_ns, error, TRUSTED_SAMPLES
        square = max(square, mean * mean)
        # The sums of any samples of these sizes that lie on the line.
        line._weight = weight = float(TRUSTED_SAMPLES)
        line._x, line._xx = weight * mean, weight * square
        line._y, line._xy = weight * (fixed_ns + row_ns * mean), weight * (fixed_ns * mean + row_ns * square)
        return line


class HopTime:
    """What a batch's way to an idle worker and back takes beside device time: mean and mean deviation, as for TCP."""

    __slots__ = ("_deviation_ns", "_mean_ns", "_samples")

    def __init__(self) -> None:
        self._mean_ns = self._deviation_ns = 0.0
        self._samples = 0

    @property
    def upper_ns(self) -> int:
        """Seldom exceeded."""
        return int(self._mean_ns + HOP_DEVIATIONS * self._deviation_ns)

    def learn(self, hop_ns: int) -> None:
        """A batch took so long."""
        self._samples += 1
        gain = 1 / min(self._samples, HOP_SAMPLES)
        error_ns = max(hop_ns, 0) - self._mean_ns
        self._mean_ns += gain * error_ns
        if self._samples > 1:
            self._deviation_ns += gain * (abs(error_ns) - self._deviation_ns)


class CostTable:
    """The costs of one model. What a new bucket or device costs is guessed from what was learned last."""

    __slots__ = ("_costs", "hop", "latest")

    def __init__(self) -> None:
        self.hop = HopTime()
        self._costs: dict[tuple[Hashable, str], LinearCost] = {}
        self.latest = LinearCost()
        """The line that learned last; the prior of new ones."""

    def of(self, bucket: Hashable, device: str) -> LinearCost:
        """The cost of a bucket on a device; the prior where nothing was learned yet."""
        return self._costs.get((bucket, device), self.latest)

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
            cost = self._costs[bucket, device] = LinearCost(self.latest)
        cost.learn(rows, compute_ns)
        self.latest = cost

    def snapshot(self) -> list[dict[str, Any]]:
        """What was learned, as lists, dicts, strings and numbers. Buckets that cannot be told so are left out."""
        lines: list[dict[str, Any]] = []
        for (bucket, device), cost in self._costs.items():
            try:
                lines.append({"bucket": _plain(bucket), "device": device, **cost.snapshot()})
            except ValueError:
                continue
        return lines

    def restore(self, value: object) -> int:
        """Take over the lines of a snapshot where nothing was learned since; the number of those taken.

        `value` may come from a file that anybody wrote: what is no line is dropped, the rest is kept.
        """
        restored = 0
        fresh = not self.latest.samples
        for entry in value[-LINES_MAX:] if isinstance(value, list) else ():
            if not isinstance(entry, dict) or len(self._costs) >= LINES_MAX:
                continue
            device, line = entry.get("device"), LinearCost.restored(entry)
            if line is None or not isinstance(device, str) or len(device) > _BUCKET_CHARACTERS_MAX:
                continue
            try:
                key = _bucket(entry.get("bucket")), device
            except ValueError:
                continue
            if key not in self._costs:
                self._costs[key] = line
                restored += 1
                if fresh:
                    self.latest = line
        return restored


def _number(value: object, low: float, high: float) -> float | None:
    """`value` where it is a number between the two; NaN is not."""
    return float(value) if isinstance(value, int | float) and low <= value <= high else None


def _plain(bucket: Hashable, depth: int = 0) -> object:
    """A bucket with its tuples as lists. Raises ValueError where _bucket() would not give it back."""
    if isinstance(bucket, tuple):
        if len(bucket) > _BUCKET_ITEMS_MAX or depth == _BUCKET_DEPTH_MAX:
            raise ValueError(bucket)
        return [_plain(each, depth + 1) for each in bucket]
    return _atom(bucket)


def _bucket(value: object, depth: int = 0) -> Hashable:
    """The bucket that _plain() was given. Raises ValueError."""
    if isinstance(value, list):
        if len(value) > _BUCKET_ITEMS_MAX or depth == _BUCKET_DEPTH_MAX:
            raise ValueError(value)
        return tuple(_bucket(each, depth + 1) for each in value)
    return _atom(value)


def _atom(value: object) -> int | str | None:
    if value is None:
        return None
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, str) and len(value) <= _BUCKET_CHARACTERS_MAX and value.isprintable():
        return str(value)
    raise ValueError(value)
