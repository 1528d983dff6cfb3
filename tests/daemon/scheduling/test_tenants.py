from collections import Counter
from typing import Any

import pytest

from tensord.daemon.scheduling import TenantPolicy
from tensord.daemon.scheduling.tenants import QUANTUM_NS, Account, Ring, Share, Turns
from tensord.daemon.scheduling.users import User


class FakeTenant:
    """As much of a TenantQueue as a ring needs."""

    def __init__(self, weight: float = 1.0) -> None:
        self.turns = Turns(0, weight)
        self.count = 1
        self.left = False

    def is_empty(self) -> bool:
        return not self.count

    def leave(self) -> None:
        self.left = True


def ring_of(*tenants: Any) -> Ring[Any]:
    ring: Ring[Any] = Ring()
    for tenant in tenants:
        ring.add(tenant)
    return ring


def serve(ring: Ring[Any], costs: dict[Any, float], requests: int) -> Counter[Any]:
    got: Counter[Any] = Counter()
    for _ in range(requests):
        tenant = ring.first()
        tenant.turns.charge(costs[tenant] * QUANTUM_NS / 10)
        got[tenant] += int(costs[tenant])
    return got


def test_large_and_small_requests_get_equal_time() -> None:
    small, large = FakeTenant(), FakeTenant()
    got = serve(ring_of(small, large), {small: 1, large: 37}, 10_000)
    assert got[small] == pytest.approx(got[large], rel=0.01)


def test_weights_divide_the_time() -> None:
    light, heavy = FakeTenant(), FakeTenant(weight=3.0)
    got = serve(ring_of(light, heavy), {light: 5, heavy: 5}, 10_000)
    assert got[heavy] / got[light] == pytest.approx(3.0, rel=0.02)


def test_a_tenant_keeps_its_turn_until_the_quantum_is_used() -> None:
    tenant = FakeTenant()
    tenant.turns.charge(1)
    assert [tenant.turns.charge(QUANTUM_NS * 0.4) for _ in range(3)] == [False, False, True]


def test_a_debt_costs_as_many_rounds_as_quanta() -> None:
    account = Turns(0)
    account.charge(9.5 * QUANTUM_NS)
    assert (account.round, account.deficit_ns) == (10, QUANTUM_NS / 2)


def test_a_newcomer_joins_the_present_round_without_credit() -> None:
    account = Turns(0)
    account.charge(3)
    account.join(50)
    assert (account.round, account.deficit_ns) == (50, 0.0)


def test_debt_survives_an_empty_queue() -> None:
    account = Turns(0)
    account.charge(100 * QUANTUM_NS)
    account.join(50)
    assert account.round == 101


def test_an_empty_tenant_leaves_the_ring() -> None:
    empty, full = FakeTenant(), FakeTenant()
    ring = ring_of(empty, full)
    empty.count = 0
    assert ring.first() is full
    assert empty.left


def test_a_tenant_served_elsewhere_loses_its_place() -> None:
    served, other = FakeTenant(), FakeTenant()
    ring = ring_of(served, other)
    served.turns.charge(5)
    assert ring.first() is other


def test_a_refund_lengthens_the_turn_and_never_goes_back_a_round() -> None:
    account = Turns(0)
    account.charge(5 * QUANTUM_NS)
    round_ = account.round
    assert not account.charge(-3 * QUANTUM_NS)
    assert account.round == round_
    assert not account.charge(3 * QUANTUM_NS)


def test_both_levels_pay() -> None:
    share = Share(User("u", TenantPolicy(weight=2.0)), 0)
    account = Account("u/a", share)
    account.pay(10 * QUANTUM_NS)
    assert (account.round, share.round) == (11, 6)


def test_a_new_name_of_a_user_in_debt_owes_as_much() -> None:
    share = Share(User("u", TenantPolicy()), 0)
    Account("u/a", share).pay(10 * QUANTUM_NS)
    assert Account("u/b", share).share.round == 11


def test_a_ring_of_empty_tenants_is_empty() -> None:
    gone, back = FakeTenant(), FakeTenant()
    ring = ring_of(gone, back)
    gone.count = 0
    assert not ring.is_empty()
    back.count = 0
    assert ring.is_empty()
    assert (gone.left, back.left) == (True, True)
