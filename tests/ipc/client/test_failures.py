"""The blocking client when the daemon refuses, is late, goes away, comes back, or talks nonsense."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensord import Client
from tensord.ipc.errors import (
    ERRORS,
    Cancelled,
    ConnectionLost,
    DaemonNotFound,
    DeadlineExceeded,
    ModelFailed,
    QueueFull,
    ShuttingDown,
    TensordError,
    TooManyConnections,
    UnknownError,
    UnknownHandle,
    UnsupportedVersion,
    WorkerLost,
)
from tensord.ipc.tensors import DType
from tensord.ipc.wire import (
    ERROR,
    HEADER,
    MAGIC,
    FrameType,
    ResultHead,
    TensorHeader,
    Welcome,
    encode_error,
    encode_result,
    frame,
)

from .fake_daemon import FakeConnection, FakeDaemon, Infer, Script, ignore

X = np.arange(8, dtype=np.float32).reshape(2, 4)
DOUBLED = (X * 2).tolist()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.path) as made:
        yield made


EXAMPLES: dict[object, object] = {int: 7, float: 1.5, str: "seven", list[str]: ["a", "b"]}


def example(kind: type[TensordError]) -> TensordError:
    """An error of this class with values in all its fields."""
    arguments = [EXAMPLES[field.type] for field in fields(kind)]  # type: ignore[arg-type]
    return kind(*arguments)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [code for code in ERRORS if code < 500 and code != UnknownHandle.code])
def test_every_error_arrives_as_itself(client: Client, daemon: FakeDaemon, code: int) -> None:
    sent = example(ERRORS[code])
    sent.retry_after_ms = 125
    daemon.on_infer = lambda infer: infer.refuse(sent)
    with pytest.raises(ERRORS[code]) as caught:
        client.infer("double", X)
    assert caught.value.data() == sent.data()
    assert caught.value.retry_after_ms == 125
    assert len(daemon.requests) == 1


def test_an_unknown_code_keeps_its_number_and_sentence(client: Client, daemon: FakeDaemon) -> None:
    def refuse(infer: Infer) -> None:
        text = b"from the future"
        meta = ERROR.pack(999, 0, 0, 10, len(text), 0) + text
        infer.connection.send(frame(FrameType.ERROR, infer.request_id, meta))

    daemon.on_infer = refuse
    with pytest.raises(UnknownError, match="from the future") as caught:
        client.infer("double", X)
    assert caught.value.number == 999


def test_an_error_leaves_the_client_usable(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(QueueFull("double", 4)), Infer.answer)
    with pytest.raises(QueueFull):
        client.infer("double", X)
    assert client.infer("double", X).tolist() == DOUBLED
    assert client.statistics().resent == 0


def test_an_unknown_handle_opens_again_and_resends_once(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(UnknownHandle(infer.head.handle)), Infer.answer)
    assert client.infer("once", X).tolist() == DOUBLED
    assert len(daemon.seen(FrameType.OPEN)) == 2
    assert client.statistics().resent == 1


def test_a_handle_that_stays_unknown_is_an_error(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: infer.refuse(UnknownHandle(infer.head.handle))
    with pytest.raises(UnknownHandle):
        client.infer("double", X)
    assert len(daemon.requests) == 2


def test_a_model_that_changed_is_checked_again_after_it_was_opened_again(client: Client, daemon: FakeDaemon) -> None:
    client.infer("double", X)
    daemon.models["double"] = daemon.models["scalar"]
    daemon.on_infer = lambda infer: infer.refuse(UnknownHandle(infer.head.handle))
    with pytest.raises(TensordError, match="must be int64"):
        client.infer("double", X)


# ── time ────────────────────────────────────────────────────────────────────────────────────────


def test_the_deadline_on_the_wire_is_absolute(client: Client, daemon: FakeDaemon) -> None:
    before_ns = time.monotonic_ns()
    client.infer("double", X, timeout=5.0)
    after_ns = time.monotonic_ns()
    assert before_ns + 5 * 10**9 <= daemon.requests[0].head.deadline_ns <= after_ns + 5 * 10**9


def test_a_daemon_that_never_answers_costs_the_timeout_and_a_cancel(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with pytest.raises(DeadlineExceeded) as caught:
        client.infer("double", X, timeout=0.05)
    assert caught.value.stage == "client"
    assert caught.value.late_ms >= 250
    assert daemon.wait_seen(FrameType.CANCEL) == [daemon.requests[0].request_id]


def test_a_late_answer_is_dropped_and_the_next_one_is_right(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with pytest.raises(DeadlineExceeded):
        client.infer("double", X, timeout=0.01)
    daemon.requests[0].answer()
    daemon.on_infer = Infer.answer
    assert client.infer("double", X + 1).tolist() == (2 * X + 2).tolist()
    assert client.statistics().in_flight == 0
    assert client.statistics().unknown_replies == 0


def test_the_daemons_own_deadline_error_has_its_stage(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: infer.refuse(DeadlineExceeded("queue", 0.5))
    with pytest.raises(DeadlineExceeded, match="queue"):
        client.infer("double", X, timeout=0.05)


def test_a_daemon_that_does_not_welcome_costs_the_timeout(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_frame[FrameType.HELLO] = lambda connection, request_id, meta: None
    with pytest.raises(DeadlineExceeded):
        client.infer("double", X, timeout=0.05)


def test_a_daemon_that_stops_reading_costs_the_timeout(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()
    accepted: list[socket.socket] = []

    def welcome_and_stall() -> None:
        connection, _ = listening.accept()
        accepted.append(connection)
        connection.recv(64)
        connection.sendall(Welcome(1, 1, 1_024, 1 << 26, 1 << 26).encode(1))

    thread = threading.Thread(target=welcome_and_stall)
    thread.start()
    try:
        with Client(tmp_path / "s") as client, pytest.raises(DeadlineExceeded):
            client.ping(timeout=0.05)
    finally:
        thread.join()
        accepted[0].close()
        listening.close()


class InterruptedPoll:
    """A poll object in whose first wait Ctrl-C is pressed."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._pressed = False

    def poll(self, timeout_ms: float) -> Any:
        if not self._pressed:
            self._pressed = True
            raise KeyboardInterrupt
        return self._real.poll(timeout_ms)


