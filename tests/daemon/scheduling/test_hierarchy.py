from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tensord.daemon.scheduling import Batch, GlobalPolicy, Request
from tensord.daemon.scheduling.workers import Worker

from .rig import FAR_NS, MS, Rig, make


def serve(
    rig: Rig,
    feed: Callable[[], list[Request]],
    device_ns: Callable[[Batch[Request]], int],
    share: Callable[[Request], object],
    batches: int = 600,
) -> Counter[object]:
    """Keep the queues fed and run batches on worker 1; device time per share, divided by rows within a batch."""
    got: Counter[object] = Counter()
    pending: list[Batch[Request]] = []
    for _ in range(batches):
        rig.submit(*feed())
        pending += rig.dispatch()
        batch = pending.pop(0)
        taken_ns = device_ns(batch)
        rig.now += taken_ns
        rig.complete(batch, taken_ns)
        for request in batch.requests:
            got[share(request)] += taken_ns * request.rows // batch.rows
    return got


def topped_up(rig: Rig, depth: int, *makers: Callable[[], Request]) -> Callable[[], list[Request]]:
    """Feeds so that each maker always has `depth` requests waiting."""
    waiting: list[list[Request]] = [[] for _ in makers]

    def feed() -> list[Request]:
        new = []
        for queue, maker in zip(waiting, makers, strict=True):
            queue[:] = [request for request in queue if request.home is not None]
            fresh = [maker() for _ in range(depth - len(queue))]
            queue += fresh
            new += fresh
        return new

    return feed


def test_a_higher_class_goes_first() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(low := make(priority=2), normal := make(priority=1), high := make(priority=0))
    assert [batch.requests[0] for batch in rig.run_all()] == [high, normal, low]


def test_a_batch_fills_with_lower_classes() -> None:
    rig = Rig()
    rig.model(max_batch=3)
    rig.submit(low := make(priority=2), normal := make(priority=1), high := make(priority=0))
    assert rig.only().requests == [high, normal, low]


def test_a_higher_class_of_another_model_goes_first() -> None:
    rig = Rig()
    rig.model(0, max_batch=1)
    rig.model(1, max_batch=1)
    rig.submit(make(model=0), high := make(model=1, priority=0))
    assert rig.dispatch()[0].requests == [high]


def test_without_ageing_a_low_request_waits_for_ever() -> None:
    rig = Rig()
    rig.model(max_batch=1)
    rig.submit(low := make(priority=2))
    serve(rig, topped_up(rig, 4, lambda: make(priority=0)), lambda _: MS, lambda r: r.priority)
    assert low.home is not None


@pytest.mark.parametrize("tenant", ["t", "other"])
@pytest.mark.parametrize("model", [0, 1])
def test_with_ageing_nothing_starves(tenant: str, model: int) -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=20 * MS))
    rig.model(0, max_batch=1)
    rig.model(1, max_batch=1)
    rig.submit(low := make(priority=2, tenant=tenant, model=model))
    serve(rig, topped_up(rig, 4, lambda: make(priority=0)), lambda _: MS, lambda r: r.priority, batches=60)
    assert low.home is None


def test_an_aged_request_goes_before_a_fresh_one_of_the_class_it_has_reached() -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=10 * MS))
    rig.model(max_batch=1)
    rig.submit(low := make(priority=2))
    rig.now = 10 * MS
    rig.submit(normal := make(priority=1), high := make(priority=0))
    assert [batch.requests[0] for batch in rig.run_all(compute_ns=1)] == [high, low, normal]


def test_an_aged_flood_of_low_requests_leaves_others_their_share() -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=10 * MS))
    rig.model(max_batch=1, queue_max=10_000)
    rig.submit(*(make(priority=2, tenant="flood") for _ in range(5_000)))
    rig.now = 100 * MS
    got = serve(rig, topped_up(rig, 2, lambda: make(priority=0)), lambda _: MS, lambda r: r.tenant)
    assert got["t"] >= 0.45 * got.total()


