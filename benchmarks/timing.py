"""How long and how often things are measured."""

import sys
from dataclasses import dataclass
from typing import Final

Window = tuple[float, float]
"""Seconds of measurement and, before, of warm-up."""

SLOW: Final[Window] = (2.5, 1.0)
"""At the least, for slow requests."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One run's plan."""

    repetitions: int
    seconds: float
    warmup_s: float
    idle_s: float

    def window(self, *, slow: bool) -> Window:
        """For requests of some microseconds, or for slow ones: of so many bytes or so much work that few are answered
        in a second."""
        if slow:
            return max(2 * self.seconds, SLOW[0]), max(2 * self.warmup_s, SLOW[1])
        return self.seconds, self.warmup_s

    def say(self, what: str) -> None:
        """Progress, on standard error."""
        print(what, file=sys.stderr, flush=True)


FULL: Final = Timing(repetitions=5, seconds=0.5, warmup_s=0.2, idle_s=20.0)
QUICK: Final = Timing(repetitions=2, seconds=0.5, warmup_s=0.2, idle_s=3.0)
