from itertools import islice, pairwise

import numpy as np
import pytest

from tensord.daemon.simulation.shapes import Kind, Shape
from tensord.daemon.simulation.workload import (
    CHUNK,
    Arrivals,
    Choice,
    Rows,
    Workload,
    arrivals_ns,
    draws,
    think_times_ns,
)

SEED = (1, 2)
POISSON = Workload(0, Arrivals.POISSON, rate_per_s=1_000)


def gaps(workload: Workload, count: int = 50_000) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.diff(list(islice(arrivals_ns(workload, SEED), count)))


def test_poisson_arrivals_have_exponential_gaps() -> None:
    found = gaps(POISSON)
    assert found.mean() == pytest.approx(1e6, rel=0.02)
    assert found.std() == pytest.approx(1e6, rel=0.02)


def test_constant_arrivals_have_equal_gaps() -> None:
    assert set(gaps(Workload(0, Arrivals.CONSTANT, rate_per_s=1_000), 3 * CHUNK)) == {1_000_000}


def test_bursty_arrivals_keep_the_rate_and_vary_more() -> None:
    found = gaps(Workload(0, Arrivals.BURSTY, rate_per_s=1_000, burst_s=0.02, pause_s=0.03))
    assert found.mean() == pytest.approx(1e6, rel=0.06)
    assert found.std() > 3e6
    assert found.min() >= 0


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again = (list(islice(arrivals_ns(POISSON, SEED), 10)) for _ in range(2))
    assert first == again
    assert list(islice(arrivals_ns(POISSON, (1, 3)), 10)) != first


def test_what_one_thing_draws_does_not_move_another() -> None:
    """So settings whose workloads differ in one thing meet the same in all others."""
    some = Workload(0, rate_per_s=1, tenants=Choice(["a", "b"], [1, 1]), sessions=9)
    other = Workload(0, rate_per_s=1, rows=Rows(50, Shape(Kind.EXPONENTIAL)), tenants=some.tenants, sessions=9)
    shape = Shape(Kind.EXPONENTIAL)
    before, after = (list(islice(draws(each, shape, SEED), 2 * CHUNK)) for each in (some, other))
    assert [each[1:] for each in before] == [each[1:] for each in after]
    assert before != after


def test_shares_are_kept() -> None:
    workload = Workload(
        0,
        rate_per_s=1,
        rows=Choice([1, 8], [3, 1]),
        priorities=Choice([0, 2], [1, 1]),
        buckets=Choice(["s", "l"], [9, 1]),
    )
    rows, buckets, _, priorities, sessions, factors = zip(*islice(draws(workload, Shape(), SEED), 20_000), strict=True)
    assert rows.count(8) / 20_000 == pytest.approx(0.25, abs=0.02)
    assert buckets.count("l") / 20_000 == pytest.approx(0.1, abs=0.02)
    assert priorities.count(2) / 20_000 == pytest.approx(0.5, abs=0.02)
    assert (set(sessions), set(factors)) == ({0}, {1.0})


def test_rows_have_their_mean_and_are_never_0() -> None:
    drawn = Rows(20, Shape(Kind.EXPONENTIAL)).draw(np.random.default_rng(1), 50_000)
    assert min(drawn) == 1
    assert np.mean(drawn) == pytest.approx(20, rel=0.03)


def test_sessions_are_numbered_from_1() -> None:
    drawn = islice(draws(Workload(0, rate_per_s=1, sessions=3), Shape(), SEED), 1_000)
    assert {each[4] for each in drawn} == {1, 2, 3}


def test_thinking_has_its_mean() -> None:
    found = list(islice(think_times_ns(Workload(0, think_ns=5e6), SEED), 50_000))
    assert np.mean(found) == pytest.approx(5e6, rel=0.02)


def test_arrivals_are_in_order() -> None:
    for arrivals, rate_per_s in ((Arrivals.POISSON, 1e5), (Arrivals.BURSTY, 1e5), (Arrivals.POISSON, 1e-12)):
        times = list(islice(arrivals_ns(Workload(0, arrivals, rate_per_s=rate_per_s), SEED), 5 * CHUNK))
        assert all(0 <= before <= after for before, after in pairwise(times))