@pytest.mark.parametrize("slow_ns", [1, 7])
def test_models_share_a_device_by_weight(slow_ns: int) -> None:
    rig = Rig()
    rig.model(0, max_batch=4, weight=1.0)
    rig.model(1, max_batch=4, weight=3.0)
    feed = topped_up(rig, 12, lambda: make(model=0), lambda: make(model=1))
    got = serve(rig, feed, lambda batch: MS * (slow_ns if batch.model == 0 else 2), lambda r: r.model, 3000)
    assert got[1] / got[0] == pytest.approx(3.0, rel=0.1)


def test_shares_follow_a_changed_weight() -> None:
    rig = Rig()
    rig.model(0, max_batch=4, weight=1.0)
    rig.model(1, max_batch=4, weight=100.0)
    feed = topped_up(rig, 12, lambda: make(model=0), lambda: make(model=1))
    serve(rig, feed, lambda _: MS, lambda r: r.model)
    rig.set_policy(1, max_batch=4, weight=1.0)
    got = serve(rig, feed, lambda _: MS, lambda r: r.model)
    assert got[1] / got[0] == pytest.approx(1.0, rel=0.1)


def test_three_models_share_while_a_higher_class_interrupts() -> None:
    """Batches of a higher class must not make the models below forget who was served."""
    rig = Rig()
    for key in range(3):
        rig.model(key, max_batch=1)
    high = iter(range(10**6))

    def feed() -> list[Request]:
        return [make(model=0, priority=0)] * (next(high) % 4 > 0) + backlog()

    backlog = topped_up(rig, 4, lambda: make(model=1), lambda: make(model=2))
    got = serve(rig, feed, lambda batch: MS * (1 + batch.model), lambda r: r.model)
    assert got[1] == pytest.approx(got[2], rel=0.1)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("max_batch", [1, 8, 32])
def test_tenants_get_equal_device_time_whatever_they_send(rows: int, max_batch: int) -> None:
    rig = Rig()
    rig.model(max_batch=max_batch)
    feed = topped_up(
        rig, 80, lambda: make(tenant="modest"), *(lambda: make(tenant="greedy", rows=rows) for _ in range(10))
    )
    got = serve(rig, feed, lambda batch: MS + MS * batch.rows // 4, lambda r: r.tenant, 400)
    assert got["modest"] == pytest.approx(got["greedy"], rel=0.1)


def test_tenants_get_equal_device_time_in_different_buckets() -> None:
    rig = Rig()
    rig.model(max_batch=8)
    feed = topped_up(
        rig,
        20,
        lambda: make(tenant="short", bucket=128),
        *(lambda b=bucket: make(tenant="long", bucket=b) for bucket in (512, 1024, 2048)),
    )
    got = serve(rig, feed, lambda batch: batch.bucket * 1_000 * batch.rows, lambda r: r.tenant, 2000)  # type: ignore[operator]
    assert got["short"] == pytest.approx(got["long"], rel=0.1)


def test_a_tenant_that_was_idle_gets_no_credit() -> None:
    rig = Rig()
    rig.model(max_batch=4)
    early = lambda: make(tenant="early")  # noqa: E731
    rig.submit(make(tenant="late"))
    serve(rig, topped_up(rig, 20, early), lambda _: MS, lambda r: r.tenant)
    got = serve(rig, topped_up(rig, 20, early, lambda: make(tenant="late")), lambda _: MS, lambda r: r.tenant, 100)
    assert got["late"] == pytest.approx(got["early"], rel=0.1)


def test_requests_of_a_tenant_keep_their_order() -> None:
    rig = Rig()
    rig.model(max_batch=5)
    rig.submit(*(requests := [make(rows=1 + index % 3) for index in range(50)]))
    assert [one for batch in rig.run_all() for one in batch.requests] == requests


def test_the_bucket_of_the_oldest_request_goes_first() -> None:
    rig = Rig()
    rig.model(max_batch=2)
    rig.submit(*(make(bucket=bucket) for bucket in "abba"))
    assert [batch.bucket for batch in rig.run_all()] == ["a", "b"]


def test_an_aged_request_goes_first_even_where_its_tenant_is_in_debt() -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=20 * MS))
    rig.model(max_batch=1)
    rig.submit(*(make(tenant="debtor", rows=50_000) for _ in range(2)), *(make(tenant="other") for _ in range(9)))
    rig.complete(rig.dispatch()[0], 1_000 * MS)
    rig.submit(waiting := make(tenant="debtor"))
    serve(rig, topped_up(rig, 4, lambda: make(tenant="other")), lambda _: MS, lambda r: r.tenant, batches=40)
    assert waiting.home is None


