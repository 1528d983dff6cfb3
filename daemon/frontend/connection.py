"""One client connection: frames in, replies out, and what the client has here (handles, arenas, requests).

The stream is read straight into the ingest arena. A connection that misbehaves hurts itself: it is read at
most `read_budget_bytes` per turn of the loop, not read at all while it does not take its replies or has too
many bytes in flight, and closed when half a frame or an unread reply stands still for `stall_timeout_s`.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Final, Protocol

from tensord.ipc.errors import (
    BadFrame,
    BadRequest,
    DeadlineExceeded,
    DuplicateRequestId,
    IngestFull,
    InternalError,
    NotPermitted,
    PayloadTooLarge,
    ShuttingDown,
    TensordError,
    TooManyInFlight,
    TooManyRows,
    UnknownFrame,
    UnknownHandle,
    UnsupportedVersion,
)
from tensord.ipc.limits import (
    PRIORITY_CLASSES,
    PROTOCOL_VERSION,
    REQUEST_META_BYTES_MAX,
    SOCKET_BUFFER_BYTES,
)
from tensord.ipc.wire import (
    INFER,
    INFER_BYTES,
    LATEST_NEEDS_SESSION,
    TRACE_BYTES,
    Flags,
    FrameReader,
    FrameType,
    Hello,
    Welcome,
    decode_open,
    encode_error,
    encode_models,
    encode_opened,
    frame,
)

from .client_arenas import ClientArena, ClientArenas
from .forms import Form
from .ingest import RAGGED_SLAB, Ingest, Lease
from .models import Model, Models
from .requests import InferRequest
from .streams import Peer, Stream, Streams
from .users import Credentials, User, Users

_flows = count(1)
"""Each connection is a flow of its own, for as long as its requests are in no session."""

_unpack_infer: Final = INFER.unpack_from

TRACE: Final = int(Flags.TRACE)
LATEST: Final = int(Flags.LATEST)
INFER_FRAME: Final = int(FrameType.INFER)
"""Plain integers: an enumeration's member costs a look-up and a slower comparison for every frame."""

INGEST_RETRY_MS: Final = 50
"""When there may be room in the ingest arena again: some batches from now."""

FRAMES_PER_TURN: Final = 128
"""Frames that a connection may have handled before the others have their turn: a million bytes of tiny frames
would keep everybody else waiting for a second. A millisecond or two; with half as many, throughput falls by a tenth."""


class Pause(IntEnum):
    """Why a connection is not read now: bits of an int (an IntFlag's operators cost a microsecond each)."""

    BUDGET = 1  # it has had its share of this turn
    UNREAD = 2  # it does not take its replies
    IN_FLIGHT = 4  # it has too many bytes in flight


@dataclass(slots=True)
class Limits:
    """The knobs that connections look at."""

    in_flight_max: int = 1024
    in_flight_bytes_max: int = 64 * 1024**2
    inline_bytes_max: int = 1024**2
    arena_bytes_max: int = 1024**3
    read_budget_bytes: int = 1024**2
    stall_timeout_ns: int = 30 * 10**9


class Host(Protocol):
    """What a connection needs of the front end."""

    instance: int
    ingest: Ingest
    ingest_view: memoryview
    limits: Limits
    models: Models
    users: Users
    scratch: memoryview
    draining: bool
    arriving_bytes: int
    """Inline payloads that are being received, over all connections."""
    watched: set["Connection"]
    """Those that wait for their clients to go on: whoever stands still too long is found here."""

    def connection_opened(self, connection: "Connection") -> TensordError | None: ...
    def connection_closed(self, connection: "Connection") -> None: ...
    def count_refused(self, model: Model) -> None: ...
    def submit(self, now: int, request: InferRequest) -> None: ...
    def cancel(self, request: InferRequest) -> None: ...
    def want_arena(self, connection: "Connection", request_id: int, nbytes: int) -> None: ...
    def return_arena(self, arena: ClientArena) -> None: ...


