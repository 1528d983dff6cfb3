"""Workers and front ends are killed and stopped under load: every request gets exactly one answer, and a right one."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tensord import Client
from tensord.ipc.errors import ConnectionLost, PoisonousRequest, TensordError, WorkerLost

if TYPE_CHECKING:
    from itertools import count

    from tests.process.operation.conftest import Connect, Instance, RawClient, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

Array = npt.NDArray[Any]

WATCHDOG_S: Final = 30.0
COLUMNS: Final = 1024
"""Of the model `identity`, float32: 65 rows are more than a client sends inline."""
WINDOW: Final = 24
"""Requests that a pipelining client has in flight."""


def random_rows(generator: np.random.Generator, rows: int) -> Array:
    """Any bits at all: identity must not even touch a NaN."""
    return generator.integers(0, 2**32, (rows, COLUMNS), np.uint32).view(np.float32)


# ── load ────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Threads that ask in every way that there is, compare each answer bit by bit, and note each error."""

    def __init__(self, instance: "Instance", connect: "Connect | None") -> None:
        self.errors: Counter[type[TensordError]] = Counter()
        self.lease_errors: Counter[type[TensordError]] = Counter()
        self.rounds: list[int] = []
        """Of each thread: rounds in which everything was answered."""
        self.clients = [Client(instance.socket) for _ in range(3)]
        self._over = threading.Event()
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._instance = instance
        shared, leasing, pipelining = self.clients
        for seed in range(3):
            self._add(lambda generator: self._small(shared, generator), seed)
        self._add(lambda generator: self._large(shared, generator), 3)
        self._add(lambda generator: self._leased(leasing, generator), 4)
        self._add(lambda generator: self._pipelined(pipelining, generator), 5)
        if connect is not None:
            client = connect(instance, "identity")
            self._add(lambda generator: self._by_hand(client, generator), 6)

    def _add(self, one_round: Callable[[np.random.Generator], None], seed: int) -> None:
        generator = np.random.default_rng(seed)
        place = len(self.rounds)
        self.rounds.append(0)

        def run() -> None:
            try:
                while not self._over.is_set():
                    one_round(generator)
                    self.rounds[place] += 1
            except BaseException as failure:
                self._failures.append(failure)

        thread = threading.Thread(target=run, name=f"load-{seed}")
        self._threads.append(thread)
        thread.start()

    # ── ways to ask ─────────────────────────────────────────────────────────────────────────────

    def _small(self, client: Client, generator: np.random.Generator) -> None:
        x = random_rows(generator, int(generator.integers(1, 9)))
        with self._noting(self.errors):
            self._compare(client.infer("identity", x), x)

    def _large(self, client: Client, generator: np.random.Generator) -> None:
        x = random_rows(generator, int(generator.integers(65, 200)))
        with self._noting(self.errors):
            self._compare(client.infer("identity", x), x)

    def _leased(self, client: Client, generator: np.random.Generator) -> None:
        x = random_rows(generator, int(generator.integers(1, 100)))
        with self._noting(self.lease_errors), client.lease("identity", len(x)) as slot:
            slot.input[:] = x
            self._compare(slot.infer(), x)

    def _pipelined(self, client: Client, generator: np.random.Generator) -> None:
        settled: list[Future[Any]] = []
        futures = []
        for _ in range(WINDOW):
            x = random_rows(generator, int(generator.integers(1, 9)))
            with self._noting(self.errors):
                future = client.submit("identity", x)
                future.add_done_callback(settled.append)
                futures.append((future, x))
        for future, x in futures:
            with self._noting(self.errors):
                self._compare(future.result(WATCHDOG_S), x)
        self._instance.wait_until(lambda: len(settled) == len(futures))

    def _by_hand(self, client: "RawClient", generator: np.random.Generator) -> None:
        first = sum(client.finals.values()) + 10
        requests = {first + place: random_rows(generator, int(generator.integers(1, 9))) for place in range(WINDOW)}
        client.send(requests)
        for _ in requests:
            request_id, answer = client.receive()
            if isinstance(answer, TensordError):
                self.errors[type(answer)] += 1
            else:
                assert answer == requests[request_id].tobytes(), request_id
        assert all(client.finals[request_id] == 1 for request_id in requests), client.finals

    @staticmethod
    def _compare(y: Any, x: Array) -> None:
        np.testing.assert_array_equal(y.view(np.uint32), x.view(np.uint32))

    @contextlib.contextmanager
    def _noting(self, errors: "Counter[type[TensordError]]") -> Iterator[None]:
        try:
            yield
        except TensordError as error:
            errors[type(error)] += 1

    # ── in between, and the end ─────────────────────────────────────────────────────────────────

    def wait_round(self) -> None:
        """Until every thread has gone once more through all of a round."""
        before = list(self.rounds)
        self._instance.wait_until(
            lambda: bool(self._failures) or all(now > then + 1 for now, then in zip(self.rounds, before, strict=True))
        )
        assert not self._failures

    def finish(self) -> None:
        """End it. Every request was counted once, and no reply came that nobody waited for."""
        self._over.set()
        for thread in self._threads:
            thread.join(WATCHDOG_S)
        statistics = [client.statistics() for client in self.clients]
        for client in self.clients:
            client.close()
        assert not self._failures, self._failures
        assert not any(thread.is_alive() for thread in self._threads)
        for counts in statistics:
            assert counts.unknown_replies == 0
            assert counts.requests == counts.answers + counts.errors, counts
            assert (counts.in_flight, counts.slots_leased) == (0, 0)


