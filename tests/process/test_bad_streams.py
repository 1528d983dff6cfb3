"""Connections that break the stream, stall, flood, hang up or do not read: they suffer, and nobody else does."""

import contextlib
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.ipc.errors import BadFrame, BadRequest, Cancelled, TensordError, UnsupportedVersion
from tensord.ipc.limits import PAYLOAD_BYTES_MAX, REQUEST_META_BYTES_MAX
from tensord.ipc.wire import (
    HEADER,
    HELLO,
    MAGIC,
    FrameType,
    Hello,
    encode_open,
    frame,
)

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
IMAGE = np.random.default_rng(1).integers(0, 256, (1, 65536), np.uint8)
ID = 7


def header(
    frame_type: int = FrameType.PING, *, magic: int = MAGIC, meta_bytes: int = 0, payload_bytes: int = 0
) -> bytes:
    """Any header."""
    return HEADER.pack(magic, frame_type, 0, meta_bytes, ID, payload_bytes)


def assert_in_step(client: "RawClient") -> None:
    """A good request is answered well, and nothing else is on its way."""
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    client.ping()


def assert_ended(client: "RawClient", error: type[TensordError] = BadFrame, reason: str = "") -> None:
    """The connection's error with request id 0, and the end of the stream."""
    *_, last = client.expect_end()
    found = last.error()
    assert (last.request_id, type(found)) == (0, error)
    assert reason in str(found)


# ── out of step ─────────────────────────────────────────────────────────────────────────────────

