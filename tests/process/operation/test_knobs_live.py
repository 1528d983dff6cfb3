"""Knobs are turned while requests run: none of them fails, and those that come after obey."""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tensord import Client
from tensord.ipc.errors import QueueFull

if TYPE_CHECKING:
    from itertools import count

    from tests.process.operation.conftest import Connect, Instance, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def test_batching_knobs_turn_under_load_and_no_request_fails(sturdy: "Instance", connect_raw: "Connect") -> None:
    over = threading.Event()
    failures: list[BaseException] = []
    rounds = [0] * 4

    def ask(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            with Client(sturdy.socket) as client:
                while not over.is_set():
                    inputs = [generator.random((3, 1, 8, 8), np.float32) for _ in range(16)]
                    futures = [client.submit("digits", x) for x in inputs]
                    assert all(np.asarray(future.result(30)).shape == (3, 10) for future in futures)
                    rounds[seed] += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(len(rounds))]
    for thread in threads:
        thread.start()
    client = connect_raw(sturdy, "digits")
    request_ids = iter(range(10, 10_000))
    epoch = sturdy.status().epoch
    try:
        for step, (max_batch, window) in enumerate(((4, "0us"), (64, "5ms"), (3, "100us"), (8, "2ms")), start=1):
            applied = sturdy.set(digits__max_batch=max_batch, digits__window_us=window)
            assert (applied.epoch, applied.converging) == (epoch + step, [])
            assert sturdy.status().epoch == epoch + step
            mine = {next(request_ids): np.zeros((3, 1, 8, 8), np.float32) for _ in range(32)}
            client.send(mine)
            for _ in mine:
                request_id, answer = client.receive()
                assert isinstance(answer, bytes), answer
                assert 3 <= client.batch_rows[request_id] <= max_batch
            before = list(rounds)
            sturdy.wait_until(
                lambda before=before: (
                    bool(failures)  # type: ignore[misc]
                    or all(now > then for now, then in zip(rounds, before, strict=True))
                )
            )
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert max(client.batch_rows.values()) > 8  # the 64 in between was used, too
    sturdy.set(digits__max_batch=None, digits__window_us=None)


def test_queue_max_refuses_with_the_time_to_come_back(
    sturdy: "Instance", sturdy_site: "Site", connect_raw: "Connect", gates: "count[int]"
) -> None:
    numbers = [next(gates) for _ in range(2)]
    client = connect_raw(sturdy, "gate")
    sturdy.set(pipeline_depth=1, gate__queue_max=2, gate__tenant_queue_percent=100)
    for number in numbers:  # one on each device
        client.send({number: np.array([number])})
        sturdy_site.models.wait_entered(number)
    client.send({1001: np.array([0]), 1002: np.array([0]), 1003: np.array([0])})
    request_id, error = client.receive()
    assert (request_id, type(error)) == (1003, QueueFull)
    assert isinstance(error, QueueFull)
    assert error.data() == {"model": "gate", "limit": 2}
    assert error.retry_after_ms
    sturdy.set(gate__queue_max=3)
    client.send({1004: np.array([0])})
    for number in numbers:
        sturdy_site.models.open_gate(number)
    answers: dict[int, Any] = dict(client.receive() for _ in range(5))
    assert sorted(answers) == sorted([*numbers, 1001, 1002, 1004])
    assert all(isinstance(answer, bytes) for answer in answers.values())
    sturdy.set(pipeline_depth=None, gate__queue_max=None, gate__tenant_queue_percent=None)


def test_restart_knob_is_pending_until_its_process_starts_again(sturdy: "Instance") -> None:
    applied = sturdy.set(**{"cpu:0__threads": 3})
    (change,) = applied.changes
    assert (change.pending_restart, change.new) == (True, 3)
    assert sturdy.status().pending_restart == ["cpu:0.threads"]
    os.kill(sturdy.worker_pid("cpu:0"), signal.SIGKILL)
    sturdy.wait_status(lambda now: not now.pending_restart)
    environment = Path(f"/proc/{sturdy.worker_pid('cpu:0')}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=3" in environment
    sturdy.set(**{"cpu:0__threads": None})
