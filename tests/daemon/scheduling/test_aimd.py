import pytest

from tensord.daemon.scheduling.aimd import AdaptiveRows

from .rig import MS


@pytest.fixture
def size() -> AdaptiveRows:
    """At 10 rows of 32, with a target of 10 ms."""
    return AdaptiveRows(10, rows_max=32, target_ns=10 * MS)


def after(size: AdaptiveRows, *, waited: int = 0, took: int, full: bool = True, released: int = 0) -> int:
    size.learn(released + took, released - waited, released, full=full)
    return size.rows


def test_a_full_batch_in_time_adds_a_row(size: AdaptiveRows) -> None:
    assert after(size, waited=5 * MS, took=5 * MS) == 11


def test_a_batch_that_the_size_did_not_limit_adds_nothing(size: AdaptiveRows) -> None:
    assert after(size, took=MS, full=False) == 10


def test_a_late_batch_cuts_a_tenth(size: AdaptiveRows) -> None:
    assert after(size, waited=5 * MS, took=5 * MS + 1) == 9


def test_a_batch_that_was_not_full_cuts_only_where_it_took_too_long_itself(size: AdaptiveRows) -> None:
    assert after(size, waited=6 * MS, took=7 * MS, full=False) == 10
    assert after(size, took=11 * MS, full=False) == 9


def test_a_standing_queue_makes_batches_larger(size: AdaptiveRows) -> None:
    assert after(size, waited=500 * MS, took=9 * MS) == 11


def test_a_standing_queue_is_no_excuse_for_a_slow_batch(size: AdaptiveRows) -> None:
    assert after(size, waited=500 * MS, took=11 * MS) == 9


def test_batches_released_before_a_cut_say_nothing(size: AdaptiveRows) -> None:
    assert [after(size, took=20 * MS, released=released * MS) for released in (0, 1, 19, 20)] == [9, 9, 9, 8]


def test_it_stays_between_one_row_and_the_most(size: AdaptiveRows) -> None:
    for step in range(40):
        after(size, took=MS, released=step * MS)
    assert size.rows == 32
    for step in range(100):
        after(size, took=20 * MS, released=(100 + 20 * step) * MS)
    assert size.rows == 1


def test_from_one_row_it_grows_again() -> None:
    size = AdaptiveRows(0.0, rows_max=8, target_ns=10 * MS)
    assert [after(size, took=MS) for _ in range(3)] == [2, 3, 4]


def test_a_smaller_most_holds_at_once_and_a_larger_one_lets_it_grow(size: AdaptiveRows) -> None:
    size.rows_max = 4
    assert size.rows == 4
    assert after(size, took=MS) == 4
    size.rows_max = 32
    assert after(size, took=MS) == 5
