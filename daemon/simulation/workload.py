"""Who asks when, and for what: streams of requests, endless, each determined by its seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

import numpy as np

from .shapes import Kind, Numbers, Shape

CHUNK: Final = 1_024
"""Requests that are drawn at once."""

NEVER_NS: Final = 2.0**62
"""Later than any simulation ends, and an int64."""


class Arrivals(StrEnum):
    """How requests come."""

    POISSON = "poisson"
    CONSTANT = "constant"
    BURSTY = "bursty"  # Poisson while it is on, nothing while it is off; both for exponential times
    CLOSED = "closed"  # each client waits for its answer, thinks, and asks again


@dataclass(frozen=True)
class Choice:
    """Values and how often each is drawn."""

    values: Sequence[Any]
    weights: Sequence[float] = (1.0,)

    def draw(self, random: np.random.Generator, count: int) -> list[Any]:
        """One value draws nothing."""
        if len(self.values) == 1:
            return [self.values[0]] * count
        share = np.asarray(self.weights, float)
        chosen = random.choice(len(self.values), count, p=share / share.sum())
        return [self.values[index] for index in chosen.tolist()]


@dataclass(frozen=True)
class Rows:
    """Rows of a request: about `mean` times a number of the shape, at least 1."""

    mean: float
    shape: Shape

    def draw(self, random: np.random.Generator, count: int) -> list[int]:
        drawn: list[int] = np.maximum(1, np.rint(self.mean * self.shape.draw(random, count))).astype(np.int64).tolist()
        return drawn


@dataclass(frozen=True)
class Workload:
    """Requests of one kind for one model."""

    model: int
    arrivals: Arrivals = Arrivals.POISSON
    rate_per_s: float = 0.0
    """Of an open loop, on average."""
    burst_s: float = 1.0
    """BURSTY: how long it is on,"""
    pause_s: float = 1.0
    """and off, on average."""
    clients: int = 0
    """Of a closed loop."""
    think_ns: float = 0.0
    """Between answer and next request, exponentially distributed."""
    rows: Choice | Rows = field(default_factory=lambda: Choice([1]))
    row_bytes: int = 0
    buckets: Choice = field(default_factory=lambda: Choice([""]))
    tenants: Choice = field(default_factory=lambda: Choice(["default"]))
    priorities: Choice = field(default_factory=lambda: Choice([1]))
    sessions: int = 0
    """Sessions that requests belong to, evenly; 0 for none."""
    latest: bool = False
    """A request takes the place of a waiting one of its session, as a camera's newest picture does."""
    deadline_ns: int = 30_000_000_000
    """From arrival."""


Draw: TypeAlias = tuple[int, str, str, int, int, float]
"""One request, but when it comes: rows, bucket, tenant, priority, session, and the factor of its service time (see
Service)."""


def streams(seed: Sequence[int]) -> Iterator[np.random.Generator]:
    """Independent generators, always the same for the same seed: one for each thing that is drawn."""
    children = np.random.SeedSequence(seed)
    while True:
        yield np.random.default_rng(children.spawn(1)[0])


def draws(workload: Workload, shape: Shape, seed: Sequence[int]) -> Iterator[Draw]:
    """The workload's requests; service times of `shape`."""
    rows, buckets, tenants, priorities, sessions, factors = (
        generator for _, generator in zip(range(6), streams((*seed, 1)), strict=False)
    )
    while True:
        session = sessions.integers(1, workload.sessions + 1, CHUNK).tolist() if workload.sessions else [0] * CHUNK
        yield from zip(
            workload.rows.draw(rows, CHUNK),
            workload.buckets.draw(buckets, CHUNK),
            workload.tenants.draw(tenants, CHUNK),
            workload.priorities.draw(priorities, CHUNK),
            session,
            shape.draw(factors, CHUNK).tolist(),
            strict=True,
        )


def arrivals_ns(workload: Workload, seed: Sequence[int]) -> Iterator[int]:
    """When the requests of an open loop come, in nanoseconds from the start."""
    random = next(streams((*seed, 0)))
    if workload.arrivals is Arrivals.BURSTY:
        yield from _bursty(workload, random)
    gaps = Shape(Kind.CONSTANT if workload.arrivals is Arrivals.CONSTANT else Kind.EXPONENTIAL)
    mean_ns, before_ns = 1e9 / workload.rate_per_s, 0.0
    while True:
        times = before_ns + (mean_ns * gaps.draw(random, CHUNK)).cumsum()
        before_ns = float(times[-1])
        yield from np.minimum(times, NEVER_NS).astype(np.int64).tolist()


def _bursty(workload: Workload, random: np.random.Generator) -> Iterator[int]:
    """An interrupted Poisson process. The gaps run on a clock that stands still while it is off."""
    on_ns, off_ns = workload.burst_s * 1e9, workload.pause_s * 1e9
    gap_ns = 1e9 / workload.rate_per_s * on_ns / (on_ns + off_ns)
    start_ns, clock_ns = 0.0, 0.0
    while True:
        left_ns = random.exponential(on_ns)
        while clock_ns < left_ns:
            yield round(start_ns + clock_ns)
            clock_ns += random.exponential(gap_ns)
        clock_ns -= left_ns
        start_ns += left_ns + random.exponential(off_ns)


def think_times_ns(workload: Workload, seed: Sequence[int]) -> Iterator[int]:
    """Between answer and next request of a client in a closed loop."""
    random = next(streams((*seed, 0)))
    while True:
        times: Numbers = workload.think_ns * random.exponential(1.0, CHUNK)
        yield from times.astype(np.int64).tolist()
