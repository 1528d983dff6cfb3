import pytest

from tensord.daemon.scheduling import RequestState
from tensord.ipc.errors import DeadlineExceeded, ModelUnavailable, QueueFull

from .rig import MS, Rig, make


@pytest.fixture
def rig() -> Rig:
    """A model with a queue of two, whose worker is full."""
    rig = Rig()
    rig.model(max_batch=1, queue_max=2)
    rig.submit(make(), make())
    assert len(rig.dispatch()) == 2
    return rig


def test_a_deadline_in_the_past_is_refused(rig: Rig) -> None:
    rig.now = 5 * MS
    error = rig.scheduler.submit(rig.now, make(deadline_ns=3 * MS))
    assert isinstance(error, DeadlineExceeded)
    assert error.data() == {"stage": "arrival", "late_ms": 2.0}


def test_a_full_queue_says_when_it_will_have_drained(rig: Rig) -> None:
    for _ in range(10):
        rig.scheduler._models[0].costs.learn("b", "cpu:0", 1, 40 * MS)
    rig.submit(make(), make())
    error = rig.scheduler.submit(rig.now, refused := make())
    assert isinstance(error, QueueFull)
    assert error.data() == {"model": "m0", "limit": 2}
    assert error.retry_after_ms == pytest.approx(80, abs=1)
    assert refused.state is RequestState.REFUSED


def test_replicas_share_the_draining(rig: Rig) -> None:
    for _ in range(10):
        rig.scheduler._models[0].costs.learn("b", "cpu:0", 1, 40 * MS)
    rig.submit(make(), make())
    rig.scheduler.add_worker(2, "cpu:0")
    rig.scheduler.add_replica(rig.now, 2, 0)
    error = rig.scheduler.submit(rig.now, make())
    assert error is not None
    assert error.retry_after_ms == pytest.approx(40, abs=1)


def test_a_late_request_is_late_even_where_the_queue_is_full(rig: Rig) -> None:
    rig.submit(make(), make())
    rig.now = 5
    assert isinstance(rig.scheduler.submit(rig.now, make(deadline_ns=5)), DeadlineExceeded)


def test_a_lowered_bound_keeps_what_waits() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(*(make() for _ in range(10)))
    rig.set_policy(max_batch=1, queue_max=1)
    assert isinstance(rig.scheduler.submit(rig.now, make()), QueueFull)
    assert len(rig.run_all()) == 10


def test_a_model_without_replica_is_unavailable() -> None:
    rig = Rig()
    rig.model(workers=())
    error = rig.scheduler.submit(rig.now, make())
    assert isinstance(error, ModelUnavailable)
    assert error.model == "m0"


def test_the_reason_of_the_missing_replica_is_given() -> None:
    rig = Rig()
    rig.model(workers=())
    assert rig.scheduler.expect_replica(rig.now, 0, False, "its load failed") == []
    error = rig.scheduler.submit(rig.now, make())
    assert isinstance(error, ModelUnavailable)
    assert error.reason == "its load failed"


def test_requests_wait_for_an_expected_replica() -> None:
    rig = Rig()
    rig.model(workers=())
    rig.scheduler.expect_replica(rig.now, 0, True, "loading")
    rig.submit(waiting := make())
    assert rig.dispatch() == []
    rig.scheduler.add_replica(rig.now, 1, 0)
    assert rig.only().requests == [waiting]


def test_giving_up_hope_refuses_what_waits() -> None:
    rig = Rig()
    rig.model(workers=())
    rig.scheduler.expect_replica(rig.now, 0, True, "loading")
    rig.submit(late := make(deadline_ns=2 * MS), patient := make())
    rig.now = 3 * MS
    errors = dict(rig.scheduler.expect_replica(rig.now, 0, False, "it crashed"))
    assert isinstance(errors[late], DeadlineExceeded)
    assert isinstance(errors[patient], ModelUnavailable)
    assert rig.scheduler.queued == 0


def test_giving_up_hope_refuses_nothing_while_a_replica_serves(rig: Rig) -> None:
    rig.submit(make())
    assert rig.scheduler.expect_replica(rig.now, 0, False, "") == []
