"""A client's end of one connection, without I/O: requests become frames, frames become answers.

Theory
------
Whoever has a request registers a `Call` under a fresh request id and sends the frame that it gets for
it; whoever reads the socket feeds the session's FrameReader, which finishes calls. That these are
different threads, or callbacks of one event loop, is the adapters' business (`connection.py`,
`aio_connection.py`); the session only promises that

1. a call is finished exactly once, by its final frame or by the end of the connection, whichever comes
   first: whoever pops it from `_calls` finishes it, and popping is atomic in CPython;
2. a call that is registered while the connection ends is not forgotten: `register` looks at `end_error`
   *after* the call is in the table, and `end` empties the table *after* it has set `end_error`;
3. inline outputs are received directly into the arrays that the user gets.

    register ──▶ in the table ──▶ RESULT, OPENED, … ──▶ done, `value`
                     │       └──▶ ERROR ─────────────▶ done, `error`
                     │       └──▶ end of connection ─▶ done, `error`
                     └── abandon: nobody waits any more; the final frame only gives back what the call held
"""

import itertools
import math
import operator
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ..errors import BadFrame, BadRequest, ConnectionLost, ShuttingDown, TensordError, UnsupportedVersion
from ..limits import NAME_BYTES_MAX, PROTOCOL_VERSION
from ..wire import (
    RESULT,
    Flags,
    FrameReader,
    FrameType,
    Hello,
    InferHead,
    Lane,
    ResultHead,
    TensorHeader,
    Welcome,
    decode_arena,
    decode_error,
    decode_models,
    decode_opened,
    decode_tensors,
    encode_arena,
    encode_open,
    frame,
)
from .arena import ARENA_BYTES, ArenaPool, ArenaSlot
from .arrays import as_bytes
from .call import Call, RoomTicket, copy_error
from .model import Form, OpenedModel, RequestPlan

MORE: Final = int(Flags.MORE)
"""An enumeration's own `&` costs a microsecond."""

SCRATCH_BYTES: Final = 64 * 1024
"""Bytes read at once where no payload is under way."""