def test_tenants_take_turns_among_equally_aged_requests() -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=MS))
    rig.model(max_batch=1)
    rig.submit(*(make(priority=2, tenant="flood") for _ in range(100)))
    rig.submit(*(make(priority=2, tenant="few") for _ in range(10)))
    rig.now = 100 * MS
    first = [batch.requests[0].tenant for batch in rig.run_all()][:30]
    assert first.count("few") == 10


def test_a_batch_is_paid_for_with_what_it_took() -> None:
    rig = Rig()
    rig.model()
    rig.submit(make())
    rig.complete(rig.only(), 7 * MS)
    assert rig.scheduler._workers[1].clocks[1].start_tag(0) == 7 * MS


def test_idle_replicas_take_turns() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(workers=(1, 2))
    workers = []
    for _ in range(4):
        rig.submit(make())
        rig.complete(batch := rig.only())
        workers.append(batch.worker)
    assert workers == [1, 2, 1, 2]


def test_replicas_share_the_work() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(max_batch=1, workers=(1, 2))
    rig.submit(*(make() for _ in range(4)))
    assert [batch.worker for batch in rig.dispatch()] == [1, 2, 1, 2]


def test_a_worker_is_not_offered_what_is_better_run_elsewhere() -> None:
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(max_batch=1, workers=(1, 2))
    rig.submit(make(), make())
    assert rig.scheduler.next_batch(rig.now, 1) is not None
    assert rig.scheduler.next_batch(rig.now, 1) is None
    assert rig.scheduler.next_batch(rig.now, 2) is not None


def test_a_busy_worker_does_not_keep_a_model_from_a_free_one() -> None:
    """Worker 2 is better for model 0, but has better things to do."""
    rig = Rig()
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(0, max_batch=1, window_ns=0, workers=(1, 2))
    rig.model(1, max_batch=1, workers=(2,))
    rig.submit(*(make(model=0) for _ in range(2)), *(make(model=1, priority=0) for _ in range(2)))
    placed = Counter((batch.worker, batch.model) for batch in rig.dispatch())
    assert placed == {(1, 0): 2, (2, 1): 2}


def test_there_is_nothing_to_wake_for_while_the_aged_one_that_leads_waits_for_its_worker() -> None:
    """The one that the order policy prefers could go to a free worker, but it is not its turn."""

    class Sticky:
        def choose(self, candidates: Sequence[Worker], request: Request) -> Worker | None:
            return candidates[request.session]

    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(pipeline_depth=1, ageing_ns=10 * MS))
    rig.scheduler.add_worker(2, "cpu:1")
    rig.model(max_batch=2, order="sjf", workers=(1, 2))
    rig.scheduler._models[0].balance = Sticky()
    rig.submit(make(rows=2))
    assert rig.only().worker == 1
    rig.submit(make(rows=2))
    rig.now = 10 * MS
    rig.submit(make(session=1))
    assert rig.dispatch() == []
    assert rig.scheduler.wake_at() == FAR_NS