class Connection(Peer):
    """The stream's peer and the wire's frame sink in one."""

    __slots__ = (
        "_arriving",
        "_client_ended",
        "_ended_writing",
        "_frames",
        "_frames_seen",
        "_handle_of",
        "_handles",
        "_ingest_view",
        "_limits",
        "_pauses",
        "_replies",
        "_said_close",
        "_turn_bytes",
        "_turn_frames",
        "_unread_bytes",
        "_watched",
        "arenas",
        "closed",
        "credentials",
        "flow",
        "greeted",
        "host",
        "in_flight",
        "in_flight_bytes",
        "progress_ns",
        "reader",
        "stream",
        "tenant",
        "user",
    )

    def __init__(self, host: Host) -> None:
        self.host = host
        self._limits, self._watched = host.limits, host.watched
        self._ingest_view = host.ingest_view
        self.stream: Stream
        self.reader = FrameReader(self, host.scratch, REQUEST_META_BYTES_MAX)
        self.credentials: Credentials
        self.user: User
        self.tenant = ""
        """The user, and the name that the client gave."""
        self.greeted = False
        self.closed = False
        self._said_close = False
        """The client sends nothing more that counts: it gets its answers, then our end of the stream."""
        self._client_ended = False
        """It has ended its half of the stream: no EOF will tell us again."""
        self._ended_writing = False
        self._unread_bytes = 0
        self.flow = next(_flows)
        self.in_flight: dict[int, InferRequest] = {}
        self.in_flight_bytes = 0
        self.arenas = ClientArenas(self, host.return_arena)
        self.progress_ns = time.monotonic_ns()
        """Last time that the stream went on, in whichever direction it should."""
        self._handles: dict[int, Model] = {}
        self._handle_of: dict[str, int] = {}
        self._arriving: InferRequest | None = None
        self._replies: list[bytes | memoryview] = []
        self._pauses = 0
        self._turn_bytes = 0
        self._turn_frames = 0
        self._frames = 0
        self._frames_seen = 0

    # ── stream ──────────────────────────────────────────────────────────────────────────────────

    def start(self, streams: Streams, sock: socket.socket) -> None:
        """A client has connected; the socket is the connection's now."""
        self.stream = Stream(streams, sock, self)
        self.credentials = Credentials.of(sock)
        self.user = self.host.users.of(self.credentials)
        self.tenant = self.user.name
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._watched.add(self)
        refusal = self.host.connection_opened(self)
        if refusal is not None:
            self.send_error(0, refusal)
            self.stream.close()

    def connection_lost(self) -> None:
        self.closed = True
        self._watched.discard(self)
        self._drop_arriving()
        self.host.connection_closed(self)
        self.arenas.detach_all()

    def get_buffer(self) -> memoryview:
        return self.reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.reader.buffer_updated(nbytes)
        except BadFrame as error:
            self._fail_stream(error)
            return
        if self.reader.mid_frame and self._frames != self._frames_seen:  # one frame, however slowly fed, is one wait
            self._frames_seen = self._frames
            self.progress_ns = time.monotonic_ns()
            self._watched.add(self)
        self._turn_bytes += nbytes
        if self._turn_bytes > self._limits.read_budget_bytes:
            self._end_turn()

    def eof_received(self) -> bool:
        """The client is gone, unless it said CLOSE and waits for answers."""
        self._client_ended = True
        if self._said_close and (self.in_flight or self.arenas.wanted):
            return True
        self.progress_ns = time.monotonic_ns()  # the stream closes when what is written has been taken
        self._watched.add(self)
        return False

    def pause_writing(self) -> None:
        self.progress_ns = time.monotonic_ns()
        self._watched.add(self)
        self.pause(Pause.UNREAD)

    def resume_writing(self) -> None:
        self.resume(Pause.UNREAD)

    # ── flow ────────────────────────────────────────────────────────────────────────────────────

    def pause(self, reason: int) -> None:
        """Neither read nor begin a frame for this reason."""
        self.reader.halt()
        if not self._pauses and not self.closed:
            self.stream.pause_reading()
        self._pauses |= reason

    def resume(self, reason: int) -> None:
        """This reason is gone; read on soon if it was the last."""
        if self._pauses & reason:
            self._pauses &= ~reason
            if not self._pauses:
                self.progress_ns = time.monotonic_ns()
                asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        """First the frames that are here already, then the socket, unless there is a new reason not to."""
        if self._pauses or self.closed or self.stream.closing:
            return
        try:
            self.reader.go_on()
        except BadFrame as error:
            self._fail_stream(error)
        if not self._pauses and not self.closed and not self.stream.closing:
            self.stream.resume_reading()

    def _end_turn(self) -> None:
        """The others are next."""
        if not self._pauses & Pause.BUDGET:
            self.pause(Pause.BUDGET)
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_bytes = self._turn_frames = 0
        self._pauses &= ~Pause.BUDGET
        self._read_on()

    def check_stall(self, now_ns: int, hello_timeout_ns: int) -> None:
        """End the connection if it stands still where it should go on; leave the watched if there is no such place."""
        self._expire_arriving(now_ns)
        unread_bytes = self.stream.unsent_bytes
        if unread_bytes < self._unread_bytes or (unread_bytes and not self._unread_bytes):
            self.progress_ns = now_ns
        self._unread_bytes = unread_bytes
        still_ns = now_ns - self.progress_ns
        if unread_bytes or self._ended_writing or self.stream.closing:
            if still_ns > self._limits.stall_timeout_ns:
                self.stream.abort()
        elif self.reader.mid_frame and not self._pauses:
            if still_ns > self._limits.stall_timeout_ns:
                self._fail_stream(BadFrame("half a frame, then silence"))
        elif not self.greeted:
            if still_ns > hello_timeout_ns:
                self._fail_stream(BadFrame("no HELLO"))
        elif not self.reader.mid_frame:
            self._watched.discard(self)

    def send(self, data: bytes) -> None:
        """Write, unless the client is gone."""
        if not self.closed and not self._ended_writing and not self.stream.closing:
            self.stream.write(data)
            self._watched.add(self)  # until a sweep sees that it was taken

    def reply(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Put a RESULT behind those that `send_replies` will send; True if it is the first."""
        self._replies += parts
        return len(self._replies) == len(parts)

    def send_replies(self) -> None:
        """Several replies to one client go out in one write."""
        data = b"".join(self._replies)
        self._replies.clear()
        self.send(data)

    def send_error(self, request_id: int, error: TensordError) -> None:
        """The final answer of a request; with request id 0, a word about the connection."""
        self.send(encode_error(request_id, error))

    def _fail_stream(self, error: TensordError) -> None:
        self._drop_arriving()
        self.send_error(0, error)
        self._close()

    def _close(self) -> None:
        """End the connection when the client has taken what is written; `check_stall` bounds how long that may last."""
        if not self.closed and not self.stream.closing:
            self.progress_ns = time.monotonic_ns()
            self._watched.add(self)
            self.stream.close()

    def _drop_arriving(self) -> None:
        """The payload under way will never be complete."""
        request, self._arriving = self._arriving, None
        if request is not None:
            self._arrived(request)
            self.reader.drop_destinations()
            self.finished(request)

    # ── frames ──────────────────────────────────────────────────────────────────────────────────

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        """See FrameSink. An error in a frame's content skips the frame and answers it."""
        if self._said_close:
            return None
        self._turn_frames += 1
        self._frames += 1
        if self._turn_frames >= FRAMES_PER_TURN:
            self._end_turn()
        try:
            if frame_type == INFER_FRAME and self.greeted:
                return self._infer(flags, request_id, meta, payload_bytes)
            self._control(frame_type, request_id, meta)
        except BadFrame:
            raise
        except TensordError as error:
            self.send_error(0 if isinstance(error, DuplicateRequestId) else request_id, error)
        return None

    def frame_finished(self) -> None:
        """See FrameSink."""
        self._frames_seen = -1  # what comes next is another frame, and another wait
        request, self._arriving = self._arriving, None
        if request is not None:
            self._arrived(request)
            self._submit(request, time.monotonic_ns())

    def _submit(self, request: InferRequest, now: int) -> None:
        """The request is complete. Only now may its bytes stop the reading: it would wait for itself before."""
        if self.in_flight_bytes > self._limits.in_flight_bytes_max:
            self.pause(Pause.IN_FLIGHT)
        self.host.submit(now, request)

    def _control(self, frame_type: int, request_id: int, meta: memoryview) -> None:
        if not self.greeted:
            if frame_type != FrameType.HELLO:
                raise BadFrame("the first frame must be HELLO")
            self._greet(request_id, meta)
            return
        match frame_type:
            case FrameType.OPEN:
                self._open(request_id, meta)
            case FrameType.ATTACH:
                self._attach(request_id, meta)
            case FrameType.DETACH:
                self.arenas.detach(meta)
            case FrameType.CANCEL:
                if (request := self.in_flight.get(request_id)) is not None:
                    self.host.cancel(request)
            case FrameType.PING:
                self.send(frame(FrameType.PONG, request_id))
            case FrameType.LIST:
                self._end_turn()
                self.send(encode_models(request_id, self.host.models.entries(self.credentials)))
            case FrameType.CLOSE:
                self._said_close = True
                self._end_if_answered()
            case FrameType.HELLO:
                raise BadRequest("HELLO", "repeated", "say it once, as the first frame")
            case _:
                raise UnknownFrame(frame_type)

    def _greet(self, request_id: int, meta: memoryview) -> None:
        hello = Hello.decode(meta)
        if not hello.version_min <= PROTOCOL_VERSION <= hello.version_max:
            self.send_error(request_id, UnsupportedVersion(hello.version_min, hello.version_max, PROTOCOL_VERSION))
            self._close()
            return
        if hello.tenant:
            self.tenant = f"{self.user.name}/{hello.tenant}"
        limits = self._limits
        self.greeted = True
        welcome = Welcome(
            PROTOCOL_VERSION, self.host.instance, limits.in_flight_max, limits.inline_bytes_max, limits.arena_bytes_max
        )
        self.send(welcome.encode(request_id))

    def _open(self, request_id: int, meta: memoryview) -> None:
        self._end_turn()  # the answer may be a thousand times as long as the question
        name = decode_open(meta)
        model = self.host.models.find(name)
        if not model.access.permits(self.credentials.uid, self.credentials.gids):
            self.host.count_refused(model)
            raise NotPermitted(model.name, self.credentials.uid)
        handle = self._handle_of.setdefault(name, len(self._handle_of) + 1)
        self._handles[handle] = model
        self.send(encode_opened(request_id, handle, model.spec))

    def _end_if_answered(self) -> None:
        """After CLOSE and the last answer, end our half of the stream and wait for the client to end its own.

        Until then it may read results in its arenas; closing would give their memory back.
        """
        if not self.in_flight and not self.arenas.wanted and not self.closed and not self._ended_writing:
            if self._client_ended:
                self._close()
                return
            self._ended_writing = True
            self._watched.add(self)
            self.progress_ns = time.monotonic_ns()
            self.stream.write_eof()

    # ── arenas ──────────────────────────────────────────────────────────────────────────────────

    def _attach(self, request_id: int, meta: memoryview) -> None:
        nbytes = self.arenas.want(meta, self._limits.arena_bytes_max, draining=self.host.draining)
        try:
            self.host.want_arena(self, request_id, nbytes)
        except TensordError:
            self.arenas.wanted -= 1
            raise

    def arena_answered(self) -> None:
        """An ATTACH has had its answer."""
        if self._said_close:
            self._end_if_answered()

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def _infer(self, flags: int, request_id: int, meta: memoryview, payload_bytes: int) -> Sequence[memoryview] | None:
        """Check a request and lease its slots. Raises what the client gets."""
        now = time.monotonic_ns()
        if request_id in self.in_flight:  # first: with this id it may get no other answer
            raise DuplicateRequestId(request_id)
        if not request_id:
            raise BadRequest("request_id", "0", "count from 1: answers with id 0 are about the connection")
        head = bytes(meta)
        if len(head) < INFER_BYTES:
            raise BadRequest("meta_bytes", str(len(head)), f"INFER has at least {INFER_BYTES}")
        handle, priority, inputs, outputs, _, deadline_ns, session = _unpack_infer(head)
        model = self._handles.get(handle)
        if model is None:
            raise UnknownHandle(handle)
        if priority >= PRIORITY_CLASSES:
            raise BadRequest("priority", str(priority), "use 0 (high), 1 (normal) or 2 (low)")
        if deadline_ns < 0:
            raise BadRequest("deadline_ns", str(deadline_ns), "use CLOCK_MONOTONIC in nanoseconds, or 0")
        if flags & LATEST and not session:
            raise BadRequest("session", "0", LATEST_NEEDS_SESSION)
        headers = head[INFER_BYTES + TRACE_BYTES :] if flags & TRACE else head[INFER_BYTES:]
        form, result_headers = self.arenas.form(model, inputs, outputs, headers)
        self._check_limits(model, form, payload_bytes)
        deadline = deadline_ns or now + model.timeout_ns
        priority = max(priority, self.user.quota.priority)
        request = InferRequest(self, request_id, model, form, priority, session, deadline, now, bool(flags & LATEST))
        request.result_headers = result_headers
        if payload_bytes > self.reader.in_hand:
            self._check_arriving(payload_bytes)
        if form.places:
            self.arenas.reserve(request)
        if form.inline_inputs or form.inline_outputs:
            request.lease = self._lease(request)
        self.in_flight[request_id] = request
        self.in_flight_bytes += form.payload_bytes + form.reply_bytes
        if payload_bytes <= self.reader.in_hand:  # small: all of it is here
            self._take_payload(request, payload_bytes)
            self._submit(request, now)
            return None
        self._arriving = request
        self.host.arriving_bytes += payload_bytes
        return self._destinations(request)

    def _check_limits(self, model: Model, form: Form, payload_bytes: int) -> None:
        limits = self._limits
        if form.rows > model.rows_max:
            raise TooManyRows(model.name, form.rows, model.rows_max)
        if payload_bytes != form.payload_bytes:
            remedy = f"the inline inputs have {form.payload_bytes}"
            raise BadRequest("payload_bytes", str(payload_bytes), remedy)
        if max(payload_bytes, form.reply_bytes) > limits.inline_bytes_max:
            raise PayloadTooLarge(max(payload_bytes, form.reply_bytes), limits.inline_bytes_max)
        if len(self.in_flight) >= limits.in_flight_max:
            raise TooManyInFlight(limits.in_flight_max)
        if self.host.draining:
            raise ShuttingDown()

    def _check_arriving(self, payload_bytes: int) -> None:
        """Payloads that are promised and not here may take half of the arena: whole requests always find room."""
        if self.host.arriving_bytes + payload_bytes > self.host.ingest.nbytes // 2:
            error = IngestFull(payload_bytes)
            error.retry_after_ms = INGEST_RETRY_MS
            raise error

    def _arrived(self, request: InferRequest) -> None:
        """Its payload is here, or will never be."""
        self.host.arriving_bytes -= request.form.payload_bytes

    def _expire_arriving(self, now_ns: int) -> None:
        """A deadline does not wait for the rest of a payload: that is skipped, and the slots go back."""
        request = self._arriving
        if request is not None and now_ns > request.deadline_ns:
            self._drop_arriving()
            late_ms = round((now_ns - request.deadline_ns) / 1e6, 3)
            self.send_error(request.request_id, DeadlineExceeded("arrival", late_ms))

    def _lease(self, request: InferRequest) -> Lease:
        """Rows of the ingest arena for all inline tensors, inputs and outputs together. Raises IngestFull."""
        form = request.form
        if form.inline_offsets:  # tensors that differ in size share one slab of cache lines
            slab = self.host.ingest.slab(RAGGED_SLAB, form.slab_row_bytes)
        else:
            slab = self.host.ingest.slab((request.model, form.inline_inputs, form.inline_outputs), form.slab_row_bytes)
        lease = slab.lease(form.slab_rows)
        if lease is None:
            self.arenas.release(request)
            error = IngestFull(form.payload_bytes + form.reply_bytes)
            error.retry_after_ms = INGEST_RETRY_MS
            raise error
        return lease

    def _take_payload(self, request: InferRequest, payload_bytes: int) -> None:
        """Copy the payload, which is here, to where it belongs."""
        if not payload_bytes:
            return
        form, view, payload = request.form, self._ingest_view, self.reader.payload_in_hand(payload_bytes)
        if len(form.inline_inputs) == 1:
            offset = request.inline_offset(0)
            view[offset : offset + payload_bytes] = payload
            return
        start = 0
        for destination in self._destinations(request):
            stop = start + len(destination)
            destination[:] = payload[start:stop]
            start = stop

    def _destinations(self, request: InferRequest) -> list[memoryview]:
        """Where the payload belongs: one stretch per inline input."""
        view, form = self._ingest_view, request.form
        destinations = []
        for position in range(len(form.inline_inputs)):
            offset = request.inline_offset(position)
            destinations.append(view[offset : offset + form.inline_bytes[position]])
        return destinations

    def finished(self, request: InferRequest) -> None:
        """The request has had its answer, or nobody wants it: give its slots back. Once per request."""
        if self.in_flight.pop(request.request_id, None) is None:
            raise InternalError("a request was finished twice")
        if request.lease is not None:
            request.lease.release()
            request.lease = None
        if request.ranges:
            self.arenas.release(request)
        form = request.form
        self.in_flight_bytes -= form.payload_bytes + form.reply_bytes
        if self._pauses & Pause.IN_FLIGHT and self.in_flight_bytes <= self._limits.in_flight_bytes_max:
            self.resume(Pause.IN_FLIGHT)
        if self._said_close:
            self._end_if_answered()