def test_an_interrupt_while_waiting_cancels_and_keeps_the_connection(client: Client, daemon: FakeDaemon) -> None:
    client.ping()
    connection: Any = client._connection
    connection._readable = InterruptedPoll(connection._readable)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", X)
    assert client.infer("double", X).tolist() == DOUBLED
    assert len(daemon.connections) == 1
    assert len(daemon.seen(FrameType.CANCEL)) == 0  # interrupted in OPEN, which cannot be cancelled

    connection._readable = InterruptedPoll(connection._readable)
    daemon.on_infer = Script(ignore, Infer.answer)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", X)
    assert daemon.wait_seen(FrameType.CANCEL) == [daemon.requests[-1].request_id]
    assert client.infer("double", X).tolist() == DOUBLED
    assert len(daemon.connections) == 1


def test_a_signal_at_any_moment_leaves_the_client_usable(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: os.kill(os.getpid(), signal.SIGINT), Infer.answer)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", X)
    assert client.infer("double", X).tolist() == DOUBLED
    assert len(daemon.requests) == 2


# ── lost connections ────────────────────────────────────────────────────────────────────────────


def test_an_idempotent_request_is_sent_again(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(Infer.drop, Infer.answer)
    assert client.infer("double", X).tolist() == DOUBLED
    statistics = client.statistics()
    assert (statistics.resent, statistics.reconnects) == (1, 1)
    assert len(daemon.seen(FrameType.OPEN)) == 2


def test_one_that_is_not_idempotent_is_lost(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(Infer.drop, Infer.answer)
    with pytest.raises(ConnectionLost, match="may or may not have run"):
        client.infer("once", X)
    assert len(daemon.requests) == 1
    assert client.infer("once", X).tolist() == DOUBLED


def test_a_request_that_ends_every_connection_is_given_up(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Infer.drop
    with pytest.raises(ConnectionLost):
        client.infer("double", X)
    assert len(daemon.requests) == 4


def test_a_connection_lost_while_idle_is_not_noticed_by_the_user(client: Client, daemon: FakeDaemon) -> None:
    client.infer("once", X)
    daemon.connections[0].close()
    assert client.infer("once", X).tolist() == DOUBLED
    assert len(daemon.connections) == 2


def test_what_was_answered_before_the_end_is_read(client: Client, daemon: FakeDaemon) -> None:
    dropped = threading.Semaphore(0)

    def answer_and_drop(infer: Infer) -> None:
        infer.answer()
        infer.drop()
        dropped.release()

    daemon.on_infer = answer_and_drop
    for _ in range(3):
        assert client.infer("once", X).tolist() == DOUBLED
        assert dropped.acquire(timeout=30)  # a request that is sent before may have run, and is lost for good
    assert client.statistics().errors == 0


def test_all_threads_are_sent_again_when_the_connection_ends(client: Client, daemon: FakeDaemon) -> None:
    lock = threading.Lock()

    def drop_once_eight_wait(infer: Infer) -> None:
        with lock:
            if len(daemon.requests) == 8:
                infer.drop()
            elif len(daemon.requests) > 8:
                infer.answer()

    daemon.on_infer = drop_once_eight_wait
    answers: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda step: answers.append(client.infer("double", X + step)[0, 0] == 2 * step), args=(n,)
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8
    assert client.statistics().resent == 8
    assert client.statistics().reconnects == 1


def test_a_restarted_daemon_is_waited_for(client: Client, daemon: FakeDaemon) -> None:
    client.infer("double", X)
    daemon.stop()
    answers: list[object] = []
    patient = threading.Thread(target=lambda: answers.append(client.infer("double", X).tolist()))
    patient.start()
    daemon.start()
    patient.join()
    assert answers == [DOUBLED]


def test_a_daemon_that_stays_away_is_not_found(daemon: FakeDaemon) -> None:
    with Client(daemon.path, reconnect_timeout=0.05) as client:
        client.infer("double", X)
        daemon.stop()
        with pytest.raises(DaemonNotFound, match="tensord serve"):
            client.infer("double", X)


def test_after_close_from_the_daemon_answers_still_come_and_new_requests_go_elsewhere(
    client: Client, daemon: FakeDaemon
) -> None:
    def say_close(infer: Infer) -> None:
        infer.connection.send(frame(FrameType.CLOSE, 0))

    daemon.on_infer = Script(say_close, Infer.answer)
    held = client.submit("once", X)
    daemon.wait_seen(FrameType.INFER)
    other = client.infer("once", X + 1)
    while len(daemon.connections) < 2:  # CLOSE may still have been under way
        other = client.infer("once", X + 1)
    daemon.requests[0].answer()
    assert held.result().tolist() == DOUBLED
    assert other.tolist() == (2 * X + 2).tolist()
    assert daemon.requests[-1].connection is daemon.connections[1]


def test_too_many_connections_is_tried_again_and_then_said(daemon: FakeDaemon) -> None:
    def refuse(connection: FakeConnection, request_id: int, meta: bytes) -> None:
        connection.send(encode_error(0, TooManyConnections(5)))
        connection.drop()

    daemon.on_frame[FrameType.HELLO] = refuse
    with (
        Client(daemon.path, reconnect_timeout=0.05) as client,
        pytest.raises(TooManyConnections, match="5 connections"),
    ):
        client.ping()
    assert len(daemon.connections) > 1


def test_an_unsupported_version_is_said_at_once(client: Client, daemon: FakeDaemon) -> None:
    def refuse(connection: FakeConnection, request_id: int, meta: bytes) -> None:
        connection.send(encode_error(request_id, UnsupportedVersion(1, 1, 2)))

    daemon.on_frame[FrameType.HELLO] = refuse
    with pytest.raises(UnsupportedVersion):
        client.ping()
    assert len(daemon.connections) == 1


def test_a_welcome_of_another_version_is_unsupported(client: Client, daemon: FakeDaemon) -> None:
    daemon.welcome = Welcome(2, 42, 8, 1 << 20, 1 << 26)
    with pytest.raises(UnsupportedVersion):
        client.ping()


def test_shutting_down_as_the_last_word_counts_as_a_lost_connection(client: Client, daemon: FakeDaemon) -> None:
    def shut(infer: Infer) -> None:
        infer.connection.send(encode_error(0, ShuttingDown()))
        infer.drop()

    daemon.on_infer = Script(shut, Infer.answer)
    assert client.infer("double", X).tolist() == DOUBLED


def test_the_daemons_last_word_is_what_the_caller_hears(client: Client, daemon: FakeDaemon) -> None:
    def end(infer: Infer) -> None:
        infer.connection.send(encode_error(0, WorkerLost("double")))
        infer.drop()

    daemon.on_infer = end
    with pytest.raises(WorkerLost):
        client.infer("double", X)


# ── nonsense ────────────────────────────────────────────────────────────────────────────────────


def test_unknown_ids_are_ignored_and_counted(client: Client, daemon: FakeDaemon) -> None:
    def answer_twice(infer: Infer) -> None:
        infer.connection.send(frame(FrameType.PONG, 987_654))
        header = TensorHeader(0, DType.FLOAT32, (1,), 4).encode()
        infer.connection.send(encode_result(ResultHead(1, 1, 0, 0, 1), 987_655, header, 4) + b"1234")
        infer.answer()
        infer.answer()

    daemon.on_infer = answer_twice
    assert client.infer("double", X).tolist() == DOUBLED
    assert client.infer("double", X).tolist() == DOUBLED
    client.ping()
    assert client.statistics().unknown_replies == 6


def test_unknown_replies_are_remembered_over_reconnects(client: Client, daemon: FakeDaemon) -> None:
    def answer_twice_and_drop(infer: Infer) -> None:
        infer.connection.send(frame(FrameType.PONG, 987_654))
        infer.drop()

    daemon.on_infer = Script(answer_twice_and_drop, Infer.answer)
    client.infer("double", X)
    assert client.statistics().unknown_replies == 1


GARBAGE = {
    "no magic": lambda request_id: b"\x00" * 64,
    "too much meta": lambda request_id: HEADER.pack(MAGIC, FrameType.RESULT, 0, 2**31, request_id, 0),
    "another answer": lambda request_id: frame(FrameType.PONG, request_id),
    "a cut result": lambda request_id: frame(FrameType.RESULT, request_id, b"\x00" * 7),
    "no outputs": lambda request_id: encode_result(ResultHead(1, 1, 0, 0, 0), request_id, b"", 0),
    "less than promised": lambda request_id: encode_result(
        ResultHead(1, 2, 0, 0, 1), request_id, TensorHeader(0, DType.FLOAT32, (2, 4), 32).encode(), 0
    ),
    "more than promised": lambda request_id: (
        encode_result(ResultHead(1, 2, 0, 0, 1), request_id, TensorHeader(0, DType.FLOAT32, (2, 4), 32).encode(), 40)
        + bytes(40)
    ),
    "a huge shape": lambda request_id: (
        encode_result(
            ResultHead(1, 2, 0, 0, 1), request_id, TensorHeader(0, DType.FLOAT32, (2**39, 4), 32).encode(), 32
        )
        + bytes(32)
    ),
    "a reserved flag": lambda request_id: frame(FrameType.RESULT, request_id, flags=1),
    "an error without form": lambda request_id: frame(FrameType.ERROR, request_id, b"\xff" * 20),
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_nonsense_ends_the_connection_and_the_request_is_sent_again(
    client: Client, daemon: FakeDaemon, kind: str
) -> None:
    def talk_nonsense(infer: Infer) -> None:
        infer.connection.send(GARBAGE[kind](infer.request_id))

    daemon.on_infer = Script(talk_nonsense, Infer.answer)
    assert client.infer("double", X).tolist() == DOUBLED
    assert len(daemon.connections) == 2


def test_nonsense_is_told_to_who_cannot_be_sent_again(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = lambda infer: infer.connection.send(b"\x00" * 64)
    with pytest.raises(ConnectionLost, match="cannot be understood: malformed frame: magic"):
        client.infer("once", X)


def test_an_output_of_another_shape_than_specified_is_taken_as_it_is(client: Client, daemon: FakeDaemon) -> None:
    def answer_one_row(infer: Infer) -> None:
        header = TensorHeader(0, DType.FLOAT32, (1, 3), 12).encode()
        payload = np.array([1, 2, 3], np.float32).tobytes()
        infer.connection.send(encode_result(ResultHead(1, 1, 0, 0, 1), infer.request_id, header, 12) + payload)

    daemon.on_infer = answer_one_row
    assert client.infer("double", X).tolist() == [[1, 2, 3]]


def test_a_connection_that_ends_inside_an_answer_is_lost(client: Client, daemon: FakeDaemon) -> None:
    def half(infer: Infer) -> None:
        header = TensorHeader(0, DType.FLOAT32, (2, 4), 32).encode()
        infer.connection.send(encode_result(ResultHead(1, 2, 0, 0, 1), infer.request_id, header, 32) + b"x" * 16)
        infer.drop()

    daemon.on_infer = Script(half, Infer.answer)
    assert client.infer("double", X).tolist() == DOUBLED


def test_model_errors_and_cancellations_by_the_daemon_are_raised(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(
        lambda infer: infer.refuse(ModelFailed("double", "boom")), lambda infer: infer.refuse(Cancelled())
    )
    with pytest.raises(ModelFailed, match="boom"):
        client.infer("double", X)
    with pytest.raises(Cancelled):
        client.infer("double", X)
