"""Arenas, which clients write to as they like: no request reaches outside of them, and no two share a range."""

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tensord.ipc.errors import OutputTooSmall, OutsideArena, SlotInUse, TensordError, UnknownArena
from tensord.ipc.wire import FrameType, encode_arena, frame

if TYPE_CHECKING:
    from tests.process.conftest import Arena, Connect, Daemon, RawClient, StartBystander, StartDaemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ARENA_BYTES = 4096
HALF = ARENA_BYTES // 2
ID = 7


def from_arena(client: "RawClient", arena: int, offset: int, **fields: Any) -> bytes:
    """`echo` with its input in an arena and its output inline."""
    return client.infer(client.open("echo").handle, [client.placed(0, X, arena, offset)], request_id=ID, **fields)


def into_arena(client: "RawClient", arena: int, offset: int, nbytes: int = X.nbytes) -> bytes:
    """`echo` with its input inline and its output in an arena."""
    output = client.place(0, nbytes, arena, offset)
    return client.infer(client.open("echo").handle, [client.inline(0, X)], X.tobytes(), outputs=[output], request_id=ID)


def both(client: "RawClient", arena: "Arena", source: int, target: int, nbytes: int = X.nbytes) -> bytes:
    """`echo` with input and output in an arena."""
    return from_arena(client, arena.number, source, outputs=[client.place(0, nbytes, arena.number, target)])


def assert_refused(client: "RawClient", request: bytes, expected: TensordError) -> None:
    """The one error, and then a good request."""
    answer = client.ask(request)
    error = answer.error()
    assert (answer.request_id, type(error), error.data()) == (ID, type(expected), expected.data())
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    client.ping()


@pytest.mark.parametrize(
    "offset",
    [1, 63, 4000, ARENA_BYTES, ARENA_BYTES + 64, 2**63, 2**64 - 64, 2**64 - 32, 2**64 - 1],
)
def test_tensor_outside_its_arena_is_refused(unharmed: "Daemon", connect: "Connect", offset: int) -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES)
    assert_refused(client, from_arena(client, arena.number, offset), OutsideArena("x", offset, 32, ARENA_BYTES))
    assert_refused(client, into_arena(client, arena.number, offset), OutsideArena("y", offset, 32, ARENA_BYTES))


def test_output_range_beyond_the_arena_is_refused(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES)
    for nbytes in (ARENA_BYTES + 1, 2**64 - 64, 2**64 - 1):
        request = into_arena(client, arena.number, 0, nbytes)
        assert_refused(client, request, OutsideArena("y", 0, nbytes, ARENA_BYTES))


def test_last_bytes_of_an_arena_can_be_used(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES - 32)
    arena.write(ARENA_BYTES - 64, X)
    assert client.ask(from_arena(client, arena.number, ARENA_BYTES - 64)).payload == X.tobytes()


def test_arena_of_another_connection_is_unknown(unharmed: "Daemon", connect: "Connect") -> None:
    owner, thief = connect(), connect()
    arena = owner.attach(ARENA_BYTES)
    arena.write(0, X)
    assert_refused(thief, from_arena(thief, arena.number, 0), UnknownArena(arena.number))
    assert_refused(thief, into_arena(thief, arena.number, 0), UnknownArena(arena.number))
    assert_refused(thief, encode_arena(FrameType.DETACH, ID, arena.number, 0), UnknownArena(arena.number))
    assert owner.ask(from_arena(owner, arena.number, 0)).payload == X.tobytes()


@pytest.mark.parametrize("target", [0, 64, 128, 192])
def test_input_and_output_may_not_overlap(unharmed: "Daemon", connect: "Connect", target: int) -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES)
    large = np.zeros((16, 4), np.float32)  # 256 bytes
    handle = client.open("echo").handle
    output = client.place(0, large.nbytes, arena.number, target)
    request = client.infer(handle, [client.placed(0, large, arena.number, 0)], outputs=[output], request_id=ID)
    assert_refused(client, request, SlotInUse(target, large.nbytes))
    assert client.ask(both(client, arena, 0, HALF)).frame_type == FrameType.RESULT  # nothing stayed reserved


