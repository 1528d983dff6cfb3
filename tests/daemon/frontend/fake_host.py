"""A front end for tests of its connections: real sockets on uvloop, no workers, and time that is told.

The test and the loop share one thread: the loop runs only while the test waits for something.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from tensord.daemon.frontend.client_arenas import ClientArena
from tensord.daemon.frontend.connection import Connection, Limits
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model, Models
from tensord.daemon.frontend.replies import result_frame
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.frontend.streams import Streams
from tensord.daemon.frontend.users import Users
from tensord.daemon.knobs import KNOBS
from tensord.daemon.messages import ModelServed
from tensord.ipc.errors import TensordError
from tensord.ipc.limits import HELLO_TIMEOUT_S, SOCKET_BUFFER_BYTES
from tensord.ipc.wire import (
    HEADER,
    MAGIC,
    FrameType,
    Hello,
    InferHead,
    Lane,
    TensorHeader,
    decode_arena,
    decode_error,
    decode_opened,
    encode_arena,
    encode_open,
    frame,
)

DEFAULTS: Final = {name: knob.default for name, knob in KNOBS.items()}
WATCHDOG_S: Final = 20.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

SETTLED_TURNS: Final = 20
"""Turns of the loop after which whatever is to happen has happened: a Unix socket delivers at once."""

TIMEOUT_MS: Final = 60_000
ARENA_BYTES: Final = 4096

LONG_BYTES: Final = 3 * SOCKET_BUFFER_BYTES
"""More than a socket takes: the kernel grants twice what is asked for, at most."""


class FakeHost:
    """Notes what connections tell it; `answer` is what a worker would make of a request."""

    def __init__(self, ingest: Ingest, served: Sequence[ModelServed]) -> None:
        self.instance = 42
        self.ingest = ingest
        self.ingest_view = memoryview(bytearray(ingest.nbytes))
        self.limits = Limits()
        self.models = Models()
        self.users = Users()
        self.users.set_knobs(DEFAULTS, {})
        self.scratch = memoryview(bytearray(128 * 1024))
        self.draining = False
        self.arriving_bytes = 0
        self.watched: set[Connection] = set()
        self.refusal: TensordError | None = None
        """What the next connection is told."""
        self.opened: list[Connection] = []
        self.closed: list[Connection] = []
        self.not_permitted: list[str] = []
        """Models that were asked for in vain."""
        self.submitted: list[InferRequest] = []
        self.cancelled: list[InferRequest] = []
        self.wanted: list[tuple[int, int]] = []
        """Request id and bytes of each ATTACH."""
        self.returned: list[int] = []
        """Numbers of the arenas that came back."""
        for each in served:
            self.models.add(each).apply({**DEFAULTS, "max_batch": 32, "rows_max": 32, "timeout_ms": TIMEOUT_MS})

    def connection_opened(self, connection: Connection) -> TensordError | None:
        self.opened.append(connection)
        return self.refusal

    def connection_closed(self, connection: Connection) -> None:
        self.closed.append(connection)

    def count_refused(self, model: Model) -> None:
        self.not_permitted.append(model.name)

    def submit(self, now: int, request: InferRequest) -> None:
        self.submitted.append(request)

    def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)

    def want_arena(self, connection: Connection, request_id: int, nbytes: int) -> None:
        self.wanted.append((request_id, nbytes))

    def return_arena(self, arena: ClientArena) -> None:
        self.returned.append(arena.arena)

    def answer(self, request: InferRequest) -> None:
        """Send the RESULT, as the front end does: the bytes that lie in the leased rows."""
        request.connection.send(b"".join(result_frame(request, self.ingest_view, request.rows, 0, 0)))
        request.connection.finished(request)


@dataclass(frozen=True)
class Received:
    """A frame from the daemon."""

    frame_type: int
    request_id: int
    meta: bytes
    payload: bytes

    @property
    def error(self) -> TensordError:
        """What an ERROR says."""
        assert self.frame_type == FrameType.ERROR, self
        return decode_error(memoryview(self.meta))

    @property
    def told(self) -> tuple[int, type[TensordError]]:
        """Of an ERROR: whom it answers, and what it is."""
        return self.request_id, type(self.error)


class Client:
    """A client's end of one connection. It reads only when it is told to."""

    def __init__(self, meeting: "Meeting", connected: socket.socket, connection: Connection) -> None:
        self.meeting = meeting
        self.socket = connected
        self.connection = connection
        self.fds: list[int] = []
        """File descriptors that came."""
        self._stream = bytearray()
        self._ended = False

    # ── bytes ───────────────────────────────────────────────────────────────────────────────────

    def send(self, *parts: bytes) -> None:
        """Send all of it; the daemon reads it when the loop runs."""
        data = memoryview(b"".join(parts))
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.meeting.turn()

    def _read(self) -> None:
        """Take what has come by now."""
        while not self._ended:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 8)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            self.fds += fds
            self._stream += data
            self._ended = not data

    def _whole_frame(self) -> bool:
        if len(self._stream) < HEADER.size:
            return False
        magic, _, _, meta_bytes, _, payload_bytes = HEADER.unpack_from(self._stream)
        assert magic == MAGIC
        return bool(len(self._stream) >= HEADER.size + meta_bytes + payload_bytes)

    def frames(self) -> list[Received]:
        """The frames that have come by now."""
        self._read()
        found = []
        while self._whole_frame():
            _, frame_type, _, meta_bytes, request_id, payload_bytes = HEADER.unpack_from(self._stream)
            stop = HEADER.size + meta_bytes
            meta, payload = bytes(self._stream[HEADER.size : stop]), bytes(self._stream[stop : stop + payload_bytes])
            del self._stream[: stop + payload_bytes]
            found.append(Received(frame_type, request_id, meta, payload))
        return found

    def receive(self) -> Received:
        """Wait for the next frame, which is the only one."""
        (only,) = self.receive_all(1)
        return only

    def receive_all(self, count: int) -> list[Received]:
        """Wait for so many frames, behind which none is on its way."""
        found: list[Received] = []

        def came() -> bool:
            found.extend(self.frames())
            return len(found) >= count

        self.meeting.until(came)
        assert len(found) == count, found
        return found

    def expect_end(self) -> list[Received]:
        """Wait for the end of the stream: the frames before it."""
        found: list[Received] = []

        def ended() -> bool:
            found.extend(self.frames())
            return self._ended

        self.meeting.until(ended)
        assert self._stream == b""
        return found

    def expect_silence(self) -> None:
        """Nothing is on its way, and the stream has not ended."""
        self.meeting.settle()
        assert self.frames() == []
        assert not self._stream
        assert not self._ended

    def close(self) -> None:
        """End it."""
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    # ── not reading ─────────────────────────────────────────────────────────────────────────────

    def fill(self) -> int:
        """Write into the daemon's end, beside the connection, until its socket takes no more; the bytes."""
        daemons_end = self.connection.stream.sock.fileno()
        written = 0
        with socket.socket(fileno=os.dup(daemons_end)) as beside:
            beside.setblocking(False)
            try:
                while True:
                    written += beside.send(bytes(65_536))
            except BlockingIOError:
                return written

    def take(self, nbytes: int) -> None:
        """Take what `fill` has written."""
        while nbytes:
            nbytes -= len(self.socket.recv(nbytes))

    def long_answer(self, nbytes: int) -> None:
        """Have the daemon send an answer, with request id 77."""
        data = HEADER.pack(MAGIC, FrameType.RESULT, 0, 0, 77, nbytes) + bytes(nbytes)
        self.meeting.within(lambda: self.connection.send(data))

    # ── conversation ────────────────────────────────────────────────────────────────────────────

    def ask(self, *parts: bytes) -> Received:
        """Send, and receive the answer."""
        self.send(*parts)
        return self.receive()

    def hello(self, tenant: str = "") -> Received:
        """The handshake."""
        return self.ask(Hello(1, 1, tenant).encode(1))

    def open(self, name: str) -> int:
        """A handle."""
        answer = self.ask(encode_open(1, name))
        assert answer.frame_type == FrameType.OPENED, answer.error
        return decode_opened(memoryview(answer.meta))[0]

    def want_arena(self) -> "WantedArena":
        """Send an ATTACH with request id 50, which the front end passes on."""
        wanted = len(self.meeting.host.wanted)
        self.send(encode_arena(FrameType.ATTACH, 50, 0, ARENA_BYTES))
        self.meeting.until(lambda: len(self.meeting.host.wanted) > wanted)
        return WantedArena(self)

    def attach(self, number: int = 7) -> int:
        """An arena, attached; its number."""
        self.want_arena().made(number)
        answer = self.receive()
        assert (answer.frame_type, decode_arena(memoryview(answer.meta))) == (FrameType.ATTACHED, (number, ARENA_BYTES))
        return number

    def assert_in_step(self) -> None:
        """The connection goes on, and nothing else is on its way."""
        answer = self.ask(frame(FrameType.PING, 99))
        assert (answer.frame_type, answer.request_id) == (FrameType.PONG, 99)


