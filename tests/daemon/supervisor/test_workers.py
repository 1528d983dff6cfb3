"""A worker's place, with a host and a process that only remember what they were told."""

import time
from typing import Any

import pytest

from tensord.daemon import messages as m
from tensord.daemon.supervisor.child import Page
from tensord.daemon.supervisor.lifecycle import State
from tensord.daemon.supervisor.workers import LOAD_DEATHS_MAX, STARTING_MS_MAX, WorkerPlace
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.statistics import Word

ORDERS = [m.LoadModel(index, "/models", f"m{index}", 1) for index in range(3)]


class Process:
    """A child that never runs."""

    def __init__(self) -> None:
        self.sent: list[m.Message] = []
        self.killed = False
        self.lived_s = 1.0
        self.started_s = time.monotonic()

    def send(self, message: m.Message, fds: object = ()) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.killed = True

    def loads(self) -> list[int]:
        return [message.index for message in self.sent if isinstance(message, m.LoadModel)]


class Host:
    """Notes calls; spawns a new Process each time, and has every model loaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.processes: list[Process] = []

    def spawn_worker(self, place: WorkerPlace) -> Any:
        self.processes.append(Process())
        return self.processes[-1]

    def worker_spoke(self, place: WorkerPlace) -> None:
        for order in ORDERS:
            place.load(order)

    def call_later(self, delay_s: float, place: WorkerPlace) -> None:
        self.calls.append(("later", delay_s))

    def worker_ended(self, place: WorkerPlace) -> None:
        self.calls.append(("ended",))

    def channel_opened(self, place: WorkerPlace, rings: object) -> None:
        self.calls.append(("channel",))

    def model_loaded(self, place: WorkerPlace, index: int) -> None:
        self.calls.append(("loaded", index))

    def model_broken(self, place: WorkerPlace, index: int, reason: str) -> None:
        self.calls.append(("broken", index, reason))

    def device_broken(self, place: WorkerPlace, reason: str) -> None:
        self.calls.append(("device", reason))

    def knobs_applied(self, process: str, epoch: int) -> None:
        self.calls.append(("knobs", process, epoch))


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def page() -> Page:
    return Page(4)


@pytest.fixture
def place(host: Host, page: Page) -> WorkerPlace:
    return WorkerPlace(host, 0, "cpu:0", [1], page, threads=1, spin=False)


def speak(place: WorkerPlace) -> None:
    place.spawn()
    place.received(m.WorkerStarted(1), [])


def test_models_load_one_after_the_other_until_it_is_ready(host: Host, place: WorkerPlace) -> None:
    speak(place)
    assert (place.state, host.processes[0].loads()) == (State.LOADING, [0])
    place.received(m.ModelLoaded(0, 1.0), [])
    place.received(m.ModelBroken(1, "bad weights"), [])
    assert (place.state, host.processes[0].loads()) == (State.LOADING, [0, 1, 2])
    place.received(m.ModelLoaded(2, 1.0), [])
    assert (place.state, place.loaded, place.broken) == (State.READY, {0, 2}, {1: "bad weights"})


def test_a_death_forgets_what_was_loaded_and_another_process_follows(host: Host, place: WorkerPlace) -> None:
    speak(place)
    place.received(m.ModelLoaded(0, 1.0), [])
    place.ended(-9, 30.0)
    assert (place.state, place.loaded, place.restarts) == (State.BACKING_OFF, set(), 1)
    assert host.calls[-2:] == [("ended",), ("later", 0.0)]


def test_a_model_whose_loading_always_kills_is_given_up_and_the_others_load(host: Host, place: WorkerPlace) -> None:
    for _ in range(LOAD_DEATHS_MAX):
        speak(place)
        assert host.processes[-1].loads() == [0]
        place.ended(3, 30.0)
    kind, index, reason = host.calls[-1]
    assert (kind, index) == ("broken", 0)
    assert reason.startswith("model m0:1 on cpu:0: its loading ended the worker 3 times (exit code 3)")
    speak(place)
    assert host.processes[-1].loads() == [1]
    assert place.broken == {0: reason}


def test_a_model_that_hangs_in_loading_is_given_up_at_once(host: Host, place: WorkerPlace, page: Page) -> None:
    speak(place)
    Heartbeat(page.block).enter(Activity.LOADING, time.monotonic_ns() - 2_000_000_000)
    assert place.hung(60_000, 10_000) is None
    reason = place.hung(60_000, 1_000)
    assert reason is not None
    assert reason.startswith("loading m0 for 2 s")
    place.ended(-9, 30.0)
    assert host.calls[-1][:2] == ("broken", 0)


def test_silence_is_judged_by_the_state(place: WorkerPlace, page: Page) -> None:
    place.spawn()
    page.block.words[Word.HEARTBEAT_NS] = max(0, time.monotonic_ns() - 5_000_000_000)
    assert place.hung(1_000, 1_000) is None, f"a process that imports has {STARTING_MS_MAX} ms"
    place.received(m.WorkerStarted(1), [])
    assert place.hung(10_000, 1_000) is None
    assert place.hung(1_000, 1_000) is not None


def test_a_place_that_stops_kills_what_still_imports_and_starts_no_more(host: Host, place: WorkerPlace) -> None:
    place.spawn()
    place.stop()
    assert (place.state, host.processes[0].killed) == (State.STOPPED, True)
    place.ended(-9, 30.0)
    assert ("later", 0.0) not in host.calls
