"""The scheduling core against queueing theory.

Each mean lies within the 99 % confidence interval of independent replications, and the interval is narrow enough to
say something: half-width at most 3 % at ρ = 0.5 and 0.8, 10 % at 0.95. Seeds are fixed, so a test that passed fails
only when the core or the simulator decides something else.
"""

import math
from itertools import pairwise
from typing import Any

import pytest

from tensord.daemon.simulation import theory
from tensord.daemon.simulation.shapes import Kind, Shape
from tensord.daemon.simulation.theory import Queue
from tensord.daemon.simulation.workload import Choice, Rows

from .rig import SERVICE_NS, Equilibrium

SERVICE_S = SERVICE_NS / 1e9
LOGNORMAL = Shape(Kind.LOGNORMAL, 0.25)
HEAVY = Shape(Kind.HYPEREXPONENTIAL, 4.0)
HALF: Any = {"warmup": 200, "blocks": (5, 15, 50)}
MOST: Any = {"warmup": 6_000, "blocks": (10, 100, 1_000)}
"""Relaxation takes 1,600 service times at ρ = 0.95."""

LONE: Any = {"rows": Choice([2]), "row_ns": SERVICE_NS / 2, "max_batch": 3}
"""A request does not fill a batch, and no two fit into one: an idle device must take it all the same."""

FULL = [pytest.mark.full, pytest.mark.timeout(600)]


def agree(queue: Equilibrium, expected: Queue) -> None:
    wait, length = queue.wait, queue.length
    bound = 0.10 if queue.load > 0.9 else 0.03
    assert wait.contains(expected.wait_s), f"wait {wait.mean} ± {wait.half_width}, theory {expected.wait_s}"
    assert length.contains(expected.length), f"length {length.mean} ± {length.half_width}, theory {expected.length}"
    assert wait.relative <= bound, f"wait known to ± {wait.relative:.2%} only"
    assert length.relative <= bound, f"length known to ± {length.relative:.2%} only"


def rate(load: float, servers: int = 1) -> float:
    return load * servers / SERVICE_S


@pytest.mark.parametrize(
    "queue",
    [
        Equilibrium(0.5, 3_000, **HALF, **LONE),
        Equilibrium(0.8, 9_000),
        pytest.param(Equilibrium(0.95, 30_000, **MOST), marks=FULL),
    ],
    ids=lambda queue: str(queue.load),
)
def test_first_come_first_served_waits_as_mm1_says(queue: Equilibrium) -> None:
    agree(queue, theory.mm1(rate(queue.load), SERVICE_S))


@pytest.mark.parametrize(
    "queue",
    [
        Equilibrium(0.5, 2_000, LOGNORMAL, **HALF),
        Equilibrium(0.8, 6_000, LOGNORMAL),
        pytest.param(Equilibrium(0.5, 5_000, HEAVY, **HALF), marks=FULL),
        pytest.param(Equilibrium(0.8, 30_000, HEAVY), marks=FULL),
        pytest.param(Equilibrium(0.95, 15_000, LOGNORMAL, **MOST), marks=FULL),
    ],
    ids=lambda queue: f"{queue.load}-{queue.shape.kind}",
)
def test_the_wait_depends_on_the_variance_of_service_as_pollaczek_and_khinchine_say(queue: Equilibrium) -> None:
    agree(queue, theory.mg1(rate(queue.load), SERVICE_S, queue.shape.square - 1))


@pytest.mark.parametrize(
    "queue",
    [
        Equilibrium(0.5, 5_000, servers=2, **HALF),
        pytest.param(Equilibrium(0.8, 18_000, servers=3), marks=FULL),
        pytest.param(Equilibrium(0.95, 40_000, servers=3, **MOST), marks=FULL),
    ],
    ids=lambda queue: f"{queue.load}-{queue.servers}",
)
def test_replicas_share_one_queue_as_erlang_c_says(queue: Equilibrium) -> None:
    agree(queue, theory.mmc(rate(queue.load, queue.servers), SERVICE_S, queue.servers))


# ── shortest job first ──────────────────────────────────────────────────────────────────────────
# The service time is proportional to the rows, and what the scheduler predicts is exact after a few batches.

ROWS, SHARES = (1, 2, 10), (6.0, 3.0, 1.0)
MEAN_ROWS = sum(rows * share for rows, share in zip(ROWS, SHARES, strict=True)) / sum(SHARES)
MEAN_SQUARE = sum(rows**2 * share for rows, share in zip(ROWS, SHARES, strict=True)) / sum(SHARES)
FINE_ROWS = 1_000
"""Mean rows where the durations are to look continuous."""


def three_classes(load: float, requests: int, **changes: Any) -> Equilibrium:
    return Equilibrium(
        load, requests, Shape(), 1, Choice(ROWS, SHARES), SERVICE_NS / MEAN_ROWS, MEAN_SQUARE / MEAN_ROWS**2, "sjf",
        **changes,
    )  # fmt: skip


def continuous(load: float, requests: int, **changes: Any) -> Equilibrium:
    rows = Rows(FINE_ROWS, Shape(Kind.EXPONENTIAL))
    return Equilibrium(load, requests, Shape(), 1, rows, SERVICE_NS / FINE_ROWS, 2.0, "sjf", **changes)


@pytest.mark.parametrize(
    "queue",
    [
        three_classes(0.5, 1_500, warmup=200),
        pytest.param(three_classes(0.8, 4_000), marks=FULL),
        pytest.param(three_classes(0.95, 12_000, **MOST), marks=FULL),
    ],
    ids=lambda queue: str(queue.load),
)
def test_shortest_job_first_waits_as_cobham_says(queue: Equilibrium) -> None:
    durations = [rows / MEAN_ROWS * SERVICE_S for rows in ROWS]
    agree(queue, theory.mg1_sjf(rate(queue.load), durations, SHARES))


@pytest.mark.parametrize(
    "queue",
    [
        pytest.param(continuous(0.5, 1_500, warmup=200), marks=FULL),
        continuous(0.8, 4_000),
        pytest.param(continuous(0.95, 30_000, **MOST), marks=FULL),
    ],
    ids=lambda queue: str(queue.load),
)
def test_shortest_job_first_waits_as_phipps_says(queue: Equilibrium) -> None:
    rows = range(1, 30 * FINE_ROWS)
    through = [1 - math.exp(-(count + 0.5) / FINE_ROWS) for count in (0, *rows)]
    shares = [through[1], *(high - low for low, high in pairwise(through[1:]))]
    agree(queue, theory.mg1_sjf(rate(queue.load), [count / FINE_ROWS * SERVICE_S for count in rows], shares))


def test_another_order_would_be_found_out() -> None:
    """The intervals are narrow enough: theory of the other order lies far outside."""
    fcfs, sjf = Equilibrium(0.8, 1_500, replications=20), continuous(0.8, 1_500, replications=20)
    expected = theory.mm1(rate(0.8), SERVICE_S)
    assert fcfs.wait.contains(expected.wait_s)
    assert not sjf.wait.contains(expected.wait_s)