class WantedArena:
    """An ATTACH that the supervisor has not answered yet."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def made(self, number: int = 7) -> int:
        """It is made, of any memory; the descriptor that was handed over."""
        fd = os.memfd_create("arena")
        self._client.meeting.within(lambda: self._client.connection.arenas.made(50, number, ARENA_BYTES, fd))
        return fd

    def refused(self, error: TensordError) -> None:
        """There is none."""
        self._client.meeting.within(lambda: self._client.connection.arenas.refused(50, error))


class Meeting:
    """A front end and its clients."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._loop = uvloop.new_event_loop()
        self.streams = Streams(self._loop, self._turn_over)
        self.turns = 0
        """Turns in which streams were looked at."""
        self._clients: list[Client] = []
        self.errors: list[dict[str, Any]] = []
        """What went wrong in the loop's callbacks."""
        self._loop.set_exception_handler(lambda _, context: self.errors.append(context))

    def _turn_over(self) -> None:
        self.turns += 1

    def connect(self) -> Client:
        """A client that has not said anything yet."""
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        connection = Connection(self.host)
        self.within(lambda: connection.start(self.streams, ours))
        client = Client(self, theirs, connection)
        self._clients.append(client)
        return client

    def client(self) -> Client:
        """One that was welcomed."""
        client = self.connect()
        client.hello()
        return client

    def turn(self) -> None:
        """Let the loop do what is to be done now."""
        self._loop.run_until_complete(asyncio.sleep(0))

    def settle(self) -> None:
        """Let the loop do all that is to be done."""
        for _ in range(SETTLED_TURNS):
            self.turn()

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until it is so."""
        deadline = time.monotonic() + WATCHDOG_S
        while not condition():
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, "never so"
            self.turn()

    def within(self, call: Callable[[], object]) -> None:
        """Call something inside the loop, as the front end does."""

        async def inside() -> None:
            call()

        self._loop.run_until_complete(inside())

    def answer(self, request: InferRequest) -> None:
        """A worker has answered."""
        self.within(lambda: self.host.answer(request))

    def submitted(self, count: int = 1) -> list[InferRequest]:
        """Wait until so many requests were submitted, and no more; they are forgotten here."""
        self.until(lambda: len(self.host.submitted) >= count)
        self.settle()
        found = list(self.host.submitted)
        assert len(found) == count
        self.host.submitted.clear()
        return found

    def check_stalls(self, later_s: float) -> None:
        """The front end's look at the connections that it watches, some time from now."""
        now_ns = time.monotonic_ns() + int(later_s * 1e9)

        def sweep() -> None:
            for connection in list(self.host.watched):
                connection.check_stall(now_ns, int(HELLO_TIMEOUT_S * 1e9))

        self.within(sweep)

    def close(self) -> None:
        """End all of it."""
        for client in self._clients:
            client.close()
            self.within(client.connection.stream.abort)
        self.settle()
        self.streams.close()
        self._loop.close()
        assert not self.errors, self.errors


