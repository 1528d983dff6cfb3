from collections import Counter

import pytest

from tensord.daemon.scheduling import RequestState
from tensord.daemon.scheduling.lazy_queue import LazyQueue
from tensord.daemon.scheduling.model import ACCOUNTS_SWEPT_MIN, BUCKETS_KEPT
from tensord.daemon.scheduling.order import ORDER_POLICIES
from tensord.ipc.errors import ModelUnavailable

from .rig import FAR_NS, MS, Rig, make


def test_empty_buckets_are_dropped_beyond_a_few() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    for bucket in range(10 * BUCKETS_KEPT):
        rig.submit(make(bucket=bucket))
        rig.run_all()
    assert len(rig.scheduler._models[0].buckets) <= BUCKETS_KEPT + 1


def test_idle_tenants_are_forgotten() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    for index in range(10 * ACCOUNTS_SWEPT_MIN):
        rig.submit(make(tenant=f"t{index}"))
        rig.run_all()
    assert len(rig.scheduler._models[0].accounts) <= 2 * ACCOUNTS_SWEPT_MIN


def test_idle_tenants_are_forgotten_while_another_one_stays_busy() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make(tenant="busy"), make(tenant="busy"), make(tenant="busy"))
    rig.dispatch()
    for index in range(10 * ACCOUNTS_SWEPT_MIN):
        rig.submit(one := make(tenant=f"t{index}"))
        rig.scheduler.cancel(rig.now, one)
    assert len(rig.scheduler._models[0].accounts) <= 2 * ACCOUNTS_SWEPT_MIN
    assert "busy" in rig.scheduler._models[0].accounts


def test_a_debt_is_not_forgotten_while_others_wait() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make(tenant="debtor", rows=50_000), *(make(tenant="busy") for _ in range(3)))
    rig.dispatch()
    model = rig.scheduler._models[0]
    debt = model.accounts["debtor"].round
    for index in range(2 * ACCOUNTS_SWEPT_MIN):
        rig.submit(one := make(tenant=f"t{index}"))
        rig.scheduler.cancel(rig.now, one)
    assert model.accounts["debtor"].round == debt > model.round


def test_a_tenant_that_waits_again_uses_its_account_of_now() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    for _ in range(2):
        rig.submit(*(requests := [make(tenant=name) for name in "abab"]))
        accounts = rig.scheduler._models[0].accounts
        for request in requests:
            assert request.home is not None
            assert request.home.account is accounts[request.tenant]
        rig.run_all()


def test_an_emptied_queue_holds_no_request() -> None:
    rig = Rig()
    rig.model()
    rig.submit(*(make() for _ in range(20)))
    rig.dispatch()
    (bucket,) = rig.scheduler._models[0].buckets.values()
    orders = [tenant.order for level in bucket.levels for tenant in level.tenants.values()]
    queues = [bucket.deadlines, *(level.ages for level in bucket.levels), *orders]
    assert [len(queue._main) for queue in queues if isinstance(queue, LazyQueue)] == [0] * 5


def test_rings_do_not_grow() -> None:
    rig = Rig()
    rig.model()
    for _ in range(1_000):
        rig.submit(make(tenant="a"), make(tenant="b"))
        rig.run_all()
    (bucket,) = rig.scheduler._models[0].buckets.values()
    assert [len(level.ring._heap) for level in bucket.levels] == [0, 0, 0]


def test_cancelled_requests_do_not_pile_up_behind_a_waiting_one() -> None:
    rig = Rig()
    rig.model(workers=())
    rig.scheduler.expect_replica(rig.now, 0, True, "")
    rig.submit(make())
    for _ in range(5_000):
        rig.submit(one := make())
        rig.scheduler.cancel(rig.now, one)
    (bucket,) = rig.scheduler._models[0].buckets.values()
    assert len(bucket.deadlines._main) < 200
    assert len(bucket.levels[1].ages._main) < 200


def test_removing_a_model_refuses_what_waits_and_lets_the_rest_run() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(*(make() for _ in range(5)))
    running = rig.dispatch()
    refused = rig.scheduler.remove_model(rig.now, 0)
    assert [type(error) for _, error in refused] == [ModelUnavailable] * 3
    assert [request.seq for request, _ in refused] == [3, 4, 5]
    for batch in running:
        rig.complete(batch)
        assert batch.requests[0].state is RequestState.DONE
    assert rig.scheduler.statistics().workers[0].in_flight_batches == 0


def test_a_removed_replica_gets_nothing_more() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make(), make(), make())
    first, _ = rig.dispatch()
    rig.scheduler.remove_replica(rig.now, 1, 0)
    rig.complete(first)
    assert rig.dispatch() == []


def test_a_changed_policy_keeps_every_request_and_its_order() -> None:
    rig = Rig()
    rig.model(max_batch=8, order="fcfs")
    rig.submit(*(requests := [make() for _ in range(20)]))
    rig.set_policy(max_batch=3)
    assert [one for batch in rig.run_all() for one in batch.requests] == requests


@pytest.mark.parametrize("after", ORDER_POLICIES)
@pytest.mark.parametrize("before", ORDER_POLICIES)
def test_an_exchanged_order_policy_keeps_every_request(before: str, after: str) -> None:
    rig = Rig()
    rig.model(max_batch=4, order=before)
    rig.submit(*(requests := [make(tenant=f"t{index % 3}", rows=1 + index % 4) for index in range(30)]))
    rig.set_policy(max_batch=4, order=after)
    assert Counter(one for batch in rig.run_all() for one in batch.requests) == Counter(requests)


def test_expired_requests_are_returned_once_and_never_run() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(make(), make(), late := make(deadline_ns=5 * MS), make(deadline_ns=FAR_NS))
    rig.dispatch()
    rig.now = 5 * MS
    assert rig.expired() == [late]
    assert rig.expired() == []
    assert late.state is RequestState.EXPIRED
    assert not rig.scheduler.cancel(rig.now, late)


def test_a_request_past_its_deadline_is_not_dispatched() -> None:
    rig = Rig()
    rig.model()
    rig.submit(late := make(deadline_ns=5 * MS))
    rig.now = 5 * MS
    assert rig.dispatch() == []
    assert rig.scheduler.queued == 1
    assert rig.expired() == [late]


def test_a_queued_request_can_be_cancelled_once() -> None:
    rig = Rig()
    rig.model()
    rig.submit(one := make())
    assert rig.scheduler.cancel(rig.now, one)
    assert not rig.scheduler.cancel(rig.now, one)
    assert rig.dispatch() == []


def test_a_running_request_cannot_be_cancelled() -> None:
    rig = Rig()
    rig.model()
    rig.submit(one := make())
    batch = rig.only()
    assert not rig.scheduler.cancel(rig.now, one)
    rig.complete(batch)
    assert not rig.scheduler.cancel(rig.now, one)
