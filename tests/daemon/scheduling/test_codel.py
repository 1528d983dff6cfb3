import pytest

from tensord.daemon.scheduling.codel import CoDel
from tensord.ipc.errors import QueueDelay

from .rig import MS, Rig
from .virtual import BATCH_NS, poisson, serve

TARGET_NS, INTERVAL_NS = 5 * MS, 100 * MS


def waits(codel: CoDel, *waited_ms: int, every_ms: int = 10) -> list[bool]:
    """Whether the queue stands after each of these waits."""
    seen = []
    for number, waited in enumerate(waited_ms):
        codel.served((number + 1) * every_ms * MS, waited * MS, TARGET_NS, INTERVAL_NS)
        seen.append(codel.standing)
    return seen


def test_a_queue_stands_where_nobody_got_through_quickly_for_an_interval() -> None:
    assert waits(CoDel(), *([20] * 12)) == [False] * 10 + [True] * 2


def test_a_burst_that_drains_is_no_standing_queue() -> None:
    assert not any(waits(CoDel(), 50, 40, 30, 20, 10, 1, *([20] * 5), every_ms=12))


def test_one_quick_answer_ends_the_standing_with_the_interval() -> None:
    seen = waits(CoDel(), *([20] * 15), 1, *([20] * 5))
    assert (seen[15], seen[19], seen[20]) == (True, True, False)


def test_an_emptied_queue_does_not_stand() -> None:
    codel = CoDel()
    waits(codel, *([20] * 12))
    codel.emptied()
    assert not codel.standing


def overloaded(load: float, codel_target_ns: int) -> tuple[Rig, list[int], list[QueueDelay]]:
    """Waits of those answered in the second half, and the refusals of CoDel."""
    rig = Rig()
    rig.model(max_batch=16, codel_target_ns=codel_target_ns, codel_interval_ns=10 * BATCH_NS)
    arrivals = poisson(1, BATCH_NS / 16 / load, int(200 * 16 * load))
    outcome = serve(rig.scheduler, arrivals, lambda _: BATCH_NS, 200 * BATCH_NS)
    late = [end - request.arrival_ns for request, end in outcome.done if end > 100 * BATCH_NS]
    return rig, late, [error for _, error in outcome.evicted if isinstance(error, QueueDelay)]


def test_a_standing_queue_is_cut_and_the_rest_is_quick() -> None:
    _, late, delays = overloaded(2.0, 2 * BATCH_NS)
    assert max(late) <= 2 * 2 * BATCH_NS + 3 * BATCH_NS
    assert len(delays) == pytest.approx(200 * 16, rel=0.3)
    assert all(error.retry_after_ms for error in delays)
    _, without, none = overloaded(2.0, 0)
    assert min(without) > 40 * BATCH_NS
    assert none == []


def test_below_the_capacity_nobody_is_cut_even_by_a_target_shorter_than_a_batch() -> None:
    assert overloaded(0.8, MS // 10)[2] == []


def test_turning_it_off_ends_the_cutting() -> None:
    rig, _, _ = overloaded(2.0, 2 * BATCH_NS)
    model = rig.scheduler._models[0]
    assert model.standing
    rig.set_policy(max_batch=16)
    assert not model.standing


def test_each_tenant_has_a_queue_of_its_own() -> None:
    rig = Rig()
    rig.model(max_batch=16, codel_target_ns=2 * BATCH_NS, codel_interval_ns=10 * BATCH_NS)
    arrivals = poisson(1, BATCH_NS / 16 / 3, 200 * 16 * 3, tenant="flood")
    arrivals += poisson(2, BATCH_NS / 16 / 0.2, 200 * 16 // 5, tenant="modest")
    outcome = serve(rig.scheduler, arrivals, lambda _: BATCH_NS, 200 * BATCH_NS)
    assert {request.tenant for request, _ in outcome.evicted} == {"flood"}
