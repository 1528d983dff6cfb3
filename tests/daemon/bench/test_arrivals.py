from collections.abc import Iterator
from itertools import chain, islice, pairwise

import pytest

from tensord.daemon.bench.arrivals import CHUNK, schedule
from tensord.daemon.bench.plan import Arrivals


def first(number: int, arrivals: Iterator[int]) -> list[int]:
    return list(islice(arrivals, number))


def test_constant_arrivals_have_equal_gaps_for_ever() -> None:
    times = first(3 * CHUNK, schedule(1_000, Arrivals.CONSTANT, 1, range(4), 4))
    assert times == [number * 1_000_000 for number in range(3 * CHUNK)]


def test_poisson_arrivals_have_the_rate_and_its_spread() -> None:
    times = first(20_000, schedule(1_000, Arrivals.POISSON, 1, range(4), 4))
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1e6, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)  # as of an exponential distribution
    assert min(gaps) >= 0


@pytest.mark.parametrize("arrivals", Arrivals)
def test_the_processes_of_a_load_share_one_schedule(arrivals: Arrivals) -> None:
    whole = first(700, schedule(5_000, arrivals, 3, range(7), 7))
    shares = [first(len(share) * 100, schedule(5_000, arrivals, 3, share, 7)) for share in (range(2), range(2, 7))]
    assert sorted(chain(*shares)) == whole


def test_the_seed_decides() -> None:
    one, same, other = (first(50, schedule(100, Arrivals.POISSON, seed, range(1), 1)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