class ClientSession:
    """The request table of one connection. Safe with one reader and any number of threads that register."""

    def __init__(self, arena_bytes: int = ARENA_BYTES) -> None:
        self.models: dict[str, OpenedModel] = {}
        """Models opened on this connection, by the name that they were opened by."""
        self.pool = ArenaPool(arena_bytes, self.tell_room)
        self.reader = FrameReader(self, memoryview(bytearray(SCRATCH_BYTES)))
        self.welcome: Welcome | None = None
        self.closing = False
        """The daemon will answer what is in flight and takes no more: connect again for new requests."""
        self.end_error: TensordError | None = None
        """Why the connection has ended; None while it has not."""
        self.unknown_replies = 0
        self._calls: dict[int, Call] = {}
        self._admission = threading.Lock()
        self._request_ids = itertools.count(1)
        self._receiving: Call | None = None
        self._descriptors: deque[int] = deque()
        self._farewell: TensordError | None = None
        self._room: list[RoomTicket] = []

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    @property
    def in_flight(self) -> int:
        """Calls without their final frame, abandoned ones included."""
        return len(self._calls)

    def register(self, expects: FrameType) -> Call:
        """A new call, already in the table. If the connection has ended it is done at once, with its error."""
        call = Call(next(self._request_ids), expects)
        self._enter(call)
        return call

    def admit(self, call: Call) -> bool:
        """Put an inference into the table, unless the daemon would refuse another one on this connection."""
        with self._admission:
            if self.welcome is not None and len(self._calls) >= self.welcome.in_flight_max:
                return False
            self._enter(call)
            return True

    def _enter(self, call: Call) -> None:
        self._calls[call.request_id] = call
        if self.end_error is not None:
            self.forget(call)

    def hello(self, tenant: str) -> tuple[Call, bytes]:
        """HELLO; its value is the Welcome."""
        call = self.register(FrameType.WELCOME)
        return call, Hello(PROTOCOL_VERSION, PROTOCOL_VERSION, tenant).encode(call.request_id)

    def open(self, name: str) -> tuple[Call, bytes]:
        """OPEN; its value is (handle, ModelSpec). Raises BadRequest for a name that no model can have.

        Such a name may not even fit into a frame, and a bad frame ends the connection for all of its users.
        """
        name_bytes = len(name.encode(errors="replace"))
        if name_bytes > NAME_BYTES_MAX:
            raise BadRequest("model", f"a name of {name_bytes} bytes", f"a name has at most {NAME_BYTES_MAX}")
        call = self.register(FrameType.OPENED)
        return call, encode_open(call.request_id, name)

    def attach(self, nbytes: int) -> tuple[Call, bytes]:
        """ATTACH; its value is (arena, nbytes, file descriptor), and the receiver closes the descriptor."""
        call = self.register(FrameType.ATTACHED)
        return call, encode_arena(FrameType.ATTACH, call.request_id, 0, nbytes)

    def ping(self) -> tuple[Call, bytes]:
        """PING; its value is None."""
        call = self.register(FrameType.PONG)
        return call, frame(FrameType.PING, call.request_id)

    def list_models(self) -> tuple[Call, bytes]:
        """LIST; its value is a list of ModelEntry."""
        call = self.register(FrameType.MODELS)
        return call, frame(FrameType.LIST, call.request_id)

    def infer_inline(
        self, plan: RequestPlan, priority: int, deadline_ns: int, session: int, *, latest: bool = False
    ) -> tuple[Call, bytes]:
        """INFER without its payload, which follows it, to be admitted. Outputs come into `call.arrays`."""
        call = Call(next(self._request_ids), FrameType.RESULT)
        call.plan = plan
        call.forms = plan.output_forms
        call.result_headers = plan.output_headers
        call.result_bytes = plan.output_bytes
        head = InferHead(plan.handle, priority, len(plan.inputs), 0, deadline_ns, session, b"", latest)
        return call, head.encode(call.request_id, plan.input_headers, plan.input_bytes)

    def infer_arena(
        self, slot: ArenaSlot, handle: int, priority: int, deadline_ns: int, session: int, *, latest: bool = False
    ) -> tuple[Call, bytes]:
        """INFER of a slot whose `begin` was called, to be admitted; the outputs will lie in the slot too."""
        plan = slot.plan
        number = slot.arena.number
        call = Call(next(self._request_ids), FrameType.RESULT)
        call.plan = plan
        call.result_headers = plan.arena_result_headers(number, slot.base)
        call.returned = slot.answered
        outputs = len(plan.spec.outputs)
        head = InferHead(handle, priority, len(plan.inputs), outputs, deadline_ns, session, b"", latest)
        return call, head.encode(call.request_id, plan.arena_headers(number, slot.base), 0)

    def forget(self, call: Call) -> None:
        """The call's frame was not sent: finish it as if the connection had ended."""
        if self._calls.pop(call.request_id, None) is not None:
            call.error = self.error_of_end()
            self._finish(call)

    def abandon(self, call: Call) -> bytes:
        """Nobody waits for this call any more; returns the CANCEL to send, empty if the answer is here."""
        call.abandoned = True
        return b"" if call.done else frame(FrameType.CANCEL, call.request_id)

    # ── room ────────────────────────────────────────────────────────────────────────────────────

    @property
    def usable(self) -> bool:
        """Whether new requests may be sent on this connection."""
        return not self.closing and self.end_error is None

    @property
    def inline_bytes_max(self) -> int:
        """Bytes of inputs, and of outputs, that the daemon takes and gives inline."""
        return self.welcome.inline_bytes_max if self.welcome is not None else 0

    def room_ticket(self) -> RoomTicket:
        """Done when a request was answered or a slot came back: look again then."""
        ticket = RoomTicket()
        self._room.append(ticket)
        return ticket

    def tell_room(self) -> None:
        """Something came back: a request was answered, or a slot released."""
        if self._room:
            tickets, self._room = self._room, []
            for ticket in tickets:
                ticket.finish()

    # ── frames (wire.FrameSink) ─────────────────────────────────────────────────────────────────

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        """One frame from the daemon. Raises TensordError for one that makes no sense: the connection ends."""
        call = self._calls.get(request_id)
        if call is None and request_id:
            self.unknown_replies += 1
            return None
        if frame_type == FrameType.RESULT and call is not None and call.expects is FrameType.RESULT:
            if flags & MORE:
                raise BadFrame("a RESULT has the flag MORE, which version 1 reserves")
            return self._result_started(call, meta, payload_bytes)
        if payload_bytes:
            raise BadFrame(f"a frame of type {frame_type} with a payload of {payload_bytes} bytes")
        if call is None:
            self._connection_frame(frame_type, meta)
        elif frame_type == FrameType.ERROR:
            call.error = decode_error(meta)
            self._answered(call)
        elif frame_type == call.expects:
            call.value = self._control_answer(call, meta)
            self._answered(call)
        else:
            raise BadFrame(f"request {request_id} was answered by a frame of type {frame_type}")
        return None

    def frame_finished(self) -> None:
        """A RESULT's payload is complete."""
        call, self._receiving = self._receiving, None
        if call is not None:
            self._answered(call)

    def _result_started(self, call: Call, meta: memoryview, payload_bytes: int) -> list[memoryview] | None:
        if meta[RESULT.size :] == call.result_headers and payload_bytes == call.result_bytes:
            forms = call.forms
        elif not call.forms and call.plan is not None and call.plan.has_data_sizes:
            call.shapes = _arena_shapes(meta, call, payload_bytes)
            forms = []
        else:
            forms = _inline_forms(meta, len(call.forms), payload_bytes)
        if payload_bytes:
            self._receiving = call
        if call.abandoned:
            arrays = []
        else:
            arrays = call.arrays = [np.empty(shape, dtype) for shape, dtype in forms]
        if not payload_bytes:
            self._answered(call)
        return [as_bytes(array).data for array in arrays if array.nbytes] or None

    def _control_answer(self, call: Call, meta: memoryview) -> Any:
        match call.expects:
            case FrameType.WELCOME:
                welcome = Welcome.decode(meta)
                if welcome.version != PROTOCOL_VERSION:
                    raise UnsupportedVersion(PROTOCOL_VERSION, PROTOCOL_VERSION, welcome.version)
                self.welcome = welcome
                return welcome
            case FrameType.OPENED:
                return decode_opened(meta)
            case FrameType.ATTACHED:
                descriptor = self._take_descriptor()
                if call.abandoned:
                    os.close(descriptor)
                return (*decode_arena(meta), descriptor)
            case FrameType.MODELS:
                return decode_models(meta)
            case _:
                return None

    def _connection_frame(self, frame_type: int, meta: memoryview) -> None:
        """A frame that concerns the connection, not a request."""
        if frame_type == FrameType.CLOSE:
            self.closing = True
            self.tell_room()
        elif frame_type == FrameType.ERROR:
            self._farewell = decode_error(meta)
        else:
            self.unknown_replies += 1

    def _answered(self, call: Call) -> None:
        if self._calls.pop(call.request_id, None) is not None:
            self._finish(call)

    def _finish(self, call: Call) -> None:
        if call.returned is not None:
            call.returned()
        call.finish()
        self.tell_room()

    # ── descriptors ─────────────────────────────────────────────────────────────────────────────

    def descriptors_received(self, descriptors: Sequence[int]) -> None:
        """File descriptors that came with the bytes that are fed next."""
        self._descriptors.extend(descriptors)

    def close_stray_descriptors(self) -> None:
        """After feeding: close descriptors that no ATTACHED has taken, unless one is still to come."""
        if self._descriptors and not any(call.expects is FrameType.ATTACHED for call in list(self._calls.values())):
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _take_descriptor(self) -> int:
        if not self._descriptors:
            raise BadFrame("ATTACHED came without a file descriptor")
        return self._descriptors.popleft()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def end(self, error: TensordError) -> None:
        """The connection has ended: every call that has no answer gets `error`, or what the daemon said last."""
        if self.end_error is None:
            self.end_error = self._error_of_farewell() or error
        while self._calls:
            try:
                _, call = self._calls.popitem()
            except KeyError:  # emptied by another thread just now
                break
            call.error = self.error_of_end()
            self._finish(call)
        self.tell_room()
        self._close_descriptors()

    def _error_of_farewell(self) -> TensordError | None:
        """What the daemon's last word about the connection means for requests: only some of them can be repeated.

        Before the welcome none was sent: who is told that the daemon is shutting down knows that nothing ran.
        """
        farewell = self._farewell
        return ConnectionLost(str(farewell)) if isinstance(farewell, ShuttingDown) and self.welcome else farewell

    def forget_all(self, error: TensordError) -> None:
        """The connection is another process's: as `end`, but nobody is told, for nobody here waits."""
        self.end_error = error
        self.pool.lock = threading.Lock()  # another thread of the parent may have held it
        self._calls.clear()

    def error_of_end(self) -> TensordError:
        """Why the connection has ended, or cannot be used, for one caller."""
        return copy_error(self.end_error or ConnectionLost("it cannot be written to"))


