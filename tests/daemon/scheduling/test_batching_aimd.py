"""The batching `aimd` on devices that take a + b·rows."""

from collections.abc import Callable
from statistics import fmean

import pytest

from tensord.daemon.scheduling import Batch, ModelStatistics, ReleaseReason, Request

from .rig import MS, Rig, make
from .virtual_device import poisson, serve

TARGET_NS = 20 * MS


def line(fixed_ms: float, row_ms: float) -> Callable[[Batch[Request]], float]:
    return lambda batch: (fixed_ms + row_ms * batch.rows) * MS


def adaptive(window_ns: int = MS // 2) -> Rig:
    rig = Rig()
    rig.model(batching="aimd", latency_target_ns=TARGET_NS, max_batch=256, queue_max=400, window_ns=window_ns)
    return rig


def statistics(rig: Rig) -> ModelStatistics:
    return rig.scheduler.statistics().models[0]


def full_rows(batches: list[Batch[Request]], count: int = 60) -> list[int]:
    return [batch.rows for batch in batches if batch.reason is ReleaseReason.FULL][-count:]


def test_under_overload_the_size_converges_to_the_largest_that_keeps_the_target() -> None:
    """The pipeline holds two batches, so a batch is back two batch times after its release: 2·(2 + 0.1·80) = 20 ms."""
    rig = adaptive()
    _, batches = serve(rig, poisson(20, 2_000 * MS, seed=1), line(2, 0.1))
    found = full_rows(batches)
    assert min(found) >= 0.85 * 80
    assert max(found) <= 80 + 3
    assert fmean(found) == pytest.approx(76, rel=0.05)


def test_a_device_that_became_slower_is_followed() -> None:
    """2·(4 + 0.2·30) = 20 ms."""
    rig = adaptive()
    serve(rig, poisson(20, 1_000 * MS, seed=1), line(2, 0.1))
    later = poisson(20, 2_000 * MS, seed=2)
    for request in later:
        request.arrival_ns += rig.now
    _, batches = serve(rig, later, line(4, 0.2))
    assert fmean(full_rows(batches)) == pytest.approx(28.5, rel=0.1)


@pytest.mark.parametrize("rate", [3, 6])
def test_below_capacity_the_target_is_kept(rate: float) -> None:
    rig = adaptive()
    served, _ = serve(rig, poisson(rate, 2_000 * MS, seed=3), line(2, 0.1))
    settled = [one for one in served if one.request.arrival_ns >= 500 * MS]
    late = [one for one in settled if one.end_ns is None or one.end_ns - one.request.arrival_ns > TARGET_NS]
    assert len(late) <= 0.01 * len(settled)


def test_a_device_that_never_keeps_the_target_gets_single_rows() -> None:
    rig = adaptive()
    serve(rig, poisson(2, 4_000 * MS, seed=4), line(21, 0.1))
    assert statistics(rig).batch_rows_max == 1


def test_few_rows_let_nothing_grow() -> None:
    rig = adaptive(window_ns=0)
    rig.submit(*[make() for _ in range(3)])
    rig.run_all()
    before = statistics(rig).batch_rows_max
    serve(rig, poisson(0.01, 20_000 * MS, seed=5), line(0, 0.1))
    assert statistics(rig).batch_rows_max == before


def test_where_nothing_was_learned_it_starts_with_one_row() -> None:
    assert statistics(adaptive()).batch_rows_max == 1


def taught() -> Rig:
    """A model with fixed batching whose times are known: 2 ms + 0.1 ms per row."""
    rig = Rig()
    rig.model(max_batch=256)
    for rows in (8, 32) * 10:
        rig.submit(make(rows=rows))
        rig.complete(rig.only(), 2 * MS + rows * MS // 10)
    return rig


def test_it_starts_with_what_takes_half_the_target() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=TARGET_NS, max_batch=256)
    assert statistics(rig).batch_rows_max == pytest.approx(80, abs=1)


def test_another_batching_ends_the_adaptation_and_aimd_starts_anew() -> None:
    rig = taught()
    for batching, rows in (("aimd", 64), ("fixed", 64), ("deferred", 64), ("aimd", 64)):
        rig.set_policy(batching=batching, latency_target_ns=TARGET_NS, max_batch=64)
        assert statistics(rig).batch_rows_max == rows
        served, _ = serve(rig, [make(arrival_ns=rig.now) for _ in range(200)], line(2, 0.1))
        assert all(one.end_ns is not None for one in served)


def test_another_target_keeps_what_was_found() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=TARGET_NS, max_batch=256)
    before = statistics(rig).batch_rows_max
    rig.set_policy(batching="aimd", latency_target_ns=2 * TARGET_NS, max_batch=256)
    assert statistics(rig).batch_rows_max == before
    rig.set_policy(batching="aimd", latency_target_ns=2 * TARGET_NS, max_batch=16)
    assert statistics(rig).batch_rows_max == 16


def test_the_window_ends_where_the_target_leaves_no_more_than_the_compute_time() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=TARGET_NS, max_batch=256, window_ns=50 * MS)
    rig.submit(make())
    rig.only()
    rig.submit(make(), make())
    predicted_ns = rig.scheduler._models[0].costs.of("b", "cpu:0").predicted_ns(2)
    assert rig.scheduler.wake_at() == rig.now + TARGET_NS - predicted_ns
    rig.now += TARGET_NS - predicted_ns - 1
    assert rig.dispatch() == []
    rig.now += 1
    assert rig.only().reason is ReleaseReason.WINDOW


def test_a_short_window_is_not_prolonged() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=TARGET_NS, max_batch=256, window_ns=MS)
    rig.submit(make())
    rig.only()
    rig.submit(make())
    assert rig.scheduler.wake_at() == rig.now + MS
    assert statistics(rig).window_ns == MS


def test_a_target_below_the_compute_time_leaves_no_window() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=MS, max_batch=256, window_ns=MS)
    rig.submit(make())
    rig.only()
    rig.submit(make())
    assert rig.only().reason is not ReleaseReason.IDLE
    assert statistics(rig).window_ns == 0


def test_a_request_that_waited_for_the_death_of_a_worker_cuts_nothing() -> None:
    rig = taught()
    rig.set_policy(batching="aimd", latency_target_ns=TARGET_NS, max_batch=8)
    rig.submit(*[make() for _ in range(8)])
    batch = rig.only()
    rig.complete(batch)
    rig.scheduler.retry_alone(rig.now, batch)
    rig.run_all(compute_ns=TARGET_NS + MS)
    assert statistics(rig).batch_rows_max == 8
