"""Each limit that clients can reach: who reaches it is told so, and it holds for nobody else."""

import time
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    DeadlineExceeded,
    DuplicateRequestId,
    IngestFull,
    PayloadTooLarge,
    QueueFull,
    TooManyArenas,
    TooManyConnections,
    TooManyInFlight,
)
from tensord.ipc.limits import ARENAS_PER_CONNECTION_MAX
from tensord.ipc.wire import FrameType, encode_arena

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient, StartBystander, StartDaemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def image(rows: int) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """An input for the model `large`, no two rows alike."""
    return np.random.default_rng(rows).integers(0, 256, (rows, 65536), np.uint8)


def assert_in_step(client: "RawClient") -> None:
    """A good request is answered well, and nothing else is on its way."""
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    client.ping()


# ── requests ────────────────────────────────────────────────────────────────────────────────────


def test_request_id_in_flight_cannot_be_used_again(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    client.open("echo")
    client.send(client.request("gate", np.array([gate]), request_id=5))
    answer = client.ask(client.request("echo", X, request_id=5))
    error = answer.error()
    assert (answer.request_id, type(error), error.data()) == (0, DuplicateRequestId, {"request_id": 5})
    unharmed.open_gate(gate)
    answer = client.receive()
    assert (answer.request_id, answer.payload) == (5, np.array([gate]).tobytes())
    assert client.ask(client.request("echo", X, request_id=5)).payload == X.tobytes()


def test_deadline_passes_in_the_queue(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    client.open("echo")
    with unharmed.knobs(pipeline_depth=1):
        client.send(client.request("gate", np.array([gate]), request_id=1))
        unharmed.wait_entered(gate)
        deadline_ns = time.monotonic_ns() + 50_000_000
        answer = client.ask(client.request("echo", X, request_id=2, deadline_ns=deadline_ns))
        error = answer.error()
        assert answer.request_id == 2
        assert isinstance(error, DeadlineExceeded)
        assert error.stage == "queue"
        unharmed.open_gate(gate)
        assert client.receive().request_id == 1
    assert_in_step(client)


def test_in_flight_max_bounds_each_connection(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    for model in ("gate", "echo"):
        client.open(model)
    with unharmed.knobs(in_flight_max=3):
        for request_id, number in enumerate((gate, 0, 0), 1):
            client.send(client.request("gate", np.array([number]), request_id=request_id))
        answer = client.ask(client.request("echo", X, request_id=9))
        error = answer.error()
        assert (answer.request_id, type(error), error.data()) == (9, TooManyInFlight, {"limit": 3})
        unharmed.open_gate(gate)
        assert sorted(client.receive().request_id for _ in range(3)) == [1, 2, 3]
        assert_in_step(client)


def test_queue_max_bounds_a_model(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    with unharmed.knobs(pipeline_depth=1, gate__queue_max=2, gate__tenant_queue_percent=100):
        client.send(client.request("gate", np.array([gate]), request_id=1))
        unharmed.wait_entered(gate)
        for request_id in (2, 3):
            client.send(client.request("gate", np.array([0]), request_id=request_id))
        answer = client.ask(client.request("gate", np.array([0]), request_id=4))
        error = answer.error()
        assert (answer.request_id, type(error)) == (4, QueueFull)
        assert error.data() == {"model": "gate", "limit": 2}
        assert error.retry_after_ms
        unharmed.open_gate(gate)
        assert sorted(client.receive().request_id for _ in range(3)) == [1, 2, 3]
    assert_in_step(client)


# ── inline bytes ────────────────────────────────────────────────────────────────────────────────


def test_inline_bytes_max_bounds_the_payload(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    assert client.call("large", image(16))[0].tobytes() == image(16).tobytes()  # 1 MiB, the limit itself
    with unharmed.knobs(inline_bytes_max=65536):
        error = client.ask(client.request("large", image(2))).error()
        assert isinstance(error, PayloadTooLarge)
        assert error.data() == {"payload_bytes": 131072, "payload_bytes_max": 65536}
        assert_in_step(client)


def test_inline_bytes_max_bounds_the_reply_too(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arena = client.attach(2 * 2**20)
    arena.write(0, image(17))
    handle = client.open("large").handle
    error = client.ask(client.infer(handle, [client.placed(0, image(17), arena.number, 0)])).error()
    assert isinstance(error, PayloadTooLarge)
    assert error.data() == {"payload_bytes": 17 * 65536, "payload_bytes_max": 2**20}
    assert_in_step(client)


def test_one_request_may_be_larger_than_in_flight_bytes_max(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    for model in ("large", "echo"):
        client.open(model)
    with unharmed.knobs(in_flight_bytes_max=4096):
        for _ in range(3):
            client.send(client.request("large", image(8), request_id=1), client.request("echo", X, request_id=2))
            answers = {answer.request_id: answer for answer in (client.receive(), client.receive())}
            assert answers[1].payload == image(8).tobytes()
            assert answers[2].payload == X.tobytes()


def test_ingest_full_is_refused_until_there_is_room_again(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect", gates: "count[int]"
) -> None:
    daemon = own_daemon('ingest_bytes = "1MiB"')
    start_bystander(daemon)
    client, gate = connect(daemon), next(gates)
    client.open("large")
    client.send(client.request("gate", np.array([gate]), request_id=1))
    daemon.wait_entered(gate)
    client.send(*[client.request("large", image(3), request_id=request_id) for request_id in (2, 3, 4)])
    answer = client.receive()
    error = answer.error()
    assert (answer.request_id, type(error)) == (4, IngestFull)
    assert error.data() == {"needed_bytes": 2 * 3 * 65536}  # input and output
    assert error.retry_after_ms
    daemon.open_gate(gate)
    answers = {answer.request_id: answer for answer in (client.receive(), client.receive(), client.receive())}
    assert answers[1].payload == np.array([gate]).tobytes()
    assert answers[2].payload == answers[3].payload == image(3).tobytes()
    # Half a payload holds a lease; the end of its connection gives it back, more often than there is room for.
    for _ in range(12):
        half = connect(daemon)
        half.send(half.request("large", image(3))[:100_000])
        half.close()
        assert client.call("large", image(3))[0].tobytes() == image(3).tobytes()


def test_promised_payloads_leave_half_of_the_arena_to_whole_requests(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect"
) -> None:
    daemon = own_daemon('ingest_bytes = "1MiB"')
    start_bystander(daemon)
    payload_bytes = image(3).nbytes
    promising = [connect(daemon) for _ in range(4)]
    for client in promising:
        client.send(client.request("large", image(3), request_id=5)[: -payload_bytes + 16])
    for client in promising[2:]:  # two promises are less than half a MiB
        answer = client.receive()
        assert (answer.request_id, type(answer.error())) == (5, IngestFull)
    whole = connect(daemon)
    assert whole.call("echo", X)[0].tobytes() == X.tobytes()
    for client in promising:
        client.send(image(3).tobytes()[16:])
    for client in promising[:2]:
        assert client.receive().payload == image(3).tobytes()
    for client in promising:
        assert_in_step(client)


def test_deadline_does_not_wait_for_the_rest_of_a_payload(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    whole = client.request("large", image(3), request_id=5, deadline_ns=time.monotonic_ns() + 50_000_000)
    client.send(whole[:-1])
    answer = client.receive()
    error = answer.error()
    assert (answer.request_id, type(error)) == (5, DeadlineExceeded)
    assert error.data()["stage"] == "arrival"
    client.send(whole[-1:])
    assert_in_step(client)


# ── connections and arenas ──────────────────────────────────────────────────────────────────────


def test_connections_max_refuses_one_more(unharmed: "Daemon", connect: "Connect") -> None:
    kept = [connect() for _ in range(3)]
    unharmed.wait_status(lambda now: now.frontend.connections == 4)  # the bystander is one
    with unharmed.knobs(connections_max=4):
        for _ in range(3):
            refused = connect(hello=False)
            (answer,) = refused.expect_end()
            error = answer.error()
            assert (answer.request_id, type(error), error.data()) == (0, TooManyConnections, {"limit": 4})
        for client in kept:
            assert_in_step(client)
        kept.pop().close()
        unharmed.wait_status(lambda now: now.frontend.connections == 3)
        assert_in_step(connect())


def test_connection_has_a_number_of_arenas_at_most(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arenas = [client.attach(4096) for _ in range(ARENAS_PER_CONNECTION_MAX)]
    error = client.ask(encode_arena(FrameType.ATTACH, 9, 0, 4096)).error()
    assert isinstance(error, TooManyArenas)
    assert error.data() == {"limit": ARENAS_PER_CONNECTION_MAX}
    client.send(encode_arena(FrameType.DETACH, 9, arenas[0].number, 0))
    client.attach(4096)
    assert_in_step(client)


def test_arenas_asked_for_at_once_are_counted(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    extra = 5
    asked = ARENAS_PER_CONNECTION_MAX + extra
    client.send(*[encode_arena(FrameType.ATTACH, request_id, 0, 4096) for request_id in range(1, asked + 1)])
    answers = [client.receive() for _ in range(asked)]
    assert sorted(answer.request_id for answer in answers) == list(range(1, asked + 1))
    kinds = [answer.frame_type for answer in answers]
    assert (kinds.count(FrameType.ATTACHED), kinds.count(FrameType.ERROR)) == (ARENAS_PER_CONNECTION_MAX, extra)
    assert_in_step(client)


def test_arenas_bytes_max_bounds_all_arenas_together(unharmed: "Daemon", connect: "Connect") -> None:
    one, other = connect(), connect()
    with unharmed.knobs(arenas_bytes_max=3 * 65536):
        one.attach(65536)
        other.attach(65536)
        error = other.ask(encode_arena(FrameType.ATTACH, 9, 0, 2 * 65536)).error()
        assert isinstance(error, ArenaQuotaExceeded)
        assert error.data() == {"asked_bytes": 4 * 65536, "limit_bytes": 3 * 65536, "knob": "arenas_bytes_max"}
        other.attach(65536)
        one.close()
        unharmed.wait_status(lambda now: now.arena_bytes == 2 * 65536)
        other.attach(65536)
    assert_in_step(other)
