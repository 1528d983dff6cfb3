"""Batching policies on a real daemon: what a batch waited for, and how large it became."""

import contextlib
from collections import Counter
from statistics import fmean, median
from typing import TYPE_CHECKING

import pytest

from .load import Ask, Flow, errors, nap_s, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.conftest import Connect, Daemon

    from tensord.daemon.control import InstanceStatus

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


@contextlib.contextmanager
def released(daemon: "Daemon", **expected: int) -> "Iterator[None]":
    """So many batches of `nap` are released meanwhile, by their reasons; counted soon after the answer."""

    def counters(status: "InstanceStatus") -> Counter[str]:
        found = next(model.counters for model in status.models if model.name == "nap")
        return Counter({name.removeprefix("released_"): n for name, n in found.items() if name.startswith("released_")})

    before = counters(daemon.status())
    yield
    daemon.wait_status(lambda now: counters(now) - before == expected)


def test_batchings_change_under_load_without_an_error(idle: "Daemon", join: "Connect") -> None:
    def switch() -> None:
        for batching in ("aimd", "deferred", "fixed", "deferred", "aimd", "fixed"):
            idle.set(nap__batching=batching)
            before = [len(flow.ended) for flow in flows]
            while any(len(flow.ended) < count + 8 and flow.is_alive() for flow, count in zip(flows, before)):
                flows[0].join(0.005)
        for flow in flows:
            flow.stop()

    with idle.knobs(nap__latency_target_ms=20):
        flows = [Flow(join(), iter(lambda: Ask(rows=3), None), depth=6) for _ in range(2)]
        assert errors(run(*flows, meanwhile=switch)) == {}


def test_a_batch_that_is_not_full_ends_at_a_preferred_size(idle: "Daemon", join: "Connect") -> None:
    """Seven rows wait while a worker is busy for longer than they come: four go, as is preferred, and then three."""
    asks = [Ask(rows=8), *[Ask() for _ in range(7)]]
    with idle.knobs(pipeline_depth=1, nap__preferred_batches="2,4"):
        sizes = Counter(each.batch_rows for each in run(Flow(join(), asks)))
    assert sizes == {8: 1, 4: 4, 2: 2, 1: 1}


def test_fixed_batches_fill_and_aimd_keeps_the_target(idle: "Daemon", join: "Connect") -> None:
    """A flood of single rows: batches of 64 take three times the target, so AIMD finds smaller ones."""
    sizes = {}
    with idle.knobs(nap__max_batch=64, nap__latency_target_ms=12, pipeline_depth=1):
        for batching in ("fixed", "aimd"):
            with idle.knobs(nap__batching=batching):
                ended = run(Flow(join(), iter(lambda: Ask(), None), depth=200), seconds=1.0)
                assert errors(ended) == {}
                sizes[batching] = median(each.batch_rows for each in ended[len(ended) // 2 : -200])
    print(sizes)
    assert sizes["fixed"] == 64
    assert 8 <= sizes["aimd"] <= 30
    assert nap_s(64) > 0.03


def test_a_deferred_batch_waits_for_the_target_although_the_worker_is_idle(idle: "Daemon", join: "Connect") -> None:
    run(Flow(join(), [Ask()] * 4, depth=1))  # how long a batch takes is known
    waited_s = {}
    with idle.knobs(nap__latency_target_ms=60), released(idle, idle=4, window=4):
        for batching in ("fixed", "deferred"):
            with idle.knobs(nap__batching=batching):
                waited_s[batching] = fmean(each.queue_s for each in run(Flow(join(), [Ask()] * 4, depth=1)))
    assert waited_s["deferred"] > 0.055
    assert waited_s["fixed"] < 0.5 * waited_s["deferred"]


def test_a_deferred_batch_starts_in_time_for_its_earliest_deadline(idle: "Daemon", join: "Connect") -> None:
    """Requests that come one after the other go together, as late as the first deadline allows."""
    run(Flow(join(), [Ask()] * 4, depth=1))
    asks = [Ask(0.01 * number, deadline_s=0.2 + 0.1 * number) for number in range(5)]
    with idle.knobs(nap__batching="deferred", nap__latency_target_ms=5000), released(idle, deadline=1):
        ended = run(Flow(join(), asks))
    assert [each.batch_rows for each in ended] == [5] * 5
    assert max(each.queue_s for each in ended) > 0.1


def test_deferred_batches_are_in_time_and_refuse_nobody_who_could_be(idle: "Daemon", join: "Connect") -> None:
    """A light load whose deadlines differ: each batch waits for the earliest, and the others go with it.

    One of four is the earliest of its batch, and has nothing in hand but what the way to the worker takes.
    """
    asks = [Ask(0.02 * number, deadline_s=0.08 + 0.05 * (number % 4)) for number in range(80)]
    run(Flow(join(), [Ask()] * 4, depth=1))
    with idle.knobs(nap__batching="deferred", nap__latency_target_ms=5000):
        ended = run(Flow(join(), asks))
    assert errors(ended) == {}
    assert fmean(each.batch_rows for each in ended) > 2
    assert sum(each.met for each in ended) > 0.85 * len(asks)
