"""How throughput grows with replicas: three laws, fitted by least squares.

    Amdahl      X(n) = λn / (1 + σ(n−1))                G. M. Amdahl, AFIPS 1967
    Gustafson   X(n) = λ(n − σ(n−1))                    J. L. Gustafson, Comm. ACM 31, 1988
    USL         X(n) = λn / (1 + σ(n−1) + κn(n−1))      N. J. Gunther, "A Simple Capacity Model of Massively
                                                        Parallel Transaction Systems", CMG 1993

λ is the throughput of one replica, σ the share of the work that only one can do at a time (contention), κ what each
pair of replicas costs (coherency). Amdahl's law is the third with κ = 0; Gustafson lets the work grow with n.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from .shapes import Numbers

STEPS: Final = 60
"""Of Gauss and Newton, at most: it has converged long before."""


class Law(msgspec.Struct, frozen=True):
    """A law with its parameters."""

    name: str
    one_per_s: float
    """λ: throughput of one replica."""
    serial: float
    """σ, 0 to 1."""
    coherency: float
    """κ, at least 0; 0 but for the universal scalability law."""
    r_squared: float
    """Share of the variance of what was measured that the law explains."""

    def at(self, replicas: float) -> float:
        """The throughput of so many."""
        if self.name == GUSTAFSON:
            return self.one_per_s * (replicas - self.serial * (replicas - 1))
        return (
            self.one_per_s * replicas / (1 + self.serial * (replicas - 1) + self.coherency * replicas * (replicas - 1))
        )

    @property
    def best(self) -> float | None:
        """Replicas at which throughput is highest; None where more are always better."""
        return float(np.sqrt((1 - self.serial) / self.coherency)) if self.coherency > 1e-9 else None


AMDAHL: Final = "Amdahl"
GUSTAFSON: Final = "Gustafson"
USL: Final = "USL"


def fit(replicas: Sequence[int], per_s: Sequence[float]) -> list[Law]:
    """The three laws for what was measured; of three points at least."""
    assert len(replicas) == len(per_s) >= 3
    n, x = np.asarray(replicas, float), np.asarray(per_s, float)
    lines, *_ = np.linalg.lstsq(np.column_stack([n, np.ones_like(n)]), x, rcond=None)
    one = float(lines.sum())
    serial = min(1.0, max(0.0, float(lines[1]) / one))
    gustafson = Law(GUSTAFSON, _scale(n - serial * (n - 1), x), serial, 0.0, 0.0)
    laws = [_rational(AMDAHL, n, x, (True, False)), gustafson, _rational(USL, n, x, (True, True))]
    return [_judged(law, n, x) for law in laws]


def _rational(name: str, n: Numbers, x: Numbers, free: tuple[bool, bool]) -> Law:
    """X = λn/(1 + σ(n−1) + κn(n−1)), with σ and κ 0 where they are not free.

    The best point may lie on the border, where the search for both would stop too early. So each part of the border
    is searched by itself, and the best of all is taken.
    """
    terms = np.array([n - 1, n * (n - 1)])
    parts = {(free[0] and serial, free[1] and coherency) for serial in (False, True) for coherency in (False, True)}
    found = [_search(n, x, terms * np.array(part, float)[:, None]) for part in sorted(parts)]
    best = min(found, key=lambda point: _missed(n, x, terms, point))
    return Law(name, _scale(_shape(n, terms, best), x), float(best[0]), float(best[1]), 0.0)


def _search(n: Numbers, x: Numbers, terms: Numbers) -> Numbers:
    """Least squares by Gauss and Newton, from where n/X, which is linear in the unknowns, is met best.

    For given σ and κ the best λ is known, so only these two are searched for, within their bounds.
    """
    upper = np.array([1.0, np.inf])
    start, *_ = np.linalg.lstsq(np.vstack([np.ones_like(n), terms]).T, n / x, rcond=None)
    point: Numbers = np.clip(start[1:] / start[0] if start[0] > 0 else np.zeros(2), 0.0, upper)
    for _ in range(STEPS):
        shape = _shape(n, terms, point)
        one = _scale(shape, x)
        slopes = np.vstack([shape, -one * shape * shape / n * terms]).T
        step, *_ = np.linalg.lstsq(slopes, x - one * shape, rcond=None)
        length, before = 1.0, _missed(n, x, terms, point)
        while length > 1e-6 and _missed(n, x, terms, np.clip(point + length * step[1:], 0.0, upper)) > before:
            length /= 2
        following = np.clip(point + length * step[1:], 0.0, upper)
        if _missed(n, x, terms, following) >= before * (1 - 1e-12):
            break
        point = following
    return point


def _shape(n: Numbers, terms: Numbers, point: Numbers) -> Numbers:
    """X/λ."""
    shape: Numbers = n / (1 + point @ terms)
    return shape


def _missed(n: Numbers, x: Numbers, terms: Numbers, point: Numbers) -> float:
    """The sum of squared errors with the best λ."""
    shape = _shape(n, terms, point)
    return float(np.square(x - _scale(shape, x) * shape).sum())


def _scale(shape: Numbers, x: Numbers) -> float:
    """The factor with which `shape` comes nearest to `x`."""
    return float(shape @ x / (shape @ shape))


def _judged(law: Law, n: Numbers, x: Numbers) -> Law:
    missed = float(np.square(x - np.array([law.at(each) for each in n])).sum())
    whole = float(np.square(x - x.mean()).sum())
    return Law(law.name, law.one_per_s, law.serial, law.coherency, 1 - missed / whole if whole else 1.0)
