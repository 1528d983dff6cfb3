import pytest

from tensord.daemon.scheduling import Request
from tensord.daemon.scheduling.order import ORDER_POLICIES

from .rig import make, tenant_queue

HOME = tenant_queue()


def request(seq: int) -> Request:
    one = make()
    one.seq, one.home = seq, HOME
    return one


def test_fcfs_is_known_by_name() -> None:
    assert "fcfs" in ORDER_POLICIES


def test_fcfs_serves_by_place_of_submission() -> None:
    order = ORDER_POLICIES["fcfs"]()
    second, third = request(2), request(3)
    order.push(second)
    order.push(third)
    assert order.peek() is second


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_a_request_that_comes_back_gets_its_old_place(name: str) -> None:
    order = ORDER_POLICIES[name]()
    first, second, third = request(1), request(2), request(3)
    for one in (first, second, third):
        order.push(one)
    first.home = None
    assert order.peek() is second
    first.home = HOME
    order.push(first)
    assert order.peek() is first


@pytest.mark.parametrize("name", ORDER_POLICIES)
def test_keys_agree_with_the_order(name: str) -> None:
    order = ORDER_POLICIES[name]()
    for seq in (3, 1, 2):
        order.push(request(seq))
    keys = [order.key(one) for one in order.living()]
    assert keys == sorted(keys)
