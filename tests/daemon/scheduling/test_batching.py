from typing import Any

import pytest

from tensord.daemon.knobs import KNOBS
from tensord.daemon.scheduling import GlobalPolicy, ModelPolicy, ReleaseReason, Request, Scheduler
from tensord.daemon.scheduling.batching import BATCHINGS
from tensord.ipc.limits import BATCH_REQUESTS_MAX, PARTS_MAX

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


def test_every_batching_that_the_knob_takes_is_there() -> None:
    assert set(KNOBS["batching"].choices) == set(BATCHINGS)


class TestPreferredSizes:
    @pytest.fixture
    def rig(self) -> Rig:
        """A model of 10 rows per batch that prefers 2 or 4; its worker has one batch in flight."""
        rig = Rig()
        rig.model(max_batch=10, window_ns=5 * MS, preferred_batches=(2, 4, 100))
        rig.submit(make())
        rig.only()
        return rig

    @pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (2, 2), (3, 2), (4, 4), (9, 4)])
    def test_a_batch_ends_at_the_largest_that_is_reached(self, rig: Rig, waiting: int, taken: int) -> None:
        rig.submit(*(make() for _ in range(waiting)))
        rig.now += 5 * MS
        batch = rig.only()
        assert (batch.rows, batch.reason) == (taken, ReleaseReason.WINDOW)

    def test_a_full_batch_has_all_its_rows(self, rig: Rig) -> None:
        rig.submit(*(make() for _ in range(11)))
        batch = rig.only()
        assert (batch.rows, batch.reason) == (10, ReleaseReason.FULL)

    def test_a_size_beyond_the_largest_batch_is_never_reached(self, rig: Rig) -> None:
        rig.submit(make(rows=150))
        assert rig.only().rows == 150

    def test_a_request_is_not_cut(self, rig: Rig) -> None:
        rig.submit(make(rows=3), make(rows=3))
        rig.now += 5 * MS
        assert rig.only().rows == 3

    def test_a_leader_beyond_the_size_goes_alone(self, rig: Rig) -> None:
        rig.submit(make(rows=5), make())
        rig.now += 5 * MS
        assert rig.only().rows == 5

    def test_a_near_deadline_takes_everything(self, rig: Rig) -> None:
        rig.submit(make(), make(), make(deadline_ns=2 * MS))
        rig.now += 2 * MS - 1
        batch = rig.only()
        assert (batch.rows, batch.reason) == (3, ReleaseReason.DEADLINE)

    def test_the_rest_goes_by_its_own_window(self, rig: Rig) -> None:
        rig.scheduler.set_global(GlobalPolicy(pipeline_depth=8))
        rig.submit(make(), make())
        rig.now += 3 * MS
        rig.submit(make())
        rig.now += 2 * MS
        assert rig.only().rows == 2
        assert rig.scheduler.wake_at() == 8 * MS
        rig.now = 8 * MS
        assert (rig.only().reason, rig.now) == (ReleaseReason.WINDOW, 8 * MS)

    def test_a_rest_whose_window_is_over_goes_at_once(self, rig: Rig) -> None:
        rig.scheduler.set_global(GlobalPolicy(pipeline_depth=8))
        rig.submit(*(make() for _ in range(7)))
        rig.now += 5 * MS
        assert [batch.rows for batch in rig.dispatch()] == [4, 2, 1]

    def test_an_idle_worker_ends_at_a_size_too(self) -> None:
        rig = Rig()
        rig.model(max_batch=10, preferred_batches=(4,))
        rig.submit(*(make() for _ in range(7)))
        batch = rig.only()
        assert (batch.rows, batch.reason) == (4, ReleaseReason.IDLE)

    def test_tenants_still_share(self) -> None:
        rig = Rig()
        rig.model(max_batch=10, preferred_batches=(4,))
        rig.submit(*(make(tenant=tenant) for tenant in "aaaabb"))
        taken = [request.tenant for request in rig.only().requests]
        assert sorted(taken) == ["a", "a", "b", "b"]


def test_large_requests_are_told_how_to_be_cut() -> None:
    rig = Rig()
    rig.model(0, max_batch=64)
    rig.model(1, max_batch=64, preferred_batches=(16, 48, 96))
    rig.model(2, max_batch=64, batching="aimd")
    assert [rig.scheduler.parts(key, 130) for key in (0, 1)] == [[44, 43, 43], [48, 48, 34]]
    assert rig.scheduler.parts(2, 3) == [1, 1, 1]


@pytest.mark.parametrize("policy", [{"preferred_batches": (1,)}, {"batching": "aimd"}], ids=str)
def test_no_policy_cuts_a_request_into_more_parts_than_there_may_be(policy: dict[str, Any]) -> None:
    rig = Rig()
    rig.model(max_batch=64, **policy)
    assert rig.scheduler.parts(0, PARTS_MAX) == [1] * PARTS_MAX
    parts = rig.scheduler.parts(0, 16 * PARTS_MAX)
    assert (sum(parts), len(parts) <= PARTS_MAX) == (16 * PARTS_MAX, True)


def test_the_mean_batch_can_be_told() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    rig.submit(*(make() for _ in range(6)))
    rig.run_all()
    model = rig.scheduler.statistics().models[0]
    assert (model.released_rows, sum(model.released.values())) == (6, 2)
