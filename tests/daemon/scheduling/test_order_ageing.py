"""Ageing inside a tenant: whoever has waited long goes before what the order policy prefers."""

from typing import Any

import pytest

from tensord.daemon.scheduling import GlobalPolicy, Request
from tensord.daemon.scheduling.order import ORDER_POLICIES

from .rig import FAR_NS, MS, Rig, make

AGE_NS = 20 * MS

UNWANTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sjf": ({"rows": 2}, {"rows": 1}),
    "mlfq": ({"flow": 1}, {}),
    "edf": ({"deadline_ns": FAR_NS}, {"deadline_ns": FAR_NS - 1}),
}
"""For each order that may keep somebody waiting for ever: whom it does not want, and whom it prefers."""


def flooded(name: str, priority: int, buckets: str, ageing_ns: int, batches: int = 60) -> tuple[Request, int]:
    """A request that the order does not want, and how long it waited while three that it prefers always wait too."""
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(pipeline_depth=1, ageing_ns=ageing_ns))
    rig.model(max_batch=2, order=name, mlfq_quantum_ns=MS, mlfq_boost_ns=FAR_NS)
    unwanted, preferred = UNWANTED[name]
    rig.submit(make(flow=1))
    rig.complete(rig.only(), 2 * MS)
    rig.submit(victim := make(priority=priority, bucket=buckets[0], **unwanted))
    for number in range(batches):
        fields: dict[str, Any] = {"flow": 100 + number, **preferred}
        rig.submit(*(make(priority=priority, bucket=buckets[1], **fields) for _ in range(3)))
        batch = rig.only()
        if victim.home is None:
            break
        rig.now += MS
        rig.complete(batch, MS)
    return victim, rig.now - victim.arrival_ns


@pytest.mark.parametrize("buckets", ["aa", "ab"])
@pytest.mark.parametrize("priority", [0, 1, 2])
@pytest.mark.parametrize("name", UNWANTED)
def test_without_ageing_the_order_policy_may_keep_a_request_for_ever(name: str, priority: int, buckets: str) -> None:
    victim, _ = flooded(name, priority, buckets, ageing_ns=0)
    assert victim.home is not None


@pytest.mark.parametrize("buckets", ["aa", "ab"])
@pytest.mark.parametrize("priority", [0, 1, 2])
@pytest.mark.parametrize("name", UNWANTED)
def test_with_ageing_it_goes_as_soon_as_it_has_aged(name: str, priority: int, buckets: str) -> None:
    victim, waited_ns = flooded(name, priority, buckets, AGE_NS)
    assert victim.home is None
    assert waited_ns == AGE_NS


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_the_aged_go_first_oldest_first_and_the_others_by_the_policy(name: str) -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(pipeline_depth=1, ageing_ns=AGE_NS))
    rig.model(max_batch=8, order=name)
    rig.submit(make(rows=8))
    running = rig.only()
    rig.submit(first := make(rows=2, deadline_ns=FAR_NS))
    rig.now += 1
    rig.submit(second := make(rows=1, deadline_ns=FAR_NS - 1))
    rig.now = AGE_NS
    rig.submit(long := make(rows=3, deadline_ns=FAR_NS - 2), short := make(rows=1, deadline_ns=FAR_NS - 3))
    rig.now += 1
    rig.complete(running)
    fresh = [long, short] if name in ("fcfs", "mlfq") else [short, long]
    assert rig.only().requests == [first, second, *fresh]


@pytest.mark.parametrize("name", UNWANTED)
def test_ageing_can_be_turned_on_while_requests_wait(name: str) -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(pipeline_depth=1, ageing_ns=0))
    rig.model(max_batch=2, order=name)
    rig.submit(make(rows=2))
    running = rig.only()
    unwanted, preferred = UNWANTED[name]
    rig.submit(victim := make(**unwanted))
    rig.now = AGE_NS
    rig.submit(make(**preferred))
    rig.complete(running)
    rig.scheduler.set_global(GlobalPolicy(pipeline_depth=1, ageing_ns=AGE_NS))
    assert rig.only().requests[0] is victim


def test_a_request_that_comes_back_is_as_old_as_it_was() -> None:
    rig = Rig()
    rig.scheduler.set_global(GlobalPolicy(ageing_ns=AGE_NS))
    rig.model(max_batch=2, order="sjf")
    rig.submit(back := make(rows=2))
    rig.dispatch()
    rig.now = AGE_NS
    rig.submit(short := make(rows=1))
    rig.scheduler.remove_worker(rig.now, 1)
    rig.scheduler.add_worker(1, "cpu:0")
    rig.scheduler.add_replica(rig.now, 1, 0)
    assert [batch.requests for batch in rig.run_all()] == [[back], [short]]


def test_first_come_first_served_keeps_no_second_queue() -> None:
    rig = Rig()
    rig.model(order="fcfs")
    rig.submit(one := make())
    assert one.home is not None
    assert one.home.ages is None
