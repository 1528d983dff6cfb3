import pytest

from tensord.daemon.scheduling import RequestState
from tensord.daemon.scheduling.feasibility import PROBE_NS
from tensord.ipc.errors import DeadlineExceeded, QueueDelay, TensordError

from .rig import MS, Rig, make
from .test_feasibility import learned
from .virtual import BATCH_NS


def test_what_a_late_batch_leaves_no_time_for_is_not_started() -> None:
    rig = learned()
    head, _ = rig.scheduler._workers[1].in_flight.values()
    rig.submit(doomed := make(deadline_ns=rig.now + 14 * MS), patient := make())
    rig.now += 10 * MS  # 6 ms late
    rig.complete(head, 10 * MS)
    assert rig.only().requests == [patient]
    ((request, error),) = rig.scheduler.expire(rig.now)
    assert (request, doomed.state) == (doomed, RequestState.EXPIRED)
    assert isinstance(error, DeadlineExceeded)
    assert error.stage == "queue"
    assert rig.scheduler.statistics().models[0].expired == 1


def test_wake_at_asks_for_those_who_left_at_dispatch_to_be_fetched() -> None:
    rig = learned()
    head, _ = rig.scheduler._workers[1].in_flight.values()
    rig.submit(make(deadline_ns=rig.now + 14 * MS))
    rig.now += 10 * MS
    rig.complete(head, 10 * MS)
    assert rig.dispatch() == []
    assert rig.scheduler.has_work
    assert rig.scheduler.wake_at() == 0
    assert len(rig.expired()) == 1
    assert rig.scheduler.wake_at() is None


def test_predictions_that_nothing_has_confirmed_for_long_end_nobody() -> None:
    rig = learned()
    head, _ = rig.scheduler._workers[1].in_flight.values()
    rig.now += PROBE_NS
    rig.submit(tight := make(deadline_ns=rig.now + MS))
    rig.scheduler._workers[1].pipeline_depth = 3
    assert rig.only().requests == [tight]
    assert head.requests[0].state is RequestState.RUNNING


def test_each_batch_that_comes_back_teaches_the_predictions() -> None:
    rig = learned()
    forecast = rig.scheduler._models[0].forecast
    rig.submit(request := make(deadline_ns=rig.now + 10 * BATCH_NS))
    assert request.finish_ns == pytest.approx(rig.now + 3 * BATCH_NS, rel=0.01)
    for _ in range(3):
        batch = next(iter(rig.scheduler._workers[1].in_flight.values()))
        rig.now += 2 * BATCH_NS
        rig.complete(batch, 2 * BATCH_NS)
        rig.dispatch()
    assert forecast.proven_ns == rig.now
    assert forecast.margin_ns > BATCH_NS


def test_with_the_check_off_a_late_request_is_started() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make())
    rig.complete(rig.only(), 40 * MS)
    rig.submit(one := make(deadline_ns=rig.now + MS))
    assert rig.only().requests == [one]


def test_those_whom_codel_cuts_together_hear_when_what_is_left_will_be_through() -> None:
    """None of them waits for the others, however many were in front of it when it was cut."""
    rig = Rig()
    rig.model(max_batch=1, window_ns=0, codel_target_ns=BATCH_NS, codel_interval_ns=BATCH_NS)
    rig.submit(*[make() for _ in range(100)])
    errors: list[TensordError] = []
    while not errors:
        for batch in rig.dispatch():
            rig.now += BATCH_NS
            rig.complete(batch, BATCH_NS)
        errors += [error for _, error in rig.scheduler.expire(rig.now)]
    assert len(errors) > 50
    assert {type(error) for error in errors} == {QueueDelay}
    assert {error.retry_after_ms for error in errors} == {BATCH_NS // MS}
