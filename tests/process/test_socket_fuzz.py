"""Mutated conversations on live sockets: the daemon's processes live on, and somebody else is served all the time."""

import contextlib
import random
import struct
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.ipc.wire import (
    HEADER,
    MAGIC,
    FrameType,
    Hello,
    encode_arena,
    encode_open,
    frame,
)

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

CONNECTIONS: Final = 300
X: Final = np.arange(8, dtype=np.float32).reshape(2, 4)
A: Final = np.ones((2, 3), np.float32)
B: Final = np.arange(8, dtype=np.int64).reshape(2, 2, 2)
IMAGE: Final = np.zeros((1, 65536), np.uint8)
EDGES: Final = (0, 1, 2, 24, 63, 64, 127, 128, 255, 4096, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
"""Values at which something may go over."""


def conversation(client: "RawClient", arena: int) -> list[bytes]:
    """Valid frames of every type that clients send, as one client said them who opened these models in this order."""
    echo, pair, large = (client.open(model).handle for model in ("echo", "pair", "large"))
    source, target = client.placed(0, X, arena, 0), client.place(0, X.nbytes, arena, 2048)
    ab = [client.inline(0, A), client.placed(1, B, arena, 1024)]
    return [
        Hello(1, 1, "fuzz").encode(1),
        encode_open(2, "echo"),
        encode_open(3, "pair"),
        encode_open(4, "large"),
        client.infer(echo, [client.inline(0, X)], X.tobytes(), request_id=5),
        frame(FrameType.LIST, 6),
        client.infer(pair, ab, A.tobytes(), outputs=[client.place(1, A.nbytes, arena, 3072)], request_id=7),
        client.infer(large, [client.inline(0, IMAGE)], IMAGE.tobytes(), request_id=8),
        encode_arena(FrameType.ATTACH, 9, 0, 8192),
        client.infer(echo, [source], outputs=[target], request_id=10),
        frame(FrameType.CANCEL, 10),
        frame(FrameType.PING, 11),
        encode_arena(FrameType.DETACH, 12, arena, 0),
        client.infer(echo, [client.inline(0, X)], X.tobytes(), request_id=13, deadline_ns=2**62, session=9),
        frame(FrameType.CLOSE, 14),
    ]


def mutate(rng: random.Random, frames: list[bytes]) -> bytes:
    """Change a few things: frames, fields, bytes, or the end."""
    frames = list(frames)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(frames))
        data = bytearray(frames[place])
        match rng.randrange(9):
            case 0:
                del frames[place]
                frames = frames or [b""]
                continue
            case 1:
                frames.insert(rng.randrange(len(frames) + 1), bytes(data))
                continue
            case 2:
                rng.shuffle(frames)
                continue
            case 3 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 4 if data:
                data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255))
            case 5 if data:
                del data[rng.randrange(len(data)) :]
            case 6:
                position = rng.randrange(len(data) + 1)
                data[position:position] = rng.randbytes(rng.choice((1, 7, 64)))
            case 7 if len(data) >= HEADER.size:
                fields = list(HEADER.unpack_from(data))
                which = rng.choice((1, 2, 3, 4, 5))
                fields[which] = rng.choice(EDGES) & (2 ** (8 * (0, 1, 1, 4, 8, 8)[which]) - 1)
                data[: HEADER.size] = HEADER.pack(*fields)
            case _ if len(data) >= HEADER.size + 8:
                size = rng.choice((1, 2, 4, 8))
                position = rng.randrange(HEADER.size, min(len(data), 160) - size + 1)
                data[position : position + size] = (rng.choice(EDGES) % 2 ** (8 * size)).to_bytes(size, "little")
        frames[place] = bytes(data)
    return b"".join(frames)


def talk(rng: random.Random, client: "RawClient", data: bytes) -> None:
    """Send in pieces, read or not, and leave, politely or not. Whatever the daemon says is well-formed."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while data:
            size = rng.choice((1, 24, 100, 4096, len(data)))
            client.send(data[:size])
            data = data[size:]
    if rng.random() < 0.7:
        client.socket.shutdown(1)
        for answer in client.expect_end():
            assert answer.frame_type in list(FrameType)
            if answer.frame_type == FrameType.ERROR:
                error = answer.error()
                assert 100 <= error.code < 500
                assert error.code != 402, error  # InternalError
    if rng.random() < 0.3:
        client.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER
    client.close()


@pytest.mark.parametrize("seed", range(3))
def test_mutated_conversations_harm_nobody(unharmed: "Daemon", connect: "Connect", seed: int) -> None:
    rng = random.Random(seed)
    recorder = connect()
    recorded_arena = recorder.attach(4096).number
    frames = conversation(recorder, recorded_arena)
    for _ in range(CONNECTIONS // 3):
        client = connect(hello=False)
        if rng.random() < 0.5:  # further in: greeted, models open, with an arena of its own
            client.hello()
            arena = client.attach(4096)
            arena.memory[:] = rng.randbytes(4096)
            data = mutate(rng, conversation(client, arena.number)[4:])
        else:
            data = mutate(rng, frames)
        talk(rng, client, data)
    np.testing.assert_array_equal(recorder.call("echo", X)[0], X)
    recorder.close()
    unharmed.wait_status(
        lambda now: (now.frontend.connections, now.frontend.queued, now.frontend.running, now.arenas) == (1, 0, 0, 0)
    )


def test_leases_of_mutated_conversations_all_come_back(unharmed: "Daemon", connect: "Connect") -> None:
    """After all that, the whole ingest arena can be leased: 250 MiB of requests, none refused."""
    client = connect()
    header = client.inline(0, np.zeros((16, 65536), np.uint8))
    handle = client.open("large").handle
    halves = [connect() for _ in range(100)]  # 2 MiB each: input and output
    for half in halves:
        half.open("large")
        half.send(half.infer(handle, [header], b"x", payload_bytes=2**20, request_id=1))
    client.ping()
    assert unharmed.status().frontend.ingest_bytes == 256 * 2**20
    for half in halves:
        half.send(bytes(2**20 - 1))
        answer = half.receive()
        assert answer.frame_type == FrameType.RESULT, answer.error()
        assert answer.payload == b"x" + bytes(2**20 - 1)
        half.close()


def test_only_headers(unharmed: "Daemon", connect: "Connect") -> None:
    rng = random.Random(0)
    for _ in range(60):
        client = connect()
        headers = [
            HEADER.pack(MAGIC, rng.randrange(256), rng.randrange(256), 0, rng.choice(EDGES), 0) for _ in range(50)
        ]
        talk(rng, client, b"".join(headers))
