from collections import Counter

import pytest

from tensord.daemon.scheduling.queues import TenantQueue
from tensord.daemon.scheduling.tenants import QUANTUM_NS, Account, Ring

from .rig import tenant_queue


def tenant_of(weight: float = 1.0) -> TenantQueue:
    """A tenant that waits."""
    tenant = tenant_queue()
    tenant.account = Account(0, weight)
    tenant.count = 1
    return tenant


def ring_of(*tenants: TenantQueue) -> Ring:
    ring = Ring()
    for tenant in tenants:
        tenant.listed = True
        ring.add(tenant)
    return ring


def serve(ring: Ring, costs: dict[TenantQueue, float], requests: int) -> Counter[TenantQueue]:
    got: Counter[TenantQueue] = Counter()
    for _ in range(requests):
        tenant = ring.first()
        tenant.account.charge(costs[tenant] * QUANTUM_NS / 10)
        got[tenant] += int(costs[tenant])
    return got


def test_large_and_small_requests_get_equal_time() -> None:
    small, large = tenant_of(), tenant_of()
    got = serve(ring_of(small, large), {small: 1, large: 37}, 10_000)
    assert got[small] == pytest.approx(got[large], rel=0.01)


def test_weights_divide_the_time() -> None:
    light, heavy = tenant_of(), tenant_of(weight=3.0)
    got = serve(ring_of(light, heavy), {light: 5, heavy: 5}, 10_000)
    assert got[heavy] / got[light] == pytest.approx(3.0, rel=0.02)


def test_a_tenant_keeps_its_turn_until_the_quantum_is_used() -> None:
    tenant = tenant_of()
    tenant.account.charge(1)
    assert [tenant.account.charge(QUANTUM_NS * 0.4) for _ in range(3)] == [False, False, True]


def test_a_debt_costs_as_many_rounds_as_quanta() -> None:
    account = Account(0)
    account.charge(9.5 * QUANTUM_NS)
    assert (account.round, account.deficit_ns) == (10, QUANTUM_NS / 2)


def test_a_newcomer_joins_the_present_round_without_credit() -> None:
    account = Account(0)
    account.charge(3)
    account.join(50)
    assert (account.round, account.deficit_ns) == (50, 0.0)


def test_debt_survives_an_empty_queue() -> None:
    account = Account(0)
    account.charge(100 * QUANTUM_NS)
    account.join(50)
    assert account.round == 101


def test_an_empty_tenant_leaves_the_ring() -> None:
    empty, full = tenant_of(), tenant_of()
    ring = ring_of(empty, full)
    empty.count = 0
    assert ring.first() is full
    assert not empty.listed


def test_a_tenant_served_elsewhere_loses_its_place() -> None:
    served, other = tenant_of(), tenant_of()
    ring = ring_of(served, other)
    served.account.charge(5)
    assert ring.first() is other


def test_a_refund_lengthens_the_turn_and_never_goes_back_a_round() -> None:
    account = Account(0)
    account.charge(5 * QUANTUM_NS)
    round_ = account.round
    assert not account.charge(-3 * QUANTUM_NS)
    assert account.round == round_
    assert not account.charge(3 * QUANTUM_NS)