@contextlib.contextmanager
def load(instance: "Instance", connect: "Connect | None" = None) -> Iterator[Load]:
    """Load beside the test; with a raw client only where the front end lives on."""
    running = Load(instance, connect)
    try:
        running.wait_round()
        yield running
    finally:
        running.finish()


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────


def test_killed_workers_cost_no_request_its_answer(sturdy: "Instance", connect_raw: "Connect") -> None:
    before = sum(worker.restarts for worker in sturdy.status().workers)
    with load(sturdy, connect_raw) as running:
        for _ in range(4):
            pid = sturdy.worker_pid()
            os.kill(pid, signal.SIGKILL)
            sturdy.wait_status(lambda now, pid=pid: pid not in [each.pid for each in now.workers])  # type: ignore[misc]
            running.wait_round()  # with retries = 1, nobody may meet two deaths
    assert running.errors + running.lease_errors == Counter()
    assert sum(worker.restarts for worker in sturdy.status().workers) == before + 4
    assert all(client.statistics().reconnects == 0 for client in running.clients)


def test_killed_front_ends_cost_only_leases_theirs(sturdy: "Instance") -> None:
    before = sturdy.status().frontend
    with load(sturdy) as running:
        for _ in range(4):
            os.kill(sturdy.frontend_pid(), signal.SIGKILL)
            running.wait_round()
    assert running.errors == Counter()
    assert set(running.lease_errors) <= {ConnectionLost}
    assert running.lease_errors.total() <= 4
    after = sturdy.status().frontend
    assert (after.restarts, after.generation) == (before.restarts + 4, before.generation + 4)


def test_everything_killed_at_will_gives_right_answers_or_named_errors(sturdy: "Instance") -> None:
    with load(sturdy) as running:
        generator = np.random.default_rng(11)
        for _ in range(5):
            victims = [sturdy.frontend_pid, sturdy.worker_pid]
            for victim in victims if generator.random() < 0.5 else victims[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim(), signal.SIGKILL)
    assert set(running.errors + running.lease_errors) <= {ConnectionLost, WorkerLost, PoisonousRequest}


# ── what may run once ───────────────────────────────────────────────────────────────────────────


def test_killed_worker_never_runs_again_what_is_not_idempotent(
    sturdy: "Instance", sturdy_site: "Site", gates: "count[int]"
) -> None:
    models = sturdy_site.models
    numbers = [next(gates) for _ in range(3)]
    with Client(sturdy.socket) as client:
        futures = {number: client.submit("once", np.array([number])) for number in numbers}
        for number in numbers[:2]:  # one on each device; the third waits behind one of them
            sturdy.wait_until(lambda number=number: bool(models.runs(number)))  # type: ignore[misc]
        (pid,) = models.runs(numbers[0])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            futures[numbers[0]].result(WATCHDOG_S)
        for number in numbers:
            models.open_gate(number)
        assert futures[numbers[1]].result(WATCHDOG_S) == [numbers[1]]
        with contextlib.suppress(WorkerLost):  # it may have been with the killed worker, not yet begun
            assert futures[numbers[2]].result(WATCHDOG_S) == [numbers[2]]
        assert client.infer("once", np.array([0])) == [0]
    assert [len(models.runs(number)) for number in numbers[:2]] == [1, 1]
    assert len(models.runs(numbers[2])) <= 1


