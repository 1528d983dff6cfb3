"""The batching `deferred`: as late as the deadlines allow."""

from random import Random

import pytest

from tensord.daemon.scheduling import Batch, ReleaseReason, Request
from tensord.daemon.scheduling.cost import LinearCost
from tensord.ipc.errors import DeadlineInfeasible

from .rig import MS, Rig, make
from .virtual_device import poisson, serve


@pytest.fixture
def rig() -> Rig:
    """Idle, 8 rows per batch, a window of 1 ms, a target of 20 ms, and batches known to take 1 ms + 0.5 ms per row."""
    rig = Rig()
    rig.model(max_batch=8, window_ns=MS, latency_target_ns=20 * MS)
    for rows in (1, 8) * 30:
        rig.submit(make(rows=rows))
        rig.complete(rig.only(), MS + rows * MS // 2)
    rig.set_policy(max_batch=8, window_ns=MS, latency_target_ns=20 * MS, batching="deferred")
    return rig


def cost(rig: Rig) -> LinearCost:
    return rig.scheduler._models[0].costs.of("b", "cpu:0")


def test_an_idle_worker_waits_until_the_latest_start(rig: Rig) -> None:
    rig.submit(make(deadline_ns=10 * MS), make())
    start_ns = 10 * MS - cost(rig).upper_ns(2)
    assert rig.scheduler.wake_at() == start_ns
    rig.now = start_ns - 1
    assert rig.dispatch() == []
    rig.now = start_ns
    batch = rig.only()
    assert (batch.reason, batch.rows) == (ReleaseReason.DEADLINE, 2)


def test_the_latest_start_has_a_margin_for_the_usual_error(rig: Rig) -> None:
    noise = Random(1)
    exact_ns = cost(rig).upper_ns(4) - cost(rig).predicted_ns(4)
    rig.set_policy(max_batch=8)
    for _ in range(30):
        rig.submit(make(rows=4))
        rig.complete(rig.only(), int(3 * MS * noise.uniform(0.7, 1.3)))
    assert cost(rig).upper_ns(4) - cost(rig).predicted_ns(4) > exact_ns + MS


def test_each_row_that_comes_makes_the_start_earlier(rig: Rig) -> None:
    rig.submit(make(deadline_ns=15 * MS))
    first_ns = rig.scheduler.wake_at()
    rig.submit(make(rows=4))
    second_ns = rig.scheduler.wake_at()
    assert first_ns is not None
    assert second_ns is not None
    assert first_ns - second_ns == pytest.approx(4 * MS / 2, rel=0.1)


def test_a_full_batch_waits_for_nothing(rig: Rig) -> None:
    rig.submit(*[make() for _ in range(8)])
    assert rig.only().reason is ReleaseReason.FULL


def test_a_deadline_that_cannot_be_met_waits_for_nothing(rig: Rig) -> None:
    rig.submit(make(deadline_ns=MS))
    assert rig.only().reason is ReleaseReason.DEADLINE


def test_far_deadlines_wait_for_the_latency_target(rig: Rig) -> None:
    rig.submit(make())
    assert rig.scheduler.wake_at() == 20 * MS
    rig.now = 20 * MS - 1
    assert rig.dispatch() == []
    rig.now = 20 * MS
    assert rig.only().reason is ReleaseReason.WINDOW


def test_far_deadlines_wait_for_the_window_where_that_is_longer(rig: Rig) -> None:
    rig.set_policy(batching="deferred", window_ns=30 * MS, latency_target_ns=20 * MS)
    rig.submit(make())
    assert rig.scheduler.wake_at() == 30 * MS


def test_draining_waits_for_nothing(rig: Rig) -> None:
    rig.submit(make())
    rig.scheduler.drain(rig.now)
    assert rig.only().reason is ReleaseReason.DRAIN


def test_until_a_batch_has_told_its_time_nothing_is_deferred() -> None:
    rig = Rig()
    rig.model(batching="deferred")
    rig.submit(make())
    assert rig.only().reason is ReleaseReason.IDLE
    rig.submit(make())
    assert rig.scheduler.wake_at() == 500_000


@pytest.mark.parametrize("rate", [1.5, 6])
@pytest.mark.parametrize("slo_ms", [15, 25])
def test_batches_are_fuller_than_with_a_window_and_no_more_deadlines_are_missed(rate: float, slo_ms: int) -> None:
    missed, batches_run = {}, {}
    for batching in ("fixed", "deferred"):
        noise = Random(2)

        def compute(batch: Batch[Request], noise: Random = noise) -> float:
            return (2 * MS + 0.1 * MS * batch.rows) * noise.uniform(0.9, 1.1)

        rig = Rig()
        rig.model(max_batch=64, window_ns=MS, latency_target_ns=20 * MS, batching=batching)
        served, batches = serve(rig, poisson(rate, 1_000 * MS, seed=1, slo_ns=slo_ms * MS), compute)
        missed[batching] = sum(not one.met_deadline for one in served)
        batches_run[batching] = len(batches)
    assert missed["deferred"] <= missed["fixed"]
    assert missed["deferred"] <= 0.002 * rate * 1_000
    assert batches_run["deferred"] < 0.75 * batches_run["fixed"]


def next_batch(rig: Rig) -> Batch[Request]:
    """The one that is released next; time goes on until then."""
    while not (batches := rig.dispatch()):
        assert rig.expired() == []
        wake_ns = rig.scheduler.wake_at()
        assert wake_ns is not None
        rig.now = wake_ns
    (batch,) = batches
    return batch


def test_the_latest_start_leaves_time_for_the_way_to_the_worker_and_back(rig: Rig) -> None:
    """Until now it took none, from now on 2 ms: some batches show it by being late, and then no other is."""
    early_ns: list[int] = []
    for _ in range(20):
        deadline_ns = rig.now + 15 * MS
        rig.submit(make(deadline_ns=deadline_ns))
        batch = next_batch(rig)
        rig.now += 3 * MS // 2 + 2 * MS
        rig.complete(batch, 3 * MS // 2)
        early_ns.append(deadline_ns - rig.now)
    assert early_ns[0] < 0
    assert min(early_ns[5:]) >= 0
    assert max(early_ns) < 2 * MS


def test_answers_that_were_deferred_are_no_reason_to_refuse_others() -> None:
    """They come late on purpose, so the prediction that they could come soon was not wrong."""
    rig = Rig()
    rig.model(max_batch=64, batching="deferred", latency_target_ns=1_000 * MS, deadline_check=True)
    for _ in range(20):
        rig.submit(make(deadline_ns=rig.now + 50 * MS), make(deadline_ns=rig.now + 30 * MS))
        batch = next_batch(rig)
        rig.now += MS
        rig.complete(batch, MS)


def test_errors_of_predictions_count_where_a_queue_stands_and_not_where_a_batch_is_held() -> None:
    rig = Rig()
    rig.model(max_batch=8, batching="deferred", latency_target_ns=1_000 * MS, deadline_check=True)
    rig.submit(make())
    batch = next_batch(rig)
    rig.now += MS
    rig.complete(batch, MS)
    rig.scheduler._models[0].forecast.margin_ns = 100 * MS
    rig.submit(*[make(deadline_ns=rig.now + 50 * MS) for _ in range(8)])
    assert isinstance(rig.scheduler.submit(rig.now, make(deadline_ns=rig.now + 50 * MS)), DeadlineInfeasible)
