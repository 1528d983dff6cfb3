"""Random numbers of mean 1 and a given variance, from which gaps, rows and service times are scaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.float64]


class Kind(StrEnum):
    """A family of distributions of positive numbers."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    LOGNORMAL = "lognormal"
    HYPEREXPONENTIAL = "hyperexponential"
    EMPIRICAL = "empirical"


@dataclass(frozen=True)
class Shape:
    """A distribution with mean 1."""

    kind: Kind = Kind.CONSTANT
    scv: float = 1.0
    """Squared coefficient of variation, variance / mean², where the family leaves it free: any for lognormal, above 1
    for hyperexponential."""
    values: Sequence[float] = ()
    """What EMPIRICAL draws from; their mean is 1."""

    def __post_init__(self) -> None:
        assert self.kind is not Kind.HYPEREXPONENTIAL or self.scv > 1
        assert self.kind is not Kind.EMPIRICAL or self.values

    @property
    def square(self) -> float:
        """The mean of the squares."""
        match self.kind:
            case Kind.CONSTANT:
                return 1.0
            case Kind.EXPONENTIAL:
                return 2.0
            case Kind.EMPIRICAL:
                return float(np.square(self.values).mean())
            case _:
                return 1.0 + self.scv

    def draw(self, random: np.random.Generator, count: int) -> Numbers:
        """`count` independent numbers."""
        match self.kind:
            case Kind.CONSTANT:
                return np.ones(count)
            case Kind.EXPONENTIAL:
                return random.exponential(1.0, count)
            case Kind.LOGNORMAL:
                variance = math.log1p(self.scv)
                return random.lognormal(-variance / 2, math.sqrt(variance), count)
            case Kind.HYPEREXPONENTIAL:
                return self._hyperexponential(random, count)
            case Kind.EMPIRICAL:
                return random.choice(np.asarray(self.values), count)

    def _hyperexponential(self, random: np.random.Generator, count: int) -> Numbers:
        """Two exponential phases with balanced means: each carries half of the sum."""
        often = (1 + math.sqrt((self.scv - 1) / (self.scv + 1))) / 2
        means = np.where(random.random(count) < often, 0.5 / often, 0.5 / (1 - often))
        return means * random.exponential(1.0, count)
