"""A load on a daemon of tests, which answers at once, late, wrongly or never."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensord.daemon.bench.connection import LoadConnection
from tensord.daemon.bench.inputs import random_inputs
from tensord.daemon.bench.load import NEVER_NS, Load
from tensord.daemon.bench.tally import Errors, Tally
from tensord.ipc.errors import ConnectionLost, ModelFailed, QueueFull
from tensord.ipc.wire import FrameType, frame

from ...ipc.client.fake_daemon import FakeDaemon, Infer, Script, ignore

MS = 1_000_000
S = 1_000 * MS


class Bench:
    """Makes loads on the daemon and runs them."""

    def __init__(self, path: Path) -> None:
        self.stop_here, self.stop_there = os.pipe()
        self.said: list[int] = []
        self._path = path
        self._connections: list[LoadConnection] = []

    def load(
        self,
        model: str = "double",
        clients: int = 1,
        depth: int = 1,
        rows: int = 1,
        timeout_ns: int = 10 * S,
        arena_bytes: int = 0,
        arrivals_ns: Sequence[int] | None = None,
    ) -> Load:
        """With `arrivals_ns`, an open loop of these."""
        connections = [
            LoadConnection(str(self._path), model, lambda spec: random_inputs(spec, rows, 1), arena_bytes)
            for _ in range(clients)
        ]
        self._connections += connections
        arrivals = None if arrivals_ns is None else itertools.chain(arrivals_ns, itertools.repeat(NEVER_NS))
        return Load(connections, depth, timeout_ns, arrivals)

    def run(self, load: Load, window_ns: int = 30 * MS, warmup_ns: int = 0, begun_ns: int = 0) -> Tally:
        """From now, or from `begun_ns` ago."""
        start_ns = time.monotonic_ns() - begun_ns
        return load.run(start_ns, warmup_ns, window_ns, self.stop_here, lambda tally: self.said.append(tally.answered))

    def stop(self) -> None:
        """As the command does."""
        os.write(self.stop_there, b"{}\n")

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections:
            connection.close(ConnectionLost("the test is over"))
        os.close(self.stop_here)
        os.close(self.stop_there)


@pytest.fixture
def bench(daemon: FakeDaemon) -> Iterator[Bench]:
    made = Bench(daemon.path)
    yield made
    made.close()


# ── closed loop ─────────────────────────────────────────────────────────────────────────────────


def test_every_request_is_counted_once(daemon: FakeDaemon, bench: Bench) -> None:
    tally = bench.run(bench.load(clients=3, depth=2))
    assert tally.sent == tally.answered == len(daemon.requests)
    assert tally.latency.count == tally.offered == tally.sent
    assert (tally.failed, tally.unanswered, tally.errors, tally.lost) == (0, 0, {}, "")
    assert 0 < tally.results <= tally.answered
    assert tally.window_s == 0.03
    assert 0 < tally.cpu_s <= tally.busy_s


def test_each_connection_has_its_depth_in_flight(daemon: FakeDaemon, bench: Bench) -> None:
    waiting: dict[Any, list[Infer]] = {}
    deepest = 0

    def answer_when_full(infer: Infer) -> None:
        nonlocal deepest
        together = waiting.setdefault(infer.connection, [])
        together.append(infer)
        deepest = max(deepest, len(together))
        if len(together) == 3:
            for each in together:
                each.answer()
            together.clear()

    daemon.on_infer = answer_when_full
    tally = bench.run(bench.load(clients=2, depth=3, timeout_ns=1))
    assert deepest == 3
    assert len(waiting) == 2
    assert tally.answered > 6


def test_the_warm_up_is_not_measured(bench: Bench) -> None:
    tally = bench.run(bench.load(clients=2), warmup_ns=20 * MS)
    assert 0 < tally.latency.count <= tally.answered - 2
    assert tally.results <= tally.answered - 2


def test_the_inputs_are_the_models_and_the_deadline_is_the_timeout(daemon: FakeDaemon, bench: Bench) -> None:
    before_ns = time.monotonic_ns()
    bench.run(bench.load("pair", rows=5, timeout_ns=7 * S))
    expected = random_inputs(daemon.models["pair"].spec, 5, 1)
    for given, name in zip(daemon.requests[0].inputs(), ("a", "b"), strict=True):
        assert np.array_equal(given, expected[name])
    assert before_ns + 7 * S <= daemon.requests[0].head.deadline_ns <= time.monotonic_ns() + 7 * S


def test_what_results_say_of_queue_compute_and_batch_is_kept(bench: Bench) -> None:
    tally = bench.run(bench.load(rows=4))
    assert (tally.queue.max_ns, tally.compute.max_ns) == (7_000, 11_000)
    assert tally.batches == {4: tally.latency.count}
    assert tally.elsewhere.sum_ns == tally.latency.sum_ns - 18_000 * tally.latency.count


def test_large_requests_are_sent_in_parts(daemon: FakeDaemon, bench: Bench) -> None:
    tally = bench.run(bench.load("image", depth=12, rows=20))
    assert tally.sent == tally.answered == len(daemon.requests)


def test_results_without_payload_and_with_a_large_one_come_whole(bench: Bench) -> None:
    tally = bench.run(bench.load("wide", rows=1))
    assert tally.sent == tally.answered > 0


def test_errors_are_counted_and_the_load_goes_on(daemon: FakeDaemon, bench: Bench) -> None:
    daemon.on_infer = Script(
        lambda infer: infer.refuse(QueueFull("double", 4)),
        lambda infer: infer.refuse(QueueFull("double", 9)),
        lambda infer: infer.refuse(ModelFailed("double", "it raised")),
        Infer.answer,
    )
    tally = bench.run(bench.load())
    assert tally.errors == {
        "QueueFull": Errors(2, "operator", str(QueueFull("double", 4))),
        "ModelFailed": Errors(1, "model", str(ModelFailed("double", "it raised"))),
    }
    assert (tally.failed, tally.answered) == (3, tally.sent - 3)
    assert tally.offered == tally.sent


def test_who_gets_no_answer_is_not_waited_for_for_ever(daemon: FakeDaemon, bench: Bench) -> None:
    daemon.on_infer = ignore
    tally = bench.run(bench.load(clients=2, depth=3, timeout_ns=1))
    assert (tally.sent, tally.answered, tally.failed, tally.unanswered) == (6, 0, 6, 6)
    assert tally.results == 0


# ── shared memory ───────────────────────────────────────────────────────────────────────────────


def test_the_arena_lane_writes_its_inputs_for_every_request(daemon: FakeDaemon, bench: Bench) -> None:
    tally = bench.run(bench.load("image", depth=4, rows=2, arena_bytes=4 * 2 * 2 * 3 * 64 * 64 * 4))
    assert {infer.in_arena for infer in daemon.requests} == {True}
    assert len({infer.tensors[0].offset for infer in daemon.requests}) == 4
    assert len(daemon.seen(FrameType.ATTACH)) == 1
    assert tally.copy_in.count == tally.latency.count == tally.answered > 0
    assert tally.copy_in.sum_ns > 0
    expected = random_inputs(daemon.models["image"].spec, 2, 1)["x"]
    assert np.array_equal(daemon.requests[-1].inputs()[0], expected)


def test_the_inline_lane_copies_nothing(bench: Bench) -> None:
    assert bench.run(bench.load()).copy_in.count == 0


# ── open loop ───────────────────────────────────────────────────────────────────────────────────


def test_every_arrival_of_the_window_is_sent_and_no_other(daemon: FakeDaemon, bench: Bench) -> None:
    arrivals = [number * MS for number in range(60)]
    tally = bench.run(bench.load(depth=64, arrivals_ns=arrivals), warmup_ns=10 * MS, window_ns=20 * MS)
    assert (tally.sent, tally.offered, tally.latency.count) == (30, 20, 20)
    assert len(daemon.requests) == 30
    assert (tally.held, tally.send_delay.count) == (0, 20)


def test_arrivals_take_turns_on_the_connections(daemon: FakeDaemon, bench: Bench) -> None:
    bench.run(bench.load(clients=3, depth=2, arrivals_ns=[0, 1, 2, 3, 4, 5]))
    assert sorted(daemon.connections.index(infer.connection) for infer in daemon.requests) == [0, 0, 1, 1, 2, 2]


def slowly(answer: Callable[[Infer], None]) -> Callable[[Infer], None]:
    """After twenty milliseconds."""

    def later(infer: Infer) -> None:
        time.sleep(0.02)
        answer(infer)

    return later


def test_latency_counts_from_the_schedule_where_a_slow_daemon_delays_the_sending(
    daemon: FakeDaemon, bench: Bench
) -> None:
    daemon.on_infer = Script(slowly(Infer.answer), Infer.answer)
    tally = bench.run(bench.load(arrivals_ns=[0, 1 * MS, 2 * MS]))
    assert (tally.latency.count, tally.held) == (3, 2)
    shortest_ns = min(middle_ns for middle_ns, _ in tally.latency.middles_ns())
    assert shortest_ns > 17 * MS
    assert tally.send_delay.max_ns > 17 * MS


def test_an_arrival_whose_time_is_over_before_there_is_a_place_has_failed(daemon: FakeDaemon, bench: Bench) -> None:
    daemon.on_infer = slowly(Infer.answer)
    tally = bench.run(bench.load(arrivals_ns=[0, 1 * MS], timeout_ns=5 * MS))
    assert (tally.sent, tally.answered) == (1, 1)
    assert tally.errors["DeadlineExceeded"].count == 1
    assert tally.offered == 2


def test_arrivals_that_the_load_sees_late_are_its_own_fault(bench: Bench) -> None:
    tally = bench.run(bench.load(depth=8, arrivals_ns=[0, 1 * MS]), begun_ns=20 * MS)
    assert (tally.late, tally.held, tally.latency.count) == (2, 0, 2)
    assert tally.latency.max_ns > 19 * MS


def test_arrivals_that_never_got_a_place_are_unanswered(daemon: FakeDaemon, bench: Bench) -> None:
    daemon.on_infer = ignore
    tally = bench.run(bench.load(arrivals_ns=[0, 1, 2], timeout_ns=1))
    assert (tally.sent, tally.unanswered, tally.offered) == (1, 3, 3)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_it_says_how_far_it_is(bench: Bench) -> None:
    tally = bench.run(bench.load())
    assert bench.said[0] == 0
    assert bench.said == sorted(bench.said)
    assert bench.said[-1] <= tally.answered


def test_it_stops_when_told_and_keeps_what_it_has(daemon: FakeDaemon, bench: Bench) -> None:
    answered = itertools.count(1)

    def answer(infer: Infer) -> None:
        infer.answer()
        if next(answered) == 10:
            bench.stop()

    daemon.on_infer = answer
    tally = bench.run(bench.load(), window_ns=3_600 * S)
    assert 0 < tally.window_s < 3_600
    assert tally.sent == tally.answered == tally.latency.count >= 10
    assert tally.cpu_s > 0


def test_one_that_is_stopped_in_its_warm_up_has_measured_nothing(bench: Bench) -> None:
    bench.stop()
    tally = bench.run(bench.load(), warmup_ns=3_600 * S)
    assert (tally.window_s, tally.offered, tally.results) == (0.0, 0, 0)


def test_a_lost_connection_ends_it(daemon: FakeDaemon, bench: Bench) -> None:
    daemon.on_infer = Script(*[Infer.answer] * 4, Infer.drop, Infer.answer)
    tally = bench.run(bench.load(clients=2), window_ns=3_600 * S)
    assert tally.lost == "the daemon closed it"
    assert tally.errors["ConnectionLost"].count == 1
    assert tally.sent == tally.answered + tally.failed


def test_a_daemon_that_shuts_down_answers_what_is_in_flight(daemon: FakeDaemon, bench: Bench) -> None:
    def close(infer: Infer) -> None:
        infer.connection.send(frame(FrameType.CLOSE, 0))
        infer.answer()

    daemon.on_infer = Script(Infer.answer, close, Infer.answer)
    tally = bench.run(bench.load(), window_ns=3_600 * S)
    assert (tally.lost, tally.failed) == ("it is shutting down", 0)
    assert tally.sent == tally.answered
