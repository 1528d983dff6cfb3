from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from tensord.daemon.bench.connection import TENANT, LoadConnection
from tensord.daemon.bench.inputs import random_inputs
from tensord.ipc.client.arrays import Array
from tensord.ipc.errors import ArenaQuotaExceeded, ConnectionLost, DaemonNotFound, UnknownModel
from tensord.ipc.tensors import ModelSpec
from tensord.ipc.wire import FrameType

from ...ipc.client.fake_daemon import WATCHDOG_S, FakeDaemon


class Connect(Protocol):
    """Opens a connection for a test."""

    def __call__(self, model: str, rows: int = 1, arena_bytes: int = 0) -> LoadConnection: ...


@pytest.fixture
def connect(daemon: FakeDaemon) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(model: str, rows: int = 1, arena_bytes: int = 0) -> LoadConnection:
            connection = LoadConnection(str(daemon.path), model, lambda spec: random_inputs(spec, rows, 1), arena_bytes)
            stack.callback(connection.close, ConnectionLost("the test is over"))
            return connection

        yield make


def converse(connection: LoadConnection) -> None:
    """Until what was begun is answered."""
    connection.socket.settimeout(WATCHDOG_S)
    assert connection.flush()
    while connection.session.in_flight:
        assert connection.receive() is None


def test_an_open_connection_knows_its_model(daemon: FakeDaemon, connect: Connect) -> None:
    connection = connect("pair", rows=3)
    assert connection.spec == daemon.models["pair"].spec
    assert (connection.plan.rows, connection.plan.input_bytes) == (3, 48)
    assert daemon.connections[0].tenant == TENANT


def test_requests_that_were_begun_are_sent_together_and_answered(daemon: FakeDaemon, connect: Connect) -> None:
    connection = connect("double", rows=2)
    calls = [connection.begin(None, 0) for _ in range(3)]
    for call in calls:
        connection.session.admit(call)
    assert daemon.requests == []
    converse(connection)
    expected = random_inputs(connection.spec, 2, 1)["x"] * 2
    for call in calls:
        assert np.array_equal(call.arrays[0], expected)
    session = connection.session
    assert (session.batch_rows, session.queue_us, session.compute_us) == (2, 7, 11)


def test_a_slot_carries_the_tensors_of_a_request(daemon: FakeDaemon, connect: Connect) -> None:
    connection = connect("double", rows=2, arena_bytes=4_096)
    slot = connection.maybe_lease()
    assert slot is not None
    slot.inputs["x"][:] = 21
    connection.session.admit(connection.begin(slot, 0))
    converse(connection)
    assert np.array_equal(slot.outputs["y"], np.full((2, 4), 42, np.float32))
    assert daemon.requests[0].in_arena


def test_there_is_no_slot_without_an_arena(daemon: FakeDaemon, connect: Connect) -> None:
    assert connect("double").maybe_lease() is None
    assert daemon.seen(FrameType.ATTACH) == []


def test_an_arena_that_is_refused_is_an_error(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.arenas_max = 0
    with pytest.raises(ArenaQuotaExceeded):
        connect("double", arena_bytes=4_096).maybe_lease()


def test_an_end_is_told_with_its_reason(daemon: FakeDaemon, connect: Connect) -> None:
    connection = connect("double")
    connection.socket.settimeout(WATCHDOG_S)
    daemon.connections[0].drop()
    error = connection.receive()
    assert isinstance(error, ConnectionLost)
    assert error.reason == "the daemon closed it"


def test_a_daemon_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotFound):
        LoadConnection(str(tmp_path / "tensord.sock"), "double", lambda spec: random_inputs(spec, 1, 1))


def test_a_connection_that_cannot_be_set_up_is_closed(daemon: FakeDaemon, connect: Connect) -> None:
    with pytest.raises(UnknownModel):
        connect("nope")

    def refuse(_: ModelSpec) -> dict[str, Array]:
        raise ValueError("no inputs for it")

    with pytest.raises(ValueError, match="no inputs for it"):
        LoadConnection(str(daemon.path), "double", refuse)
    for connection in daemon.connections:
        connection.thread.join(WATCHDOG_S)
        assert not connection.thread.is_alive()
