"""What docs/protocol.md promises of descriptors, of the last answers before an end, and of ids that come twice."""

import os
import signal
import socket
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tensord.ipc.errors import DuplicateRequestId, ShuttingDown, WrongTensors
from tensord.ipc.wire import ARENA, HEADER, MAGIC, FrameType, encode_arena, frame

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, StartDaemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

WATCHDOG_S = 30.0


def test_descriptor_comes_with_the_first_byte_of_attached(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    client.send(frame(FrameType.PING, 1), encode_arena(FrameType.ATTACH, 2, 0, 4096))
    client.receive()
    first, fds, *_ = socket.recv_fds(client.socket, 1, 4)
    rest, no_fds, *_ = socket.recv_fds(client.socket, HEADER.size + ARENA.size, 4)
    for fd in fds:
        os.close(fd)
    assert (len(fds), no_fds) == (1, [])
    assert HEADER.unpack((first + rest)[: HEADER.size]) == (MAGIC, FrameType.ATTACHED, 0, ARENA.size, 2, 0)


def test_descriptor_is_lost_to_a_plain_read_and_the_arena_can_be_given_back(
    unharmed: "Daemon", connect: "Connect"
) -> None:
    client = connect()
    client.send(encode_arena(FrameType.ATTACH, 2, 0, 4096))
    attached = client.socket.recv(HEADER.size + ARENA.size, socket.MSG_WAITALL)
    arena, _, _ = ARENA.unpack(attached[HEADER.size :])
    client.send(encode_arena(FrameType.DETACH, 3, arena, 0))
    client.attach(4096)
    client.ping()


def test_broken_request_with_an_id_in_flight_gets_no_answer_with_this_id(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    client, gate = connect(), next(gates)
    client.send(client.request("gate", np.array([gate]), request_id=5))
    answer = client.ask(HEADER.pack(MAGIC, FrameType.INFER, 0, 3, 5, 2), b"abcde")
    assert (answer.request_id, type(answer.error())) == (0, DuplicateRequestId)
    unharmed.open_gate(gate)
    assert client.receive().request_id == 5
    client.ping()


def test_inputs_in_another_order_are_refused(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    a, b = np.ones((1, 3), np.float32), np.ones((1, 2, 2), np.int64)
    headers = [client.inline(1, b), client.inline(0, a)]
    answer = client.ask(client.infer(client.open("pair").handle, headers, b.tobytes() + a.tobytes()))
    assert isinstance(answer.error(), WrongTensors)
    client.ping()


def test_result_that_is_read_after_the_daemon_has_stopped_is_in_the_arena(
    own_daemon: "StartDaemon", connect: "Connect", gates: "count[int]"
) -> None:
    daemon, gate = own_daemon(), next(gates)
    client = connect(daemon)
    arena, x = client.attach(4096), np.array([gate])
    arena.write(0, x)
    placed = [client.placed(0, x, arena.number, 0)]
    ranges = [client.place(0, x.nbytes, arena.number, 64)]
    client.send(client.infer(client.open("gate").handle, placed, outputs=ranges, request_id=5))
    daemon.wait_entered(gate)
    os.kill(daemon.pids[0] or 0, signal.SIGTERM)
    assert client.receive().frame_type == FrameType.CLOSE
    refused = client.ask(client.infer(client.open("gate").handle, placed, request_id=6))
    assert (refused.request_id, type(refused.error())) == (6, ShuttingDown)
    daemon.open_gate(gate)
    daemon._process.wait(WATCHDOG_S)
    (answer,) = client.expect_end()
    assert (answer.frame_type, answer.request_id) == (FrameType.RESULT, 5)
    np.testing.assert_array_equal(arena.read(64, x), x)
