from operator import attrgetter

from hypothesis import given
from hypothesis import strategies as st

from tensord.daemon.scheduling import Request
from tensord.daemon.scheduling.lazy_queue import LazyQueue

from .rig import make, tenant_queue

HOME = tenant_queue()


def entry(seq: int) -> Request:
    request = make()
    request.seq, request.home = seq, HOME
    return request


def queue_of(*entries: Request) -> LazyQueue:
    queue = LazyQueue(attrgetter("seq"))
    for one in entries:
        queue.push(one)
    return queue


def test_peek_of_an_empty_queue_is_none() -> None:
    assert queue_of().peek() is None


def test_equal_keys_keep_the_order_of_insertion() -> None:
    first, second = entry(1), entry(1)
    assert queue_of(first, second).peek() is first


def test_a_late_key_goes_before_larger_ones() -> None:
    queue = queue_of(entry(5), entry(7), late := entry(3))
    assert queue.peek() is late


def test_an_entry_without_a_home_is_skipped() -> None:
    queue = queue_of(first := entry(1), second := entry(2), late := entry(0))
    late.home = first.home = None
    assert queue.peek() is second


def test_a_request_that_came_back_is_listed_once() -> None:
    queue = queue_of(back := entry(1), entry(2))
    queue.push(back)
    assert [one.seq for one in queue.living()] == [1, 2]


def test_dead_entries_behind_a_living_head_are_swept() -> None:
    queue = queue_of(entry(0))
    for key in range(1, 10_000):
        queue.push(dead := entry(key))
        dead.home = None
    assert len(queue._main) <= 130


def test_dead_late_entries_behind_a_living_one_are_swept() -> None:
    queue = queue_of(entry(10**6), entry(0))
    for key in range(1, 10_000):
        queue.push(dead := entry(key))
        dead.home = None
    assert len(queue._late) <= 130


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=300))
def test_living_entries_come_out_sorted(pushes: list[tuple[int, bool]]) -> None:
    queue = queue_of()
    alive = []
    for key, dies in pushes:
        queue.push(one := entry(key))
        if dies:
            one.home = None
        else:
            alive.append(key)
    taken = []
    while (head := queue.peek()) is not None:
        taken.append(head.seq)
        head.home = None
    assert taken == sorted(alive)
