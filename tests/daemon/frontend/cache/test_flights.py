from collections.abc import Callable

import pytest

from tensord.daemon.frontend.cache.flights import Waiting
from tensord.daemon.frontend.requests import InferRequest

MakeWaiting = Callable[..., InferRequest]


@pytest.fixture
def make(make_request: MakeWaiting) -> MakeWaiting:
    """Makes requests with a deadline."""

    def made(deadline_ns: int) -> InferRequest:
        request = make_request(inputs_in={0: (1, 0), 1: (1, 64)}, outputs_in={0: (1, 128), 1: (1, 192)})
        request.deadline_ns = deadline_ns
        return request

    return made


def waiting_for(make: MakeWaiting, *deadlines: int) -> tuple[Waiting, list[InferRequest]]:
    waiting = Waiting()
    requests = [make(deadline) for deadline in deadlines]
    for request in requests:
        waiting.add(request)
    return waiting, requests


def test_those_are_overdue_whose_deadline_has_come_earliest_first(make: MakeWaiting) -> None:
    waiting, (late, early, later) = waiting_for(make, 20, 10, 21)
    assert list(waiting.overdue(9)) == []
    assert list(waiting.overdue(20)) == [early, late]
    assert later in waiting
    assert waiting.wake_at() == 21


def test_who_has_left_is_neither_overdue_nor_a_reason_to_wake(make: MakeWaiting) -> None:
    waiting, (first, second) = waiting_for(make, 10, 20)
    waiting.discard(first)
    waiting.discard(first)
    assert (len(waiting), first in waiting, second in waiting) == (1, False, True)
    assert waiting.wake_at() == 20
    assert list(waiting.overdue(99)) == [second]


def test_nobody_waits_for_nothing(make: MakeWaiting) -> None:
    waiting, (only,) = waiting_for(make, 10)
    waiting.discard(only)
    assert not waiting
    assert waiting.wake_at() is None


def test_places_of_those_who_left_do_not_add_up(make: MakeWaiting) -> None:
    waiting = Waiting()
    for number in range(1_000):
        request = make(10**9 + number)
        waiting.add(request)
        waiting.discard(request)
    assert len(waiting._deadlines) < 200