def test_range_in_flight_cannot_be_used_twice(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    arena = client.attach(ARENA_BYTES)
    number = np.array([gate])
    arena.write(0, number)
    handle = client.open("gate").handle
    for model in ("echo", "gate"):
        client.open(model)
    source, target = client.placed(0, number, arena.number, 0), client.place(0, 8, arena.number, HALF)
    client.send(client.infer(handle, [source], outputs=[target], request_id=1))
    unharmed.wait_entered(gate)
    in_use = {from_arena(client, arena.number, 0): 0, into_arena(client, arena.number, HALF): HALF}
    in_use[both(client, arena, 64, HALF)] = HALF
    for request, offset in in_use.items():
        answer = client.ask(request)
        error = answer.error()
        assert (answer.request_id, type(error)) == (ID, SlotInUse)
        assert error.data() == {"offset": offset, "nbytes": X.nbytes}
    client.send(frame(FrameType.CANCEL, 1))  # it still runs: its ranges stay taken until its answer
    assert isinstance(client.ask(from_arena(client, arena.number, 0)).error(), SlotInUse)
    unharmed.open_gate(gate)
    assert client.receive().request_id == 1
    arena.write(0, X)
    assert client.ask(both(client, arena, 0, HALF)).frame_type == FrameType.RESULT
    np.testing.assert_array_equal(arena.read(HALF, X), X)


def test_output_that_does_not_fit_says_what_it_needs(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES)
    for nbytes in (0, 1, X.nbytes - 1):
        assert_refused(client, into_arena(client, arena.number, 0, nbytes), OutputTooSmall("y", X.nbytes, nbytes))
    assert arena.memory[:64] == bytes(64)
    answer = client.ask(into_arena(client, arena.number, 0, X.nbytes + 100))  # room to spare is no error
    assert answer.result()[1][0].nbytes == X.nbytes
    assert arena.memory[X.nbytes : X.nbytes + 100] == bytes(100)


def test_detached_arena_is_unknown_at_once_and_its_memory_goes(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    arena = client.attach(ARENA_BYTES)
    client.send(encode_arena(FrameType.DETACH, 1, arena.number, 0))
    assert_refused(client, from_arena(client, arena.number, 0), UnknownArena(arena.number))
    assert_refused(client, encode_arena(FrameType.DETACH, ID, arena.number, 0), UnknownArena(arena.number))
    unharmed.wait_status(lambda now: now.arenas == 0)


def test_arena_detached_in_flight_goes_with_the_answer(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    client, gate = connect(), next(gates)
    arena = client.attach(ARENA_BYTES)
    number = np.array([gate])
    arena.write(0, number)
    handle = client.open("gate").handle
    client.send(client.infer(handle, [client.placed(0, number, arena.number, 0)], request_id=1))
    unharmed.wait_entered(gate)
    client.send(encode_arena(FrameType.DETACH, 2, arena.number, 0))
    client.ping()
    assert unharmed.status().arenas == 1
    unharmed.open_gate(gate)
    assert client.receive().payload == number.tobytes()
    unharmed.wait_status(lambda now: now.arenas == 0)


def test_arenas_come_and_go_while_the_worker_is_busy(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    """The worker hears of each; its socket is full long before it looks."""
    client, gate = connect(), next(gates)
    client.send(client.request("gate", np.array([gate]), request_id=1))
    unharmed.wait_entered(gate)
    for _ in range(600):
        arena = client.attach(ARENA_BYTES)
        client.send(encode_arena(FrameType.DETACH, 2, arena.number, 0))
    last = client.attach(ARENA_BYTES)
    last.write(0, X)
    client.open("echo")
    client.send(both(client, last, 0, HALF))
    unharmed.open_gate(gate)
    assert {client.receive().request_id, client.receive().request_id} == {1, ID}
    np.testing.assert_array_equal(last.read(HALF, X), X)


def test_running_out_of_descriptors_refuses_arenas_and_harms_nobody(
    own_daemon: "StartDaemon", start_bystander: "StartBystander", connect: "Connect"
) -> None:
    daemon = own_daemon(descriptors_max=128)
    start_bystander(daemon)
    pids = daemon.pids
    hoarders = [connect(daemon) for _ in range(20)]
    asked = 0
    for hoarder in hoarders:
        hoarder.send(*[encode_arena(FrameType.ATTACH, request_id, 0, 64) for request_id in range(8)])
        asked += 8
    kinds = [hoarder.receive().frame_type for hoarder in hoarders for _ in range(8)]
    attached = kinds.count(FrameType.ATTACHED)
    assert attached + kinds.count(FrameType.ERROR) == asked
    assert 0 < attached < asked
    for hoarder in hoarders:
        np.testing.assert_array_equal(hoarder.call("echo", X)[0], X)
        hoarder.close()
    daemon.wait_status(lambda now: now.arenas == 0)
    client = connect(daemon)
    arena = client.attach(ARENA_BYTES)
    arena.write(0, X)
    assert client.ask(both(client, arena, 0, HALF)).frame_type == FrameType.RESULT
    assert daemon.pids == pids
