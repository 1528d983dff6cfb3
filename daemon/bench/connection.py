"""A connection of the load: the client library's session, driven without its threads, and places in it.

The library's `Connection` opens it; after that the loop in `load.py` sends and receives. So a request is encoded,
its answer decoded and its arena laid out by the code that users run, and takes 20 to 30 µs instead of 70.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from tensord.ipc.client.arena import ArenaSlot
from tensord.ipc.client.arrays import Array, as_bytes, prepare_inputs
from tensord.ipc.client.call import Call
from tensord.ipc.client.connection import Connection
from tensord.ipc.client.discovery import connect_socket
from tensord.ipc.client.flow import handshake, lease, open_model
from tensord.ipc.client.model import RequestPlan
from tensord.ipc.client.request import Buffer
from tensord.ipc.client.session import SCRATCH_BYTES, ClientSession
from tensord.ipc.client.sockets import NO_SIGNAL, receive, unsent
from tensord.ipc.errors import ConnectionLost, DaemonNotFound, TensordError
from tensord.ipc.limits import HELLO_TIMEOUT_S, PRIORITY_NORMAL
from tensord.ipc.tensors import ModelSpec, free_dimensions
from tensord.ipc.wire import RESULT, FrameReader, FrameType

TENANT: Final = "bench"
BUFFERS_MAX: Final = 512
"""Buffers in one sendmsg; the kernel takes 1,024 (IOV_MAX)."""

_scratch: Final = memoryview(bytearray(SCRATCH_BYTES))
"""Of all connections of this process: between two of their turns nothing is in it."""


class LoadSession(ClientSession):
    """A session that keeps what a RESULT says beside its outputs."""

    def __init__(self, arena_bytes: int) -> None:
        super().__init__(arena_bytes)
        self.reader = FrameReader(self, _scratch)
        self.batch_rows = 0
        self.queue_us = 0
        self.compute_us = 0

    def frame_started(self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int) -> Any:
        """As the library's."""
        if frame_type == FrameType.RESULT and len(meta) >= RESULT.size:
            _, self.batch_rows, self.queue_us, self.compute_us, _, _, _ = RESULT.unpack_from(meta)
        return super().frame_started(frame_type, flags, request_id, meta, payload_bytes)


class LoadConnection(Connection):
    """An open connection on which `begin` puts requests and `flush` sends them."""

    def __init__(
        self, path: str, model: str, inputs_of: Callable[[ModelSpec], dict[str, Array]], arena_bytes: int = 0
    ) -> None:
        """Connect and open the model, whose inputs every request will carry. Raises TensordError."""
        self.socket = _connect(path)
        super().__init__(self.socket, arena_bytes)
        self.session: LoadSession = LoadSession(arena_bytes)
        self._outgoing: list[Buffer] = []
        self._model = model
        self._arena_bytes = arena_bytes
        try:
            deadline_ns = _setup_deadline()
            self.run(handshake(self.session, TENANT), deadline_ns)
            opened = self.run(open_model(self.session, model), deadline_ns)
            self.arrays, extent, _ = prepare_inputs(opened.spec, inputs_of(opened.spec))
            self.spec = opened.spec
            self.plan: RequestPlan = opened.plan(extent)
        except BaseException:
            self.close(ConnectionLost("it was not set up"))
            raise
        self.payload = [as_bytes(array).data for array in self.arrays]

    def maybe_lease(self) -> ArenaSlot | None:
        """A slot for one request in flight, if there is an arena. Raises TensordError."""
        if not self._arena_bytes:
            return None
        sizes = {each.name: each.max for each in free_dimensions(self.spec.inputs)}
        return self.run(lease(self.session, self._model, self.plan.rows, sizes, ()), _setup_deadline())

    # ── under load ──────────────────────────────────────────────────────────────────────────────

    def begin(self, slot: ArenaSlot | None, deadline_ns: int) -> Call:
        """Put a request behind those that wait to be sent; for a slot, its inputs must have been written."""
        session = self.session
        if slot is None:
            call, head = session.infer_inline(self.plan, PRIORITY_NORMAL, deadline_ns, 0)
            self._outgoing += (head, *self.payload)
        else:
            slot.begin()
            call, head = session.infer_arena(slot, self.plan.handle, PRIORITY_NORMAL, deadline_ns, 0)
            self._outgoing.append(head)
        return call

    def flush(self) -> bool:
        """Send what waits; whether all is gone. An end of the connection is found by who reads."""
        while self._outgoing:
            try:
                sent = self.socket.sendmsg(self._outgoing[:BUFFERS_MAX], (), NO_SIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                self._outgoing.clear()
                break
            self._outgoing[:BUFFERS_MAX] = unsent(self._outgoing[:BUFFERS_MAX], sent)
        return True

    def receive(self) -> TensordError | None:
        """Receive once; returns why the connection has ended, if it has. Answers have then been told so."""
        error = receive(self.socket, self.session)
        if error is not None:
            self.session.end(error)
        return self.session.end_error


def _connect(path: str) -> Any:
    """A connected socket; where too many are connecting, a little later. Raises DaemonNotFound."""
    deadline_ns = _setup_deadline()
    while True:
        try:
            return connect_socket(path)
        except DaemonNotFound as error:
            if error.retry_after_ms is None or time.monotonic_ns() > deadline_ns:
                raise
            time.sleep(error.retry_after_ms / 1e3)


def _setup_deadline() -> int:
    return time.monotonic_ns() + int(HELLO_TIMEOUT_S * 1e9)
