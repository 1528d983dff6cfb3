import os
import select
import time
from collections.abc import Iterator

import pytest

from tensord.daemon.frontend import timer as timers
from tensord.daemon.frontend.timer import Timer

WATCHDOG_MS = 20_000
FAR_NS = 3600 * 10**9


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer()
    yield made
    made.close()


def fires(timer: Timer, timeout_ms: int = 0) -> bool:
    poller = select.poll()
    poller.register(timer.fd, select.POLLIN)
    return bool(poller.poll(timeout_ms))


def test_a_timer_that_is_not_armed_never_fires(timer: Timer) -> None:
    assert not fires(timer)


@pytest.mark.parametrize("moment", [0, 1, -5])
def test_a_moment_that_has_passed_fires_at_once(timer: Timer, moment: int) -> None:
    timer.arm(moment)
    assert fires(timer)


def test_a_timer_fires_at_its_moment_and_not_before(timer: Timer) -> None:
    moment = time.monotonic_ns() + 3_000_000
    timer.arm(moment)
    assert fires(timer, WATCHDOG_MS)
    assert time.monotonic_ns() >= moment


def test_an_earlier_moment_replaces_a_later_one(timer: Timer) -> None:
    timer.arm(time.monotonic_ns() + FAR_NS)
    assert not fires(timer)
    timer.arm(time.monotonic_ns())
    assert fires(timer, WATCHDOG_MS)


def test_a_later_moment_leaves_an_earlier_one(timer: Timer) -> None:
    timer.arm(1)
    timer.arm(FAR_NS * 1000)
    assert fires(timer)


def test_after_it_fired_any_moment_can_be_armed(timer: Timer) -> None:
    timer.arm(1)
    timer.fired()
    timer.arm(FAR_NS * 1000)
    assert not fires(timer)


def test_none_arms_nothing_and_disarms_nothing(timer: Timer) -> None:
    timer.arm(None)
    assert not fires(timer)
    timer.arm(1)
    timer.arm(None)
    assert fires(timer)


def test_a_timer_fires_once_and_can_be_armed_for_the_same_moment_again(timer: Timer) -> None:
    timer.arm(1)
    timer.fired()
    assert not fires(timer)
    timer.arm(1)
    assert fires(timer)


def test_taking_notice_of_nothing_does_not_wait(timer: Timer) -> None:
    timer.fired()
    timer.fired()
    assert not fires(timer)


def test_arming_for_the_same_moment_or_a_later_one_is_no_system_call(
    timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer.arm(FAR_NS * 1000)
    monkeypatch.setattr(timers, "_libc", None)  # whoever calls it now fails
    timer.arm(FAR_NS * 1000)
    timer.arm(FAR_NS * 1001)
    with pytest.raises(AttributeError):
        timer.arm(FAR_NS * 999)


def test_closing_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Timer().close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_left_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def timerfd_create(self, _clock: int, _flags: int) -> int:
            return -1

    monkeypatch.setattr(timers, "_libc", Refusing())
    with pytest.raises(OSError, match="timerfd_create failed"):
        Timer()
