import random

import pytest

from tensord.daemon.supervisor.backoff import FIRST_S, STABLE_S, Backoff


def delays(deaths: int, max_s: float = 1e9, lived_s: float = 0.0) -> list[float]:
    backoff = Backoff(random.Random(1))
    return [backoff.died(lived_s, max_s) for _ in range(deaths)]


def test_the_first_death_costs_no_time() -> None:
    assert delays(1) == [0.0]


def test_delays_double_within_their_jitter() -> None:
    for number, delay in enumerate(delays(12)[1:]):
        assert 0.75 * FIRST_S * 2**number <= delay <= 1.25 * FIRST_S * 2**number


@pytest.mark.parametrize("max_s", [0.0, 0.05, 3.0])
def test_no_delay_is_longer_than_the_knob_says(max_s: float) -> None:
    waited = delays(100, max_s)
    assert max(waited) == max_s
    assert waited[-1] == max_s


def test_a_thousand_deaths_do_not_overflow() -> None:
    assert delays(5_000, max_s=30.0)[-1] == 30.0


def test_a_child_that_was_stable_starts_again_at_once() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(6):
        backoff.died(0.1, 30.0)
    assert backoff.failures == 6
    assert backoff.died(STABLE_S, 30.0) == 0.0
    assert backoff.failures == 1
    assert backoff.died(STABLE_S - 1, 30.0) > 0.0


def test_children_that_die_together_do_not_come_back_together() -> None:
    backoffs = [Backoff() for _ in range(20)]
    for backoff in backoffs:
        backoff.died(0.0, 30.0)
    assert len({backoff.died(0.0, 30.0) for backoff in backoffs}) > 1
