"""Whether and how a worker spins, in virtual time."""

import os
import select
import time
from typing import Any

import pytest

from tensord.daemon.worker.spin import ABSENT_NS, PAUSE_NS, SPIN_ROWS_MAX, Spin

S = 10**9


class Clock:
    """Virtual time, in the place of the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1000 * S
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spin_for(duration_ns: int, *, allowed: bool = True) -> Spin:
    spin = Spin()
    spin.allowed, spin.duration_ns = allowed, duration_ns
    return spin


def test_spinning_needs_a_core_and_a_duration(clock: Clock) -> None:
    assert not spin_for(1000, allowed=False).worthwhile()
    assert not spin_for(0).worthwhile()
    assert spin_for(1000).worthwhile()


class Interrupted:
    """A poller of which every look takes so long, and finds something."""

    def __init__(self, clock: Clock, look_ns: int) -> None:
        self._clock = clock
        self._look_ns = look_ns

    def poll(self, _timeout_ms: float) -> list[tuple[int, int]]:
        self._clock.now_ns += self._look_ns
        return [(9, select.POLLIN)]


def spin_interrupted(clock: Clock, look_ns: int, share: float) -> Spin:
    """One that has spun for a little more than a second, interrupted for this share of it, `look_ns` at a time."""
    spin = spin_for(S)
    assert spin.worthwhile()
    poller: Any = Interrupted(clock, look_ns)
    looks = int(share * S / look_ns)
    for _ in range(looks):
        spin.wait(poller, 250)
        clock.now_ns += int((1 / share - 1) * look_ns)
    clock.pass_s(0.1)
    return spin


def test_spinning_stops_for_a_while_when_somebody_computes_on_the_core(clock: Clock) -> None:
    spin = spin_interrupted(clock, 3_000_000, 0.5)
    assert not spin.worthwhile()
    clock.pass_s(PAUSE_NS / S - 0.1)
    assert not spin.worthwhile()
    clock.pass_s(0.1)
    assert spin.worthwhile()


@pytest.mark.parametrize(("look_ns", "share"), [(20_000, 0.5), (ABSENT_NS, 0.5), (3_000_000, 0.02)])
def test_it_goes_on_where_others_only_wake_up_there_or_compute_seldom(clock: Clock, look_ns: int, share: float) -> None:
    assert spin_interrupted(clock, look_ns, share).worthwhile()


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, True), (1, True), (SPIN_ROWS_MAX, True), (SPIN_ROWS_MAX + 1, False)]
)
def test_spinning_pays_for_small_batches(clock: Clock, rows: int, expected: bool) -> None:
    spin = spin_for(1000)
    spin.last_rows = rows
    assert spin.worthwhile() is expected


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


class Poller:
    """Notes how long each look may wait; a look takes a microsecond, and something is there from some look on."""

    def __init__(self, clock: Clock, ready_at_look: int) -> None:
        self.timeouts_ms: list[float] = []
        self._clock = clock
        self._ready_at_look = ready_at_look

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        self.timeouts_ms.append(timeout_ms)
        self._clock.now_ns += 1000
        return [(9, select.POLLIN)] if len(self.timeouts_ms) >= self._ready_at_look else []


@pytest.mark.parametrize(("ready_at_look", "looks"), [(1, [0]), (4, [0] * 4), (5, [0] * 5), (6, [0] * 5 + [250])])
def test_it_looks_again_and_again_before_it_sleeps(clock: Clock, ready_at_look: int, looks: list[float]) -> None:
    poller: Any = Poller(clock, ready_at_look)
    assert spin_for(5000).wait(poller, 250) == {9: select.POLLIN}
    assert poller.timeouts_ms == looks


def test_it_sleeps_at_once_where_spinning_does_not_pay(clock: Clock) -> None:
    poller: Any = Poller(clock, 1)
    assert spin_for(0).wait(poller, 250) == {9: select.POLLIN}
    assert poller.timeouts_ms == [250]


def test_nothing_is_readable_when_nothing_comes(clock: Clock) -> None:
    poller: Any = Poller(clock, 99)
    assert spin_for(5000).wait(poller, 250) == {}


def test_what_can_be_read_is_told_by_descriptor() -> None:
    reading, writing = os.pipe()
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    spin = spin_for(1000)
    assert spin.wait(poller, 0) == {}
    os.write(writing, b"x")
    assert spin.wait(poller, 0) == {reading: select.POLLIN}
    os.close(reading)
    os.close(writing)
