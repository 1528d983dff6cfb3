"""Medians, spreads, ratios and verdicts: pure arithmetic, no measurement."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Spread:
    """What repetitions of one measurement gave."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """The ratio within each repetition, so that a machine that slows down between repetitions moves none of them.

    A base of 0 gives no number, with which no budget is kept.
    """
    return [value / base if base else math.nan for value, base in zip(values, bases, strict=True)]


def differences(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """The difference within each repetition."""
    return [value - base for value, base in zip(values, bases, strict=True)]


Relation = Literal["≤", "≥", "<"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget, what was measured against it, and whether it was kept by the median."""

    name: str
    relation: Relation
    budget: float
    measured: Spread | None
    """None: it was not measured, and so not kept."""
    unit: str = ""
    hard: bool = False
    """A floor below which the project has failed, not a budget."""

    @property
    def kept(self) -> bool:
        """Judged by the median, before any rounding."""
        if self.measured is None:
            return False
        value = self.measured.median
        if self.relation == "≤":
            return value <= self.budget
        return value >= self.budget if self.relation == "≥" else value < self.budget


def shown(value: float) -> str:
    """Three significant digits, with thousands separated: `12,300`, `1.23`, `0.0123`."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "–"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def shown_spread(values: Spread) -> str:
    """`median (least–most)`."""
    return f"{shown(values.median)} ({shown(values.least)}–{shown(values.most)})"
