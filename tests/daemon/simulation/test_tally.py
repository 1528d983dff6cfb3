import pytest

from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.simulation.engine import NEVER
from tensord.daemon.simulation.request import SimulatedRequest
from tensord.daemon.simulation.tally import Tally, Usage
from tensord.ipc.errors import QueueFull

QUEUE = ModelQueue(3, "m", ModelPolicy(), idempotent=True)


def request(sent_ns: int, rows: int = 1, tenant: str = "t", deadline_ns: int = 10_000) -> SimulatedRequest:
    return SimulatedRequest(0, 3, (rows, "", tenant, 1, 0, 1.0), sent_ns, deadline_ns, flow=1)


def batch(*requests: SimulatedRequest) -> Batch[SimulatedRequest]:
    rows = sum(each.rows for each in requests)
    return Batch(1, QUEUE, "", 9, list(requests), rows, ReleaseReason.FULL, 0, 0, 1)


def run(tally: Tally, *requests: SimulatedRequest, begun_ns: int, ended_ns: int) -> None:
    for each in requests:
        tally.queued(each)
    made = batch(*requests)
    tally.begin(made, begun_ns, ended_ns)
    tally.answer(made, begun_ns, ended_ns, ended_ns + 5)


def test_a_response_is_wait_and_service_and_the_way() -> None:
    tally = Tally(0, 1_000)
    run(tally, request(100), begun_ns=130, ended_ns=170)
    times = tally.times[0]
    assert (list(times.waits), list(times.services), list(times.responses)) == ([30], [40], [75])


def test_what_ends_outside_of_the_window_is_not_counted() -> None:
    tally = Tally(1_000, 2_000)
    run(tally, request(900), begun_ns=910, ended_ns=950)
    run(tally, request(1_900), begun_ns=1_910, ended_ns=2_100)
    run(tally, request(900), begun_ns=910, ended_ns=1_500)
    assert (tally.answered, tally.arrived) == (1, 1)
    assert tally.busy_ns == {9: 500 + 90}


def test_the_queue_is_averaged_over_the_window() -> None:
    tally = Tally(1_000, 2_000)
    run(tally, request(500), begun_ns=1_250, ended_ns=1_300)
    run(tally, request(1_500), begun_ns=2_500, ended_ns=2_600)
    assert tally.queue_length == pytest.approx((250 + 500) / 1_000)


def test_what_still_waits_counts_as_waiting() -> None:
    tally = Tally(0, 1_000)
    tally.queued(request(600))
    assert (tally.waiting, tally.queue_length) == (1, 0.4)


def test_what_is_dropped_has_waited() -> None:
    tally = Tally(0, 1_000)
    late = request(100)
    tally.queued(late)
    tally.drop(late, 7, 300)
    assert (tally.waiting, tally.refused, tally.queue_length) == (0, {7: 1}, 0.2)


def test_a_refusal_is_an_arrival_that_never_waited() -> None:
    tally = Tally(0, 1_000)
    tally.refuse(request(100), QueueFull.code, 100)
    assert (tally.arrived, tally.refused, tally.queue_length) == (1, {QueueFull.code: 1}, 0.0)


def test_an_answer_after_the_deadline_is_late() -> None:
    tally = Tally(0, 1_000)
    run(tally, request(100, deadline_ns=174), begun_ns=130, ended_ns=170)
    run(tally, request(100, deadline_ns=175), begun_ns=130, ended_ns=170)
    assert (tally.answered, tally.in_time) == (2, 1)


def test_device_time_is_shared_out_by_rows() -> None:
    tally = Tally(0, 1_000)
    run(tally, request(0, rows=3, tenant="a"), request(0, rows=1, tenant="b"), begun_ns=100, ended_ns=140)
    assert tally.tenants == {"a": Usage(1, 3, 30.0), "b": Usage(1, 1, 10.0)}
    assert tally.models == {3: Usage(2, 4, 40.0)}


def test_without_an_end_the_window_ends_with_the_simulation() -> None:
    tally = Tally(0, NEVER)
    tally.close(500)
    assert tally.window_s == 5e-7


def test_a_window_is_never_empty() -> None:
    tally = Tally(0, NEVER)
    tally.close(0)
    assert tally.queue_length == 0.0