def test_client_never_sends_again_what_is_not_idempotent(
    sturdy: "Instance", sturdy_site: "Site", gates: "count[int]"
) -> None:
    models, number = sturdy_site.models, next(gates)
    with Client(sturdy.socket) as client:
        future = client.submit("once", np.array([number]))
        sturdy.wait_until(lambda: bool(models.runs(number)))
        os.kill(sturdy.frontend_pid(), signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            future.result(WATCHDOG_S)
        models.open_gate(number)
        assert client.infer("once", np.array([0])) == [0]
        assert client.statistics().resent == 0
    assert len(models.runs(number)) == 1


# ── who kills workers ───────────────────────────────────────────────────────────────────────────


def test_poisonous_request_is_refused_and_its_neighbours_are_answered(
    sturdy: "Instance", connect_raw: "Connect"
) -> None:
    before = sum(worker.restarts for worker in sturdy.status().workers)
    client = connect_raw(sturdy, "deadly")
    rows = {request_id: np.full((1, 4), request_id, np.float32) for request_id in range(10, 17)}
    rows[13][:] = 666
    client.send(rows)
    for _ in rows:
        request_id, answer = client.receive()
        if request_id == 13:
            assert isinstance(answer, PoisonousRequest)
            assert answer.data() == {"model": "deadly", "attempts": 2}
        else:
            assert answer == rows[request_id].tobytes()
    client.send({20: np.ones((8, 4), np.float32)})
    assert client.receive() == (20, np.ones((8, 4), np.float32).tobytes())
    assert set(client.finals.values()) == {1}
    assert sum(worker.restarts for worker in sturdy.status().workers) == before + 2


# ── who hangs ───────────────────────────────────────────────────────────────────────────────────


def test_stopped_worker_is_replaced_and_its_requests_are_answered(sturdy: "Instance", connect_raw: "Connect") -> None:
    sturdy.set(hang_timeout_s=1)
    before = sum(worker.restarts for worker in sturdy.status().workers)
    with load(sturdy, connect_raw) as running:
        pid = sturdy.worker_pid()
        os.kill(pid, signal.SIGSTOP)
        sturdy.wait_until(lambda: sum(worker.restarts for worker in sturdy.status().workers) > before)
        running.wait_round()
    sturdy.wait_ready()
    assert running.errors + running.lease_errors == Counter()
    assert sum(worker.restarts for worker in sturdy.status().workers) == before + 1
    assert pid not in sturdy.children()
    sturdy.set(hang_timeout_s=None)


def test_starting_worker_may_be_silent_for_longer(sturdy: "Instance") -> None:
    sturdy.set(hang_timeout_s=1)
    before = sum(worker.restarts for worker in sturdy.status().workers)
    os.kill(sturdy.worker_pid("cpu:0"), signal.SIGKILL)
    pid = sturdy.wait_status(lambda now: now.workers[0].state == "starting").workers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    sturdy.wait_status(lambda now: now.workers[0].uptime_s > 1.8)
    os.kill(pid, signal.SIGCONT)
    sturdy.wait_ready()
    assert sum(worker.restarts for worker in sturdy.status().workers) == before + 1
    sturdy.set(hang_timeout_s=None)


def test_stopped_front_end_is_replaced(sturdy: "Instance") -> None:
    sturdy.set(hang_timeout_s=1)
    before = sturdy.status().frontend.restarts
    with load(sturdy) as running:
        os.kill(sturdy.frontend_pid(), signal.SIGSTOP)
        running.wait_round()
    assert running.errors == Counter()
    assert set(running.lease_errors) <= {ConnectionLost}
    assert sturdy.status().frontend.restarts == before + 1
    sturdy.set(hang_timeout_s=None)