def _inline_forms(meta: memoryview, outputs: int, payload_bytes: int) -> list[Form]:
    """Forms of a RESULT whose headers are not those that the specification lets expect. Raises BadFrame."""
    _, headers = ResultHead.decode(meta)
    if [header.index for header in headers] != list(range(outputs)):
        raise BadFrame(f"a RESULT has {len(headers)} inline outputs, and its request asked for {outputs}")
    for header in headers:
        if header.lane is not Lane.INLINE or header.nbytes != math.prod(header.shape) * header.dtype.itemsize:
            raise BadFrame(f"a RESULT's output {header.index} is not what its request asked for")
    promised = sum(header.nbytes for header in headers)
    if promised != payload_bytes:
        raise BadFrame(f"a RESULT's headers promise {promised} bytes, and its payload has {payload_bytes}")
    return [(header.shape, header.dtype.numpy) for header in headers]


def _arena_shapes(meta: memoryview, call: Call, payload_bytes: int) -> list[tuple[int, ...]]:
    """Shapes of outputs in the call's slot whose sizes came from the data. Raises BadFrame."""
    _, headers = ResultHead.decode(meta)
    assert call.plan is not None
    largest = decode_tensors(memoryview(call.result_headers), len(call.plan.spec.outputs))
    if payload_bytes or len(headers) != len(largest) or not all(map(_lies_within, headers, largest)):
        raise BadFrame("a RESULT's outputs are not what its request asked for")
    return [header.shape for header in headers]


def _lies_within(header: TensorHeader, largest: TensorHeader) -> bool:
    """Whether an output starts where the largest possible one would, and is no larger."""
    return (
        replace(header, shape=largest.shape, nbytes=largest.nbytes) == largest
        and len(header.shape) == len(largest.shape)
        and header.shape[0] == largest.shape[0]
        and all(map(operator.le, header.shape, largest.shape))
    )
