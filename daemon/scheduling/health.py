"""How well a device works: it falls when the device fails or slows down, and comes back by itself.

    health = outside · trust / slowness         between HEALTH_MIN and 1

`outside` is what others know of the device, such as the throttle reasons of NVML. `trust` is halved by every batch
that failed through the fault of the device or of the daemon. `slowness` compares two averages of the time of equal
batches (same model, bucket and rows): a slow one, what is normal, over minutes, and a fast one, what is now, over
about PACE_SAMPLES batches. The line in cost.py could not serve as what is normal: it forgets within 33 batches, so a
device that throttles would be called healthy again within a second. A batch counts as at most OUTLIER_FACTOR times
as long as normal, and up to SLOW_FROM nothing is called slow: one page fault is no throttling.

While nothing happens, trust and slowness come back to 1: half of what is missing in RECOVERY_HALF_LIFE_NS. A device
that is still bad loses it again with its next batches. Health is never 0, so it gets those. It only changes when a
batch comes back or outside knowledge does, never by time alone: whom a balance policy chooses stays chosen until
something happens. Speed is only watched in batches of models with several replicas: elsewhere there is no choice.
"""

from collections.abc import Hashable
from math import log
from typing import Final

HEALTH_MIN: Final = 1 / 16
"""No device has less."""

RECOVERY_HALF_LIFE_NS: Final = 5_000_000_000
"""In which half of what is missing to full health comes back."""

NORMAL_HALF_LIFE_NS: Final = 300_000_000_000
"""In which a changed speed becomes half of what is normal, once much longer is known."""

NORMAL_SAMPLES_MIN: Final = 8
"""Batches of one kind before one of them can be slow."""

PACE_SAMPLES: Final = 16
"""Batches that the fast average covers, about."""

OUTLIER_FACTOR: Final = 4.0
"""A batch counts as at most so many times as long as normal."""

SLOW_FROM: Final = 1.25
"""Slowness below this is noise. One outlier alone makes 1 + (OUTLIER_FACTOR - 1) / PACE_SAMPLES, less than this."""

NORMALS_MAX: Final = 1024
"""Kinds of batches remembered per device; beyond it the one seen first is learned anew."""


_FORGETTING_RATE: Final = log(2) / NORMAL_HALF_LIFE_NS


class Normal:
    """The usual time of one kind of batch: the mean of all at first, then one that forgets."""

    __slots__ = ("_at_ns", "_samples", "mean_ns")

    def __init__(self) -> None:
        self.mean_ns = 0.0
        self._samples = 0
        self._at_ns = 0

    def ratio(self, now: int, compute_ns: int) -> float:
        """How much longer than normal a batch took, and learn from it; 1 as long as too little is known."""
        ratio = min(compute_ns / self.mean_ns, OUTLIER_FACTOR) if self._samples else 1.0
        self._samples += 1
        if self._samples == 1:
            self.mean_ns = float(compute_ns)
        # The share of a sample after dt is 1 - 2^(-dt / half-life), nearly dt · ln 2 / half-life.
        share = min((now - self._at_ns) * _FORGETTING_RATE, 0.5)
        self._at_ns = now
        self.mean_ns += max(share, 1 / self._samples) * (ratio - 1.0) * self.mean_ns
        return ratio if self._samples > NORMAL_SAMPLES_MIN else 1.0


class Health:
    """The health of one device; kept when its worker is restarted."""

    __slots__ = ("_at_ns", "_normals", "_outside", "_pace", "_trust", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        """Between HEALTH_MIN and 1: what the device is worth of what it is worth when well."""
        self._outside = 1.0
        self._trust = 1.0
        self._pace = 1.0
        self._normals: dict[Hashable, Normal] = {}
        self._at_ns = 0

    def measured(self, now: int, kind: Hashable, compute_ns: int) -> None:
        """A batch took `compute_ns` of device time; those of one `kind` should all take the same."""
        normal = self._normals.get(kind)
        if normal is None:
            if len(self._normals) >= NORMALS_MAX:
                del self._normals[next(iter(self._normals))]
            normal = self._normals[kind] = Normal()
        self.recover(now)
        self._pace += (normal.ratio(now, compute_ns) - self._pace) / PACE_SAMPLES
        self._at_ns = now
        if self._pace > SLOW_FROM or self.factor < self._outside:
            self._update()

    def failed(self, now: int) -> None:
        """A batch failed through the fault of the device or of the daemon."""
        self.recover(now)
        self._trust = max(self._trust / 2, HEALTH_MIN)
        self._at_ns = now
        self._update()

    def recover(self, now: int) -> None:
        """Time has passed since what is known of the device was learned."""
        if self.factor < self._outside:
            kept = 2.0 ** ((self._at_ns - now) / RECOVERY_HALF_LIFE_NS)
            self._trust = 1.0 - (1.0 - self._trust) * kept
            self._pace = 1.0 + (self._pace - 1.0) * kept
            self._at_ns = now
            self._update()

    def set_outside(self, factor: float) -> None:
        """Others say that the device is worth `factor` (above 0, at most 1) of what it is when well."""
        assert 0 < factor <= 1
        self._outside = factor
        self._update()

    def _update(self) -> None:
        slowness = self._pace if self._pace > SLOW_FROM else 1.0
        trust = self._trust if self._trust < 0.999 else 1.0
        self.factor = max(HEALTH_MIN, self._outside * trust / slowness)
