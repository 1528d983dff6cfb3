"""How long to wait before a dead child is started again. Pure."""

import random
from typing import Final

FIRST_S: Final = 0.1
STABLE_S: Final = 60.0
"""A child that lived this long is started again at once: it was no crash loop."""


class Backoff:
    """Exponential, with jitter so that children that died together do not come back together."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._failures = 0
        self._rng = rng or random.Random()  # noqa: S311 - spreads restarts, guards nothing

    @property
    def failures(self) -> int:
        """Deaths in a row, each before the child was stable."""
        return self._failures

    def died(self, lived_s: float, max_s: float) -> float:
        """Seconds to wait after a death; at most `max_s`."""
        self._failures = 1 if lived_s >= STABLE_S else self._failures + 1
        if self._failures == 1:
            return 0.0
        delay = FIRST_S * float(2 ** min(self._failures - 2, 20))
        return min(max_s, delay * self._rng.uniform(0.75, 1.25))
