import pytest

from tensord.daemon.scheduling import GlobalPolicy, ModelPolicy, ReleaseReason, Request, Scheduler
from tensord.ipc.limits import BATCH_REQUESTS_MAX

from .rig import FAR_NS, MS, Rig, make


@pytest.fixture
def busy() -> Rig:
    """A model of 4 rows per batch and a window of 5 ms, whose worker has one batch in flight."""
    rig = Rig()
    rig.model(max_batch=4, window_ns=5 * MS)
    rig.submit(make())
    assert rig.only().reason is ReleaseReason.IDLE
    return rig


def test_an_idle_worker_gets_what_there_is(busy: Rig) -> None:
    assert busy.scheduler.statistics().models[0].released == {ReleaseReason.IDLE: 1}


def test_a_busy_worker_waits_for_more_rows(busy: Rig) -> None:
    busy.submit(make())
    assert busy.dispatch() == []


def test_enough_rows_make_a_full_batch(busy: Rig) -> None:
    busy.submit(make(rows=3), make(rows=1))
    batch = busy.only()
    assert (batch.reason, batch.rows) == (ReleaseReason.FULL, 4)


def test_a_request_that_does_not_fit_closes_the_batch(busy: Rig) -> None:
    busy.submit(make(rows=3), make(rows=2), make(rows=1))
    batch = busy.only()
    assert (batch.reason, batch.rows) == (ReleaseReason.FULL, 3)


def test_the_window_of_the_oldest_request_releases(busy: Rig) -> None:
    busy.submit(make())
    busy.now += 4 * MS
    busy.submit(make())
    busy.now += MS - 1
    assert busy.dispatch() == []
    busy.now += 1
    batch = busy.only()
    assert (batch.reason, batch.rows) == (ReleaseReason.WINDOW, 2)


def test_a_near_deadline_releases(busy: Rig) -> None:
    predicted_ns = busy.scheduler._models[0].costs.of("b", "cpu:0").predicted_ns(1)
    busy.submit(make(deadline_ns=predicted_ns + MS))
    busy.now += MS - 1
    assert busy.dispatch() == []
    busy.now += 1
    assert busy.only().reason is ReleaseReason.DEADLINE


def test_the_earliest_deadline_counts_not_the_oldest_request(busy: Rig) -> None:
    busy.submit(make(), make(deadline_ns=MS))
    busy.now += MS - 1
    assert busy.only().reason is ReleaseReason.DEADLINE


def test_draining_releases_without_a_window(busy: Rig) -> None:
    busy.submit(make())
    busy.scheduler.drain(busy.now)
    assert busy.only().reason is ReleaseReason.DRAIN


def test_the_pipeline_is_never_deeper_than_its_knob(busy: Rig) -> None:
    busy.submit(*(make() for _ in range(40)))
    assert len(busy.dispatch()) == 1
    busy.scheduler.set_global(GlobalPolicy(pipeline_depth=4))
    assert len(busy.dispatch()) == 2


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    rig.submit(make(), make(rows=9), make())
    assert [batch.rows for batch in rig.run_all()] == [1, 9, 1]


def test_buckets_never_share_a_batch() -> None:
    rig = Rig()
    rig.model(max_batch=8)
    rig.submit(*(make(bucket=index % 2) for index in range(8)))
    for batch in rig.run_all():
        assert {request.bucket for request in batch.requests} == {batch.bucket}


class TestWakeAt:
    def test_nothing_queued_wakes_nobody(self, busy: Rig) -> None:
        assert busy.scheduler.wake_at() is None

    def test_the_end_of_the_window_wakes(self, busy: Rig) -> None:
        busy.submit(make())
        assert busy.scheduler.wake_at() == 5 * MS

    def test_a_near_deadline_wakes_before_it(self, busy: Rig) -> None:
        busy.submit(make(deadline_ns=3 * MS))
        wake_ns = busy.scheduler.wake_at()
        assert wake_ns is not None
        assert wake_ns < 3 * MS
        busy.now = wake_ns
        assert busy.only().reason is ReleaseReason.DEADLINE

    def test_without_a_free_place_only_the_deadline_wakes(self, busy: Rig) -> None:
        busy.submit(make(), make(), make(), make())
        busy.dispatch()
        busy.submit(make(deadline_ns=77 * MS))
        assert busy.scheduler.wake_at() == 77 * MS

    def test_without_a_replica_only_the_deadline_wakes(self, busy: Rig) -> None:
        busy.scheduler.remove_replica(busy.now, 1, 0)
        busy.scheduler.expect_replica(busy.now, 0, True, "")
        busy.submit(make(deadline_ns=FAR_NS))
        assert busy.scheduler.wake_at() == FAR_NS

    def test_work_for_an_idle_worker_wakes_at_once(self) -> None:
        rig = Rig()
        rig.model()
        rig.now = 9
        rig.submit(make())
        wake_ns = rig.scheduler.wake_at()
        assert wake_ns is not None
        assert wake_ns <= rig.now

    def test_expired_requests_wake_until_they_are_fetched(self, busy: Rig) -> None:
        busy.submit(late := make(deadline_ns=2 * MS))
        busy.now = 10 * MS
        assert busy.dispatch() == []
        wake_ns = busy.scheduler.wake_at()
        assert wake_ns is not None
        assert wake_ns <= busy.now
        assert busy.expired() == [late]
        assert busy.scheduler.wake_at() is None


def test_a_batch_closes_at_the_most_requests_a_descriptor_holds() -> None:
    scheduler: Scheduler[Request] = Scheduler()
    scheduler.add_model(0, "m", ModelPolicy(max_batch=10 * BATCH_REQUESTS_MAX), idempotent=True)
    scheduler.add_worker(0, "cpu:0")
    scheduler.add_replica(0, 0, 0)
    for _ in range(BATCH_REQUESTS_MAX + 1):
        request = Request(
            model=0, bucket=None, tenant="t", priority=1, rows=1, arrival_ns=0, deadline_ns=10**12, session=0
        )
        assert scheduler.submit(0, request) is None
    first, second = scheduler.dispatch(10**9)
    assert (len(first.requests), first.reason) == (BATCH_REQUESTS_MAX, ReleaseReason.FULL)
    assert len(second.requests) == 1