GARBAGE: Final = {
    "zeros": bytes(1000),
    "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a handshake of TLS": bytes.fromhex("16030100a5010000a10303") + random.Random(0).randbytes(160),
    "noise": random.Random(1).randbytes(100_000),
    "bytes swapped": header(magic=0x4474),
    "meta too long": header(meta_bytes=REQUEST_META_BYTES_MAX + 1),
    "meta much too long": header(meta_bytes=2**32 - 1),
    "payload too long": header(payload_bytes=PAYLOAD_BYTES_MAX + 1),
    "payload much too long": header(payload_bytes=2**64 - 1),
    "one byte too many between two frames": header() + b"\0" + header(),
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("hello", [False, True])
def test_garbage_ends_its_connection(unharmed: "Daemon", connect: "Connect", garbage: str, hello: bool) -> None:
    client = connect(hello=hello)
    client.send(GARBAGE[garbage])
    assert_ended(client)


@pytest.mark.parametrize("frame_type", [each for each in FrameType if each is not FrameType.HELLO])
def test_first_frame_must_be_hello(unharmed: "Daemon", connect: "Connect", frame_type: FrameType) -> None:
    client = connect(hello=False)
    client.send(frame(frame_type, ID, bytes(24)), Hello(1, 1, "").encode(1))
    assert_ended(client, reason="HELLO")


def test_good_requests_before_garbage_are_not_lost_sight_of(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    client.send(client.request("echo", X), b"garbage that is longer than a header")
    assert_ended(client)
    unharmed.wait_status(lambda now: (now.frontend.queued, now.frontend.running) == (0, 0))


# ── the handshake ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("versions", [(0, 0), (2, 2), (2, 65535), (1, 0)])
def test_other_versions_are_refused(unharmed: "Daemon", connect: "Connect", versions: tuple[int, int]) -> None:
    client = connect(hello=False)
    client.send(Hello(*versions, "").encode(ID))
    (answer,) = client.expect_end()
    error = answer.error()
    assert (answer.request_id, type(error)) == (ID, UnsupportedVersion)
    assert error.data() == {"offered_min": versions[0], "offered_max": versions[1], "supported": 1}


def test_a_range_of_versions_is_welcome(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect(hello=False)
    client.send(Hello(0, 65535, "somebody").encode(ID))
    answer = client.receive()
    assert (answer.frame_type, answer.request_id) == (FrameType.WELCOME, ID)
    assert_in_step(client)


@pytest.mark.parametrize(
    "meta",
    [
        HELLO.pack(1, 1, 3, 0) + b"\xff\xfe\xfd",
        HELLO.pack(1, 1, 3, 0) + "é".encode()[:1] * 3,
        HELLO.pack(1, 1, 9, 0) + b"short",
        HELLO.pack(1, 1, 4, 0) + b"longer",
        HELLO.pack(1, 1, 129, 0) + b"t" * 129,
        HELLO.pack(1, 1, 0, 0)[:7],
        b"",
    ],
)
def test_malformed_hello_can_be_said_again(unharmed: "Daemon", connect: "Connect", meta: bytes) -> None:
    client = connect(hello=False)
    answer = client.ask(frame(FrameType.HELLO, ID, meta))
    assert answer.request_id == ID
    assert isinstance(answer.error(), BadRequest)
    client.hello()
    assert_in_step(client)


# ── halves ──────────────────────────────────────────────────────────────────────────────────────

HALVES: Final[dict[str, Callable[["RawClient"], bytes]]] = {
    "half a header": lambda client: client.request("echo", X)[:11],
    "a header alone": lambda client: client.request("echo", X)[: HEADER.size],
    "half a meta": lambda client: client.request("echo", X)[:60],
    "half a payload": lambda client: client.request("large", IMAGE)[:30_000],
    "half a payload to be skipped": lambda _: header(200, payload_bytes=PAYLOAD_BYTES_MAX) + bytes(30_000),
    "a header that promises more than comes": lambda client: client.infer(
        client.open("large").handle, [client.inline(0, IMAGE)], bytes(100), payload_bytes=IMAGE.nbytes
    ),
}


def test_silence_in_the_middle_of_a_frame_ends_the_connection(unharmed: "Daemon", connect: "Connect") -> None:
    idle = connect()
    stalled = [connect() for _ in HALVES]
    with unharmed.knobs(stall_timeout_s=1):
        for client, half in zip(stalled, HALVES.values(), strict=True):
            client.send(half(client))
        for client in stalled:
            assert_ended(client, reason="half a frame, then silence")
        assert_in_step(idle)


def drip(client: "RawClient") -> None:
    """A byte ten times a second, until nobody takes it."""
    with contextlib.suppress(OSError):
        for _ in range(600):
            client.send(b"x")
            time.sleep(0.1)


@pytest.mark.parametrize("half", HALVES)
def test_frame_that_never_ends_is_a_stall_however_steadily_it_comes(
    unharmed: "Daemon", connect: "Connect", half: str
) -> None:
    client = connect()
    whole = HALVES[half](client)
    with unharmed.knobs(stall_timeout_s=1):
        client.send(whole[:-20])
        sender = threading.Thread(target=drip, args=(client,))
        sender.start()
        assert_ended(client, reason="half a frame, then silence")
        client.close()
        sender.join()


@pytest.mark.parametrize("half", HALVES)
def test_end_in_the_middle_of_a_frame_leaves_nothing(unharmed: "Daemon", connect: "Connect", half: str) -> None:
    leases_before = unharmed.status().frontend.ingest_used_bytes
    for _ in range(40):
        client = connect()
        client.send(HALVES[half](client))
        client.close()
    unharmed.wait_status(lambda now: now.frontend.connections == 1)  # the bystander
    chunks = 6 * 2**20  # a slab keeps two chunks of 2 MiB; forty leases of `large` would need 5 MiB more
    assert unharmed.status().frontend.ingest_used_bytes <= leases_before + chunks
    assert_in_step(connect())


def test_bytes_may_come_one_by_one(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    for byte in client.request("echo", X) + encode_open(3, "pair") + frame(FrameType.PING, 4):
        client.send(bytes([byte]))
    answers = {answer.frame_type: answer for answer in (client.receive(), client.receive(), client.receive())}
    assert answers[FrameType.RESULT].payload == X.tobytes()
    assert (answers[FrameType.OPENED].request_id, answers[FrameType.PONG].request_id) == (3, 4)


def test_connections_come_and_go(unharmed: "Daemon", connect: "Connect") -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{unharmed.frontend_pid}/fd"))

    before = descriptors()
    for number in range(300):
        client = connect(hello=False)
        if number % 3:
            client.send(Hello(1, 1, f"tenant {number}").encode(1)[: number % 40])
        client.close()
    unharmed.wait_status(lambda now: now.frontend.connections == 1 and descriptors() <= before)


def test_descriptors_that_a_client_sends_are_dropped(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    before = len(os.listdir(f"/proc/{unharmed.frontend_pid}/fd"))
    with Path("/dev/null").open() as null:
        for _ in range(20):
            client.send_descriptors(frame(FrameType.PING, ID), [null.fileno()] * 200)
            assert client.receive().frame_type == FrameType.PONG
    assert len(os.listdir(f"/proc/{unharmed.frontend_pid}/fd")) == before


# ── not reading ─────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_requests_of_a_client_that_reads_late_are_all_answered(
    unharmed: "Daemon", connect: "Connect"
) -> None:
    client = connect()
    requests = [client.request("large", IMAGE, request_id=request_id) for request_id in range(1, 1001)]
    before = unharmed.frontend_bytes()
    sender = threading.Thread(target=client.send, args=requests)  # it will be made to wait
    sender.start()
    succeeded = unharmed.counter("large", "succeeded")
    unharmed.wait_status(lambda _: unharmed.counter("large", "succeeded") >= succeeded + 100)
    assert unharmed.frontend_bytes() - before < 128 * 2**20
    answers = [client.receive() for _ in requests]
    sender.join()
    assert sorted(answer.request_id for answer in answers) == list(range(1, 1001))
    assert all(answer.payload == IMAGE.tobytes() for answer in answers)
    client.ping()


def test_client_that_never_reads_is_cut_off(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    before = unharmed.frontend_bytes()
    with unharmed.knobs(stall_timeout_s=1):
        requests = [client.request("large", IMAGE) for _ in range(1000)]
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.send(*requests)
        assert unharmed.frontend_bytes() - before < 128 * 2**20
    unharmed.wait_status(lambda now: now.frontend.connections == 1)
    unharmed.wait_status(lambda now: (now.frontend.queued, now.frontend.running) == (0, 0))


def fill(daemon: "Daemon", client: "RawClient") -> None:
    """Have the daemon answer until the socket is full, and less than makes it stop reading waits in the front end."""
    images = np.repeat(IMAGE, 12, 0)  # 768 KiB
    answered = daemon.counter("large", "succeeded")
    arriving = 0
    while True:
        client.send(client.request("large", images))
        answered += 1
        wait = partial(lambda wanted, _: daemon.counter("large", "succeeded") == wanted, answered)
        daemon.wait_status(wait)
        arriving += HEADER.size + images.nbytes
        if struct.unpack("i", fcntl.ioctl(client.socket, termios.FIONREAD, bytes(4)))[0] < arriving:
            return


@pytest.mark.parametrize("ending", [b"garbage that is longer than a header", frame(FrameType.CLOSE, 0)])
def test_client_that_ends_the_stream_and_does_not_read_is_cut_off(
    unharmed: "Daemon", connect: "Connect", ending: bytes
) -> None:
    client = connect()
    fill(unharmed, client)
    with unharmed.knobs(stall_timeout_s=1):
        unharmed.wait_status(lambda now: now.frontend.connections == 2)  # the number is renewed twice a second only
        client.send(ending)
        unharmed.wait_status(lambda now: now.frontend.connections == 1)


# ── hanging up ──────────────────────────────────────────────────────────────────────────────────

KILLED_CLIENT: Final = """
import sys
import numpy as np
from tensord import Client

client, gate = Client(sys.argv[1]), int(sys.argv[2])
slot = client.lease("echo", 2)
slots = [client.lease("gate") for _ in range(2)]
for each in slots:
    each.input[:] = gate
futures = [slots[0].submit(), client.submit("gate", np.array([gate])), slots[1].submit(), slot.submit()]
futures += [client.submit("large", np.zeros((1, 65536), np.uint8)) for _ in range(20)]
print("ready", flush=True)
sys.stdin.read()
"""


def test_killed_client_leaves_nothing_but_what_runs(unharmed: "Daemon", gates: "count[int]") -> None:
    gate = next(gates)
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED_CLIENT, str(unharmed.socket), str(gate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        unharmed.wait_entered(gate)
        killed.kill()
    unharmed.wait_status(lambda now: now.frontend.connections == 1)
    assert unharmed.status().arenas == 1  # a batch still uses it
    unharmed.open_gate(gate)
    unharmed.wait_status(lambda now: (now.arenas, now.frontend.queued, now.frontend.running) == (0, 0, 0))


def test_close_is_followed_by_the_answers_and_the_end(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]"
) -> None:
    client, gate = connect(), next(gates)
    client.open("echo")
    client.send(client.request("gate", np.array([gate]), request_id=1), client.request("echo", X, request_id=2))
    unharmed.wait_entered(gate)
    client.send(frame(FrameType.CLOSE, 3))
    unharmed.open_gate(gate)
    assert sorted(answer.request_id for answer in client.expect_end()) == [1, 2]


@pytest.mark.parametrize("reads", [True, False])
def test_client_that_says_close_and_hangs_up_is_gone_with_its_answers(
    unharmed: "Daemon", connect: "Connect", gates: "count[int]", reads: bool
) -> None:
    client, gate = connect(), next(gates)
    client.attach(4096)
    client.send(client.request("gate", np.array([gate]), request_id=1))
    unharmed.wait_entered(gate)
    client.send(frame(FrameType.CLOSE, 3))
    client.socket.shutdown(socket.SHUT_WR)
    if not reads:
        client.close()
    unharmed.open_gate(gate)
    if reads:
        assert [answer.request_id for answer in client.expect_end()] == [1]
    with unharmed.knobs(stall_timeout_s=3600):
        unharmed.wait_status(lambda now: (now.frontend.connections, now.arenas) == (1, 0))


# ── cancelling ──────────────────────────────────────────────────────────────────────────────────


def test_cancelled_requests_get_their_one_answer(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    running, piped, queued, kept = 1, 2, 3, 4
    client.send(client.request("gate", np.array([gate]), request_id=running))
    unharmed.wait_entered(gate)
    for request_id in (piped, queued, kept):
        client.send(client.request("gate", np.array([0]), request_id=request_id))
    client.send(*[frame(FrameType.CANCEL, request_id) for request_id in (running, running, queued, queued, 99)])
    answer = client.receive()
    assert (answer.request_id, type(answer.error())) == (queued, Cancelled)  # at once
    client.ping()  # and nothing for a request that is not there
    unharmed.open_gate(gate)
    answers = {answer.request_id: answer for answer in (client.receive(), client.receive(), client.receive())}
    assert isinstance(answers[running].error(), Cancelled)
    for request_id in (piped, kept):
        assert answers[request_id].frame_type == FrameType.RESULT
    client.send(frame(FrameType.CANCEL, kept))  # too late
    client.ping()
    assert_in_step(client)
    assert client.ask(client.request("echo", X, request_id=queued)).frame_type == FrameType.RESULT


def test_cancelled_id_is_free_after_its_answer(unharmed: "Daemon", connect: "Connect", gates: "count[int]") -> None:
    client, gate = connect(), next(gates)
    client.open("echo")
    client.send(client.request("gate", np.array([gate]), request_id=1))
    unharmed.wait_entered(gate)
    client.send(frame(FrameType.CANCEL, 1))
    answer = client.ask(client.request("echo", X, request_id=1))
    assert (answer.request_id, answer.error().code) == (0, 115)
    unharmed.open_gate(gate)
    assert isinstance(client.receive().error(), Cancelled)
    assert_in_step(client)
