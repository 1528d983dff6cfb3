from typing import Any

from tensord.daemon.frontend.cache.flights import Waiting


class Request:
    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns


def waiting_for(*deadlines: int) -> tuple[Waiting, list[Any]]:
    waiting = Waiting()
    requests: list[Any] = [Request(deadline) for deadline in deadlines]
    for request in requests:
        waiting.add(request)
    return waiting, requests


def test_those_are_overdue_whose_deadline_has_come_earliest_first() -> None:
    waiting, (late, early, later) = waiting_for(20, 10, 21)
    assert list(waiting.overdue(9)) == []
    assert list(waiting.overdue(20)) == [early, late]
    assert later in waiting
    assert waiting.wake_at() == 21


def test_who_has_left_is_neither_overdue_nor_a_reason_to_wake() -> None:
    waiting, (first, second) = waiting_for(10, 20)
    waiting.discard(first)
    waiting.discard(first)
    assert (len(waiting), first in waiting, second in waiting) == (1, False, True)
    assert waiting.wake_at() == 20
    assert list(waiting.overdue(99)) == [second]


def test_nobody_waits_for_nothing() -> None:
    waiting, (only,) = waiting_for(10)
    waiting.discard(only)
    assert not waiting
    assert waiting.wake_at() is None


def test_places_of_those_who_left_do_not_add_up() -> None:
    waiting = Waiting()
    for number in range(10_000):
        request: Any = Request(10**9 + number)
        waiting.add(request)
        waiting.discard(request)
    assert len(waiting._deadlines) < 200
