from typing import Any

import pytest

from tensord.daemon.scheduling import Request, RequestState, TenantPolicy
from tensord.ipc.errors import (
    DeadlineExceeded,
    ModelUnavailable,
    QueueBytesFull,
    QueueFull,
    QueueRowsFull,
    Superseded,
    TenantQueueFull,
)

from .rig import FAR_NS, MS, Rig, make


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


# ── bounds ──────────────────────────────────────────────────────────────────────────────────────


def stopped(**policy: Any) -> Rig:
    """A model whose worker takes nothing: all waits."""
    rig = Rig()
    rig.model(workers=(), **policy)
    rig.scheduler.expect_replica(rig.now, 0, True, "loading")
    return rig


def test_rows_are_bounded() -> None:
    rig = stopped(queue_rows_max=10)
    rig.submit(make(rows=4), gone := make(rows=6))
    error = rig.scheduler.submit(rig.now, make(rows=1))
    assert isinstance(error, QueueRowsFull)
    assert error.data() == {"model": "m0", "rows": 1, "limit": 10}
    rig.scheduler.cancel(rig.now, gone)
    rig.submit(make(rows=6))


def test_bytes_are_bounded() -> None:
    rig = stopped(queue_bytes_max=100)
    rig.submit(gone := make(nbytes=60), make(nbytes=40))
    error = rig.scheduler.submit(rig.now, make(nbytes=1))
    assert isinstance(error, QueueBytesFull)
    assert error.data() == {"model": "m0", "nbytes": 1, "limit": 100}
    rig.scheduler.cancel(rig.now, gone)
    rig.submit(make(nbytes=60))


@pytest.mark.parametrize("policy", [{"queue_max": 4}, {"queue_rows_max": 8}, {"queue_bytes_max": 40}])
def test_a_user_has_its_part_of_each_bound_whatever_its_names(policy: dict[str, int]) -> None:
    rig = stopped(**policy, tenant_queue_percent=50)
    rig.scheduler.set_tenants(lambda tenant: (tenant.partition("/")[0], TenantPolicy()))
    rig.submit(make(tenant="1/a", rows=2, nbytes=10), make(tenant="1/b", rows=2, nbytes=10))
    error = rig.scheduler.submit(rig.now, make(tenant="1/c", rows=2, nbytes=10))
    assert isinstance(error, TenantQueueFull)
    assert error.data() == {"model": "m0", "percent": 50}
    rig.submit(make(tenant="2", rows=2, nbytes=10))


def test_a_user_may_always_have_one_request() -> None:
    rig = stopped(queue_max=4, queue_rows_max=10, tenant_queue_percent=1)
    rig.submit(make(rows=8), make(tenant="other"))
    assert isinstance(rig.scheduler.submit(rig.now, make()), TenantQueueFull)


# ── latest ──────────────────────────────────────────────────────────────────────────────────────


def frame(session: int = 7, **fields: Any) -> Request:
    return make(session=session, latest=True, **fields)


def test_a_newer_request_of_a_session_takes_the_place_of_the_waiting_one(rig: Rig) -> None:
    rig.submit(old := frame())
    rig.now = 3 * MS
    rig.submit(new := frame())
    ((evicted, error),) = rig.scheduler.expire(rig.now)
    assert (evicted, old.state) == (old, RequestState.REFUSED)
    assert isinstance(error, Superseded)
    assert (new.seq, new.inherited_ns) == (old.seq, 3 * MS)
    assert rig.scheduler.statistics().models[0].refused == {Superseded.code: 1}


def test_a_fast_camera_is_served_in_its_turn() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make(), make())
    running = rig.dispatch()
    rig.submit(frame(), *(make() for _ in range(5)))
    for _ in range(10):
        rig.now += MS
        rig.submit(newest := frame())
    rig.complete(running[0])
    assert rig.only().requests == [newest]


@pytest.mark.parametrize("other", [frame(8), make(session=7), make(latest=True), make(session=7, tenant="other")])
def test_others_replace_nothing(other: Request) -> None:
    rig = stopped()
    rig.submit(frame(), other)
    assert rig.scheduler.queued == 2


def test_a_running_request_is_not_replaced() -> None:
    rig = Rig()
    rig.model()
    rig.submit(running := frame())
    batch = rig.only()
    rig.submit(frame())
    assert (batch.requests, running.state) == ([running], RequestState.RUNNING)
    assert rig.scheduler.expire(rig.now) == []


def test_a_full_queue_takes_what_replaces(rig: Rig) -> None:
    rig.submit(frame(), make())
    rig.submit(frame())
    assert isinstance(rig.scheduler.submit(rig.now, frame(8)), QueueFull)


def test_who_is_refused_replaces_nobody(rig: Rig) -> None:
    rig.submit(old := frame())
    rig.now = 5
    assert isinstance(rig.scheduler.submit(rig.now, frame(deadline_ns=5)), DeadlineExceeded)
    assert old.state is RequestState.QUEUED


def test_sessions_that_left_are_forgotten() -> None:
    rig = stopped()
    rig.submit(make())
    for session in range(1, 1_000):
        rig.submit(one := frame(session))
        rig.scheduler.cancel(rig.now, one)
    assert len(rig.scheduler._models[0].latest) < 100


# ── expiry ──────────────────────────────────────────────────────────────────────────────────────


def test_requests_expire_at_their_deadline_to_the_nanosecond() -> None:
    rig = stopped()
    deadlines = [7 * MS + 1, 3 * MS, 7 * MS, 5 * MS + 3, FAR_NS]
    rig.submit(*(make(deadline_ns=deadline, bucket=number % 2) for number, deadline in enumerate(deadlines)))
    for deadline in sorted(deadlines)[:-1]:
        assert rig.scheduler.wake_at() == deadline
        rig.now = deadline - 1
        assert rig.scheduler.expire(rig.now) == []
        rig.now = deadline
        ((request, error),) = rig.scheduler.expire(rig.now)
        assert (request.deadline_ns, request.state) == (deadline, RequestState.EXPIRED)
        assert error.data() == {"stage": "queue", "late_ms": 0.0}
