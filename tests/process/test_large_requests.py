"""Requests of more rows than a batch, on a real daemon: answered once, as if the model took them whole."""

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord.ipc.errors import Cancelled, DeadlineExceeded, ModelFailed, TooManyRows
from tensord.ipc.limits import PARTS_MAX
from tensord.ipc.wire import FrameType, ResultHead, frame

if TYPE_CHECKING:
    from itertools import count

    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def rows_of(rows: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """For the model `echo`, whose batches have 32 rows; no two rows alike."""
    return np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)


def test_an_inline_request_is_cut_and_answered_as_one(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    before = {name: unharmed.counter("echo", name) for name in ("split", "requests")}
    for rows in (33, 64, 130, 1000):
        answer = client.ask(client.request("echo", rows_of(rows)))
        head, (tensor,) = ResultHead.decode(memoryview(answer.meta))
        assert (tensor.shape, answer.payload) == ((rows, 4), rows_of(rows).tobytes())
        assert head.batch_rows <= 32
    unharmed.wait_status(lambda _: all(unharmed.counter("echo", name) - count >= 4 for name, count in before.items()))
    assert unharmed.counter("echo", "split") - before["split"] == 4


def test_a_request_in_an_arena_is_cut_and_written_in_place(unharmed: "Daemon", connect: "Connect") -> None:
    client, rows = connect(), 300
    x = rows_of(rows)
    arena = client.attach(64 * 1024)
    arena.write(0, x)
    handle = client.open("echo").handle
    room = client.placed(0, x, arena.number, 16 * 1024)
    answer = client.ask(client.infer(handle, [client.placed(0, x, arena.number, 0)], outputs=[room]))
    assert answer.frame_type == FrameType.RESULT, answer.error()
    assert answer.payload == b""
    np.testing.assert_array_equal(arena.read(16 * 1024, x), x)
    assert client.ask(client.infer(handle, [client.placed(0, x, arena.number, 0)], outputs=[room])).payload == b""


def test_sizes_of_free_dimensions_hold_for_all_parts(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    ids = np.arange(1, 1 + 100 * 5, dtype=np.int64).reshape(100, 5)
    whole = client.call("tokens", ids)
    single = [client.call("tokens", ids[row : row + 1]) for row in (0, 33, 99)]
    for tensors, row in zip(single, (0, 33, 99), strict=True):
        for all_rows, one in zip(whole, tensors, strict=True):
            np.testing.assert_array_equal(all_rows[row : row + 1], one)


def test_more_rows_than_the_model_takes_are_refused(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    with unharmed.knobs(echo__rows_max=100):
        error = client.ask(client.request("echo", rows_of(101))).error()
        assert isinstance(error, TooManyRows)
        assert (error.rows, error.rows_max) == (101, 100)
        assert client.call("echo", rows_of(100))[0].tobytes() == rows_of(100).tobytes()
    error = client.ask(client.request("gate", np.zeros(PARTS_MAX + 1, np.int64))).error()
    assert isinstance(error, TooManyRows)
    assert error.rows_max == PARTS_MAX


def test_one_bad_row_fails_the_request_and_no_other(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    bad = np.ones((100, 4), np.float32)
    bad[50] = -1
    good = np.ones((100, 4), np.float32)
    client.send(client.request("picky", bad, request_id=5), client.request("picky", good, request_id=6))
    answers = {answer.request_id: answer for answer in (client.receive(), client.receive())}
    assert isinstance(answers[5].error(), ModelFailed)
    assert answers[6].payload == good.tobytes()


def test_cancel_takes_back_what_waits_and_is_answered_once(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    client, gate = connect(), next(gates)
    with unharmed.knobs(pipeline_depth=1):
        client.send(client.request("gate", np.array([gate, 0, 0, 0]), request_id=5))
        unharmed.wait_entered(gate)
        client.send(frame(FrameType.CANCEL, 5))
        client.ping()  # no answer yet: a part still runs
        unharmed.open_gate(gate)
        answer = client.receive()
        assert (answer.request_id, type(answer.error())) == (5, Cancelled)
    assert client.call("gate", np.zeros(3, np.int64))[0].tobytes() == np.zeros(3, np.int64).tobytes()


def test_a_deadline_holds_for_the_whole(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    with unharmed.knobs(pipeline_depth=1):
        deadline_ns = time.monotonic_ns() + 300_000_000
        client.send(client.request("gate", np.array([gate, 0, 0]), request_id=5, deadline_ns=deadline_ns))
        unharmed.wait_entered(gate)
        while time.monotonic_ns() < deadline_ns + 20_000_000:
            client.ping()
        unharmed.open_gate(gate)
        answer = client.receive()
        error = answer.error()
        assert (answer.request_id, type(error)) == (5, DeadlineExceeded)


def test_the_end_of_a_connection_frees_all_parts(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    with unharmed.knobs(pipeline_depth=1):
        client.send(client.request("gate", np.array([gate, *[0] * 200]), request_id=5))
        unharmed.wait_entered(gate)
        client.close()
        unharmed.wait_status(lambda now: now.frontend.queued <= 1)  # the bystander may wait
        unharmed.open_gate(gate)
    other = connect()
    assert other.call("gate", np.zeros(5, np.int64))[0].tobytes() == np.zeros(5, np.int64).tobytes()
