"""Balance policies on a real daemon with two devices; `lame` is slow on one of them."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import pytest

from .load import Ask, Ended, Flow, errors, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

BALANCES: Final = (
    "round_robin", "weighted_round_robin", "least_connections", "least_work", "fastest_response", "power_of_two",
    "hash", "consistent_hash",
)  # fmt: skip


@pytest.fixture(scope="module")
def devices() -> tuple[str, ...]:
    """Of the module's daemon."""
    return ("cpu:0", "cpu:1")


def devices_of(ended: list[Ended]) -> Counter[int]:
    """How many requests each device answered; none failed."""
    assert errors(ended) == {}
    return Counter(each.device for each in ended)


def test_balances_change_under_load_and_both_devices_serve(idle: "Daemon", join: "Connect") -> None:
    sessions = [Ask(rows=8, session=number) for number in range(1, 9)]

    def switch() -> None:
        for balance in (*BALANCES, "least_work"):
            idle.set(nap__balance=balance)
            before = {flow: len(flow.ended) for flow in flows}
            while any(len(flow.ended) < count + 8 and flow.is_alive() for flow, count in before.items()):
                flows[0].join(0.005)
        for flow in flows:
            flow.stop()

    flows = [Flow(join(), (sessions * 1000)[offset:], depth=6) for offset in (0, 3)]
    flows.append(Flow(join(), iter(lambda: Ask(rows=3), None), depth=6))
    counts = devices_of(run(*flows, meanwhile=switch))
    idle.set(nap__balance=None)
    assert set(counts) == {0, 1}


@pytest.mark.parametrize(("balance", "share"), [("round_robin", 0.5), ("weighted_round_robin", 0.75)])
def test_turns_are_as_even_as_the_weights_say(idle: "Daemon", join: "Connect", balance: str, share: float) -> None:
    """One request at a time: both devices are free for each."""
    with idle.knobs(nap__balance=balance, **{"cpu:0__device_weight": 3}):
        counts = devices_of(run(Flow(join(), [Ask()] * 80, depth=1)))
    assert counts[0] == pytest.approx(80 * share, abs=2)


@pytest.mark.parametrize("balance", ["least_work", "fastest_response", "power_of_two"])
def test_a_slow_device_gets_less(idle: "Daemon", join: "Connect", balance: str) -> None:
    """One request at a time, so a device's share is the policy's choice: by turns each would have half."""
    with idle.knobs(lame__balance=balance):
        run(Flow(join(), [Ask(rows=8)] * 8, depth=4, model="lame"))  # how long each takes is learned
        counts = devices_of(run(Flow(join(), [Ask(rows=8)] * 60, depth=1, model="lame")))
    print(balance, counts)
    assert counts[1] < 0.3 * counts.total()


def test_least_connections_gives_a_slow_device_less_under_load(idle: "Daemon", join: "Connect") -> None:
    """Three batches at a time: the slow device holds its one or two four times as long."""
    with idle.knobs(lame__balance="least_connections"):
        counts = devices_of(run(Flow(join(), [Ask(rows=8)] * 60, depth=3, model="lame")))
    print(counts)
    assert counts[1] < 0.4 * counts.total()


@pytest.mark.parametrize("balance", ["hash", "consistent_hash"])
def test_a_session_stays_on_its_device(idle: "Daemon", join: "Connect", balance: str) -> None:
    """Under load, with the other device free now and then."""
    with idle.knobs(nap__balance=balance):
        ended = run(Flow(join(), [Ask(session=number) for number in range(1, 33)] * 5, depth=12))
    assert devices_of(ended).keys() == {0, 1}
    seen: dict[int, set[int]] = defaultdict(set)
    for each in ended:
        seen[each.ask.session].add(each.device)
    assert [len(devices) for devices in seen.values()] == [1] * 32