def request_frame(
    model: Model,
    rows: int = 1,
    *,
    handle: int = 1,
    request_id: int = 1,
    inputs_in: dict[int, tuple[int, int]] | None = None,
    outputs_in: dict[int, tuple[int, int]] | None = None,
    payload: bytes | None = None,
    payload_bytes: int | None = None,
    **fields: Any,
) -> bytes:
    """INFER with its payload; tensors lie in arenas where they are given arena and offset. What is claimed may lie."""
    headers, inline = [], 0
    for index, spec in enumerate(model.inputs):
        nbytes = rows * spec.row_bytes
        arena, offset = (inputs_in or {}).get(index, (0, 0))
        inline += 0 if arena else nbytes
        lane = Lane.ARENA if arena else Lane.INLINE
        headers.append(TensorHeader(index, spec.dtype, spec.batch_shape(rows), nbytes, lane, arena, offset))
    for index, (arena, offset) in (outputs_in or {}).items():
        spec = model.outputs[index]
        headers.append(TensorHeader(index, spec.dtype, (), rows * spec.row_bytes, Lane.ARENA, arena, offset))
    head = InferHead(
        handle,
        fields.get("priority", 1),
        len(model.inputs),
        len(outputs_in or {}),
        fields.get("deadline_ns", 0),
        fields.get("session", 0),
        fields.get("trace", b""),
        fields.get("latest", False),
    )
    payload = bytes(index % 251 for index in range(inline)) if payload is None else payload
    claimed = len(payload) if payload_bytes is None else payload_bytes
    return head.encode(request_id, b"".join(each.encode() for each in headers), claimed) + payload
