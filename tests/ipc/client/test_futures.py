"""Futures of the blocking client."""

import concurrent.futures
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensord import Client
from tensord.ipc.client.futures import InferFuture
from tensord.ipc.errors import (
    ConnectionLost,
    DaemonNotFound,
    DeadlineExceeded,
    ModelFailed,
    UnknownHandle,
    WrongShape,
)
from tensord.ipc.wire import FrameType

from .fake_daemon import FakeDaemon, Infer, Script, ignore

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


def test_many_futures_share_one_connection(client: Client, daemon: FakeDaemon) -> None:
    futures = [client.submit("double", X + step) for step in range(300)]
    assert [future.result()[0, 0] for future in futures] == [2 * step for step in range(300)]
    assert len(daemon.connections) == 1
    assert client.statistics().answers == 300


def test_they_are_futures_of_the_standard_library(client: Client) -> None:
    futures = [client.submit("double", X + step) for step in range(5)]
    assert isinstance(futures[0], concurrent.futures.Future)
    done, pending = concurrent.futures.wait(futures)
    assert (len(done), len(pending)) == (5, 0)


def test_errors_of_the_inputs_are_raised_by_submit_and_those_of_the_answer_by_result(
    client: Client, daemon: FakeDaemon
) -> None:
    with pytest.raises(WrongShape):
        client.submit("double", X[0])
    daemon.on_infer = lambda infer: infer.refuse(ModelFailed("double", "boom"))
    future = client.submit("double", X)
    with pytest.raises(ModelFailed, match="boom"):
        future.result()
    assert client.statistics().errors == 2


def test_cancelling_tells_the_daemon(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    future = client.submit("double", X)
    assert future.cancel()
    assert future.cancelled()
    assert daemon.wait_seen(FrameType.CANCEL) == [daemon.requests[0].request_id]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_the_answer_to_a_cancelled_request_is_dropped(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    future = client.submit("double", X)
    daemon.wait_seen(FrameType.INFER)
    future.cancel()
    daemon.requests[0].answer()
    daemon.on_infer = Infer.answer
    assert client.infer("double", X).tolist() == DOUBLED
    assert future.cancelled()
    assert client.statistics().unknown_replies == 0


def test_an_answered_future_cannot_be_cancelled(client: Client, daemon: FakeDaemon) -> None:
    future = client.submit("double", X)
    future.result()
    assert not future.cancel()
    client.ping()
    assert daemon.seen(FrameType.CANCEL) == []


def test_a_cancelled_copy_gives_its_slot_back_with_the_answer(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    future = client.submit("image", np.zeros((8, 3, 64, 64), np.float32))
    daemon.wait_seen(FrameType.INFER)
    future.cancel()
    assert client.statistics().slots_leased == 1
    daemon.requests[0].answer()
    client.ping()
    assert client.statistics().slots_leased == 0


def test_a_future_without_an_answer_ends_after_its_deadline(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with pytest.raises(DeadlineExceeded):
        client.submit("double", X, timeout=0.01).result()
    assert daemon.wait_seen(FrameType.CANCEL) == [daemon.requests[0].request_id]


def test_futures_are_sent_again_when_the_connection_ends(client: Client, daemon: FakeDaemon) -> None:
    def drop_at_ten(infer: Infer) -> None:
        if len(daemon.requests) == 10:
            infer.drop()
        elif len(daemon.requests) > 10:
            infer.answer()

    daemon.on_infer = drop_at_ten
    futures = [client.submit("double", X + step) for step in range(10)]
    assert [future.result()[0, 0] for future in futures] == [2 * step for step in range(10)]
    assert client.statistics().reconnects == 1


def test_futures_of_models_that_are_not_idempotent_are_lost(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Infer.drop
    future = client.submit("once", X)
    assert isinstance(future.exception(), ConnectionLost)
    assert len(daemon.requests) == 1


def test_futures_end_when_no_daemon_comes_back(daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with Client(daemon.path, reconnect_timeout=0.02) as client:
        future = client.submit("double", X)
        daemon.stop()
        assert isinstance(future.exception(), DaemonNotFound)


def test_a_future_opens_a_model_again(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = Script(lambda infer: infer.refuse(UnknownHandle(1)), Infer.answer)
    assert client.submit("double", X).result().tolist() == DOUBLED


def test_a_callback_may_use_the_client(client: Client) -> None:
    results: list[object] = []
    done = threading.Event()

    def again(future: "concurrent.futures.Future[object]") -> None:
        results.append(client.infer("double", X).tolist())
        results.append(client.ping())
        done.set()

    client.submit("double", X).add_done_callback(again)
    assert done.wait(20)
    assert results[0] == DOUBLED


def test_blocking_and_submitting_threads_do_not_disturb_each_other(client: Client) -> None:
    wrong: list[object] = []

    def block() -> None:
        wrong.extend(step for step in range(150) if client.infer("double", X + step)[0, 0] != 2 * step)

    def submit() -> None:
        futures = [client.submit("double", X + step) for step in range(150)]
        wrong.extend(step for step, future in enumerate(futures) if future.result()[0, 0] != 2 * step)

    threads = [threading.Thread(target=target) for target in (block, submit, block, submit)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_thread_ends_with_the_client(daemon: FakeDaemon) -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "tensord-futures"]

    with Client(daemon.path) as client:
        client.infer("double", X)
        assert names() == []
        client.submit("double", X).result()
        assert names() == ["tensord-futures"]
    assert names() == []


def test_a_cancelled_future_stays_cancelled_when_its_request_was_sent_again(client: Client, daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    future = client.submit("double", X)
    daemon.wait_seen(FrameType.INFER)
    assert isinstance(future, InferFuture)
    future.cancel()
    daemon.connections[0].drop()
    daemon.on_infer = Infer.answer
    client.infer("double", X)
    assert future.cancelled()
    assert len(daemon.requests) == 2
