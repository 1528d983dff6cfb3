"""The wire protocol as a codec without I/O: bytes in, frames out, and back.

Theory
------
A connection is a Unix stream socket that carries frames in both directions. Every frame is

    ┌────────────────────── header, 24 bytes ─────────────────────┐
    │ magic u16 │ type u8 │ flags u8 │ meta_bytes u32 │           │
    │ request_id u64      │ payload_bytes u64         │           │
    ├────────────────────── meta, meta_bytes ─────────────────────┤
    │ fixed fields of the type, then tensor headers or names      │
    ├────────────────────── payload, payload_bytes ───────────────┤
    │ the inline tensors' bytes, in the order of their headers    │
    └─────────────────────────────────────────────────────────────┘

all integers little-endian, nothing padded. Lengths come first and are bounded, so a frame that is
wrong in its *content* is skipped and answered with an ERROR while the stream stays in step; only a
wrong magic or a length beyond its bound ends the connection.

Rules of this file
1. Nothing here owns a socket, a clock or a mapping. `FrameReader` is handed bytes and hands frames to
   a sink; payload bytes go straight to wherever the sink says, so that a socket can be read directly
   into shared memory.
2. Every format is one `struct.Struct`, one diagram, one dataclass and one size assertion, side by side.
3. Decoders check the form (lengths, counts, ranges of enums) and raise BadRequest; the meaning
   (does this arena exist, is this the model's shape?) is the receiver's business. Only FrameReader raises
   BadFrame, which ends the connection.

`docs/protocol.md` is the same text for people who write a client in another language.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Protocol

import msgspec

from .errors import BadFrame, BadRequest, TensordError, rebuild
from .limits import (
    DIMENSION_MAX,
    LABELS_MAX,
    META_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    PRIORITY_CLASSES,
    TENSOR_DIMENSIONS_MAX,
    TENSORS_MAX,
)
from .tensors import Dimension, DType, ModelSpec, TensorSpec

MAGIC: Final = 0x7444  # "Dt" in memory


class FrameType(IntEnum):
    """What a frame is; c: sent by clients, d: sent by the daemon."""

    HELLO = 1  # c: first frame of a connection: versions and tenant
    WELCOME = 2  # d: the answer: version, instance and limits
    OPEN = 3  # c: open a model by name, version or label
    OPENED = 4  # d: its handle and specification
    ATTACH = 5  # c: ask for an arena
    ATTACHED = 6  # d: its number; the file descriptor travels with the frame (SCM_RIGHTS)
    DETACH = 7  # c: give an arena back; no answer
    INFER = 8  # c: a request
    RESULT = 9  # d: its outputs
    ERROR = 10  # d: its error; with request id 0, the connection's
    CANCEL = 11  # c: the request with this id is no longer wanted; it still gets its one answer
    PING = 12  # c: are you there?
    PONG = 13  # d: yes
    LIST = 14  # c: which models are served?
    MODELS = 15  # d: these
    CLOSE = 16  # c: no more requests will come: answer what is in flight, then close.  d: reconnect elsewhere or later


class Flags(IntFlag):
    """Flags of the header."""

    MORE = 1  # reserved for streamed parts before the final RESULT; never set in version 1
    TRACE = 2  # INFER: a 24-byte W3C trace context (trace id, parent id) follows the fixed fields
    LATEST = 4  # INFER: take the place of a waiting request of the same session that has this flag, too


class Lane(IntEnum):
    """How a tensor travels."""

    INLINE = 0  # its bytes are in the frame's payload
    ARENA = 1  # its bytes lie in an arena of this connection; the frame says where


HEADER = struct.Struct("<HBBIQQ")
HEADER_BYTES: Final = 24
assert HEADER.size == HEADER_BYTES

# HELLO     version_min u16 │ version_max u16 │ tenant_bytes u16 │ reserved u16 │ tenant (UTF-8)
HELLO = struct.Struct("<HHHH")
assert HELLO.size == 8

# WELCOME   version u16 │ reserved u16 │ in_flight_max u32 │ instance u64 │ inline_bytes_max u64 │ arena_bytes_max u64
WELCOME = struct.Struct("<HHIQQQ")
assert WELCOME.size == 32

# OPEN      name_bytes u16 │ name (UTF-8): "digits", "digits:3" (a version) or "digits:canary" (a label)
NAME = struct.Struct("<H")
assert NAME.size == 2

# OPENED    handle u32 │ version u32 │ rows_max u32 │ idempotent u8 │ inputs u8 │ outputs u8 │ name_bytes u8 │ name
#           then per tensor, inputs first:
#           dtype u8 │ ndim u8 │ name_bytes u8 │ optional u8 │ labels u32 │ ndim × u64 (0: a free dimension) │ name
#           per free dimension: max u64 │ from_data u8 │ name_bytes u8 │ reserved u16 │ name
#           labels × (u16 │ text)
OPENED = struct.Struct("<IIIBBBB")
SPEC = struct.Struct("<BBBBI")
DIMENSION = struct.Struct("<QBBH")
assert OPENED.size == 16
assert SPEC.size == 8
assert DIMENSION.size == 12

# ATTACH, DETACH   arena u32 (0 in ATTACH) │ reserved u32 │ nbytes u64 (0 in DETACH)
# ATTACHED         arena u32               │ reserved u32 │ nbytes u64
ARENA = struct.Struct("<IIQ")
assert ARENA.size == 16

# INFER     handle u32 │ priority u8 │ inputs u8 │ outputs u8 │ reserved u8 │ deadline_ns i64 │ session u64
#           [trace 24] │ inputs × tensor header │ outputs × tensor header (lane ARENA only, ndim 0)
INFER = struct.Struct("<IBBBBqQ")
INFER_BYTES: Final = 24
assert INFER.size == INFER_BYTES
assert HEADER.size + INFER.size <= 64
TRACE_BYTES: Final = 24

# tensor header   index u8 │ dtype u8 │ ndim u8 │ lane u8 │ arena u32 │ offset u64 │ nbytes u64 │ ndim × u64
TENSOR = struct.Struct("<BBBBIQQ")
assert TENSOR.size == 24

# RESULT    version u32 │ batch_rows u32 │ queue_us u32 │ compute_us u32 │ outputs u16 │ reserved u16 │ reserved u32
#           outputs × tensor header
RESULT = struct.Struct("<IIIIHHI")
RESULT_BYTES: Final = 24
assert RESULT.size == RESULT_BYTES

# ERROR     code u16 │ retry u8 │ reserved u8 │ retry_after_ms u32 (0xFFFFFFFF: unknown) │ text_bytes u32
#           data_bytes u32
#           text (UTF-8) │ data (a JSON object)
ERROR = struct.Struct("<HBBIII")
assert ERROR.size == 16
RETRY_UNKNOWN: Final = 0xFFFFFFFF

# MODELS    count u32 │ reserved u32 │ count × (version u32 │ ready u8 │ name_bytes u8 │ reserved u16 │ name)
COUNT = struct.Struct("<II")
MODEL = struct.Struct("<IBBH")
assert COUNT.size == 8
assert MODEL.size == 8


# ── frames as bytes ─────────────────────────────────────────────────────────────────────────────


def frame(frame_type: FrameType, request_id: int, meta: bytes = b"", *, flags: int = 0) -> bytes:
    """A frame without payload."""
    return HEADER.pack(MAGIC, frame_type, flags, len(meta), request_id, 0) + meta


class FrameSink(Protocol):
    """What a FrameReader drives. Exceptions of a sink end the connection."""

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        """A frame's header and meta are here; `meta` is valid during the call only.

        With a payload, returns the writable buffers that it fills in this order, together exactly
        `payload_bytes` long, or None to have it skipped. Without, the frame is complete and the
        result is ignored.
        """

    def frame_finished(self) -> None:
        """The payload of the frame that started last is complete (also called when it was skipped)."""


_unpack_header: Final = HEADER.unpack_from


class FrameReader:
    """Cuts a stream into frames; shaped like asyncio's BufferedProtocol.

    Between `get_buffer` and `buffer_updated` nothing else may use the scratch buffer, which many readers
    of one event loop therefore share: an idle connection costs its object and no buffer.

    A payload that is not complete in the scratch buffer is received directly into the sink's buffers:
    one copy from the kernel to its final place.
    """

    __slots__ = (
        "_destinations",
        "_filled",
        "_halted",
        "_meta_bytes_max",
        "_payload_start",
        "_remaining",
        "_scratch",
        "_sink",
        "_stash",
        "in_hand",
    )

    def __init__(self, sink: FrameSink, scratch: memoryview, meta_bytes_max: int = META_BYTES_MAX) -> None:
        assert len(scratch) > HEADER.size
        self._sink = sink
        self._meta_bytes_max = meta_bytes_max
        self._scratch = scratch
        self._stash = b""
        self._halted = False
        self.in_hand = 0
        """Bytes that follow the meta of the frame that is being started: with them its payload may be complete."""
        self._payload_start = 0
        self._remaining = 0
        self._filled = 0
        self._destinations: list[memoryview] | None = None

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete: silence now is a stall, and an end is an error."""
        return self._remaining > 0 or bool(self._stash)

    def get_buffer(self, _hint: int = -1) -> memoryview:
        """Where the next bytes of the stream belong. Never empty."""
        if self._remaining and self._destinations:
            return self._destinations[0][self._filled :]
        if not self._stash:
            return self._scratch
        stash_bytes = len(self._stash)
        self._ensure_scratch(stash_bytes)
        self._scratch[:stash_bytes] = self._stash
        return self._scratch[stash_bytes:]

    def _ensure_scratch(self, stash_bytes: int) -> None:
        """A meta longer than the shared scratch gets a buffer of its own."""
        if stash_bytes >= len(self._scratch) // 2:
            self._scratch = memoryview(bytearray(HEADER.size + self._meta_bytes_max + len(self._scratch)))

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` were written into the buffer that `get_buffer` returned last. Raises BadFrame."""
        if self._remaining and self._destinations:
            self._advance(nbytes)
            return
        end = len(self._stash) + nbytes
        self._stash = b""
        self._cut(self._skip_or_fill(0, end) if self._remaining else 0, end)

    def payload_in_hand(self, nbytes: int) -> memoryview:
        """The payload of the frame that is being started, where `in_hand` says that all of it is here.

        A sink that takes it returns None. Valid as long as the meta is.
        """
        assert nbytes <= self.in_hand
        return self._scratch[self._payload_start : self._payload_start + nbytes]

    def halt(self) -> None:
        """Begin no further frame before `go_on`, however many are here. Until then nothing may be received."""
        self._halted = True

    def go_on(self) -> None:
        """Take up the frames that had to wait. Raises BadFrame."""
        self._halted = False
        stash, self._stash = self._stash, b""
        self._scratch[: len(stash)] = stash
        self._cut(0, len(stash))

    def _cut(self, position: int, end: int) -> None:
        """Start the frames that lie in the scratch buffer; keep what is left for later."""
        scratch, sink = self._scratch, self._sink
        while end - position >= HEADER_BYTES and not self._halted:
            magic, frame_type, flags, meta_bytes, request_id, payload_bytes = _unpack_header(scratch, position)
            if magic != MAGIC:
                raise BadFrame(f"magic is {magic:#06x}, not {MAGIC:#06x}")
            if meta_bytes > self._meta_bytes_max:
                raise BadFrame(f"meta_bytes is {meta_bytes}, at most {self._meta_bytes_max}")
            if payload_bytes > PAYLOAD_BYTES_MAX:
                raise BadFrame(f"payload_bytes is {payload_bytes}, at most {PAYLOAD_BYTES_MAX}")
            meta_start = position + HEADER_BYTES
            meta_end = meta_start + meta_bytes
            if meta_end > end:
                break
            self.in_hand = end - meta_end
            self._payload_start = meta_end
            meta = scratch[meta_start:meta_end]
            destinations = sink.frame_started(frame_type, flags, request_id, meta, payload_bytes)
            position = meta_end
            if payload_bytes:
                if payload_bytes <= end - position and (destinations is None or len(destinations) == 1):
                    if destinations is not None:
                        destinations[0][:] = scratch[position : position + payload_bytes]  # small: all of it is here
                    position += payload_bytes
                    sink.frame_finished()
                    continue
                self._remaining = payload_bytes
                self._filled = 0
                self._destinations = None if destinations is None else [each for each in destinations if len(each)]
                position = self._skip_or_fill(position, end)
        if position < end:
            self._stash = bytes(scratch[position:end])

    def _skip_or_fill(self, position: int, end: int) -> int:
        """Use the payload bytes that lie in the scratch buffer; return the position behind them."""
        available = min(self._remaining, end - position)
        if self._destinations is None:
            self._remaining -= available
            if not self._remaining:
                self._sink.frame_finished()
            return position + available
        stop = position + available
        while position < stop:
            destination = self._destinations[0]
            part = min(len(destination) - self._filled, stop - position)
            destination[self._filled : self._filled + part] = self._scratch[position : position + part]
            position += part
            self._advance(part)
        return position

    def _advance(self, nbytes: int) -> None:
        assert self._destinations
        self._filled += nbytes
        self._remaining -= nbytes
        if self._filled == len(self._destinations[0]):
            self._destinations.pop(0)
            self._filled = 0
        if not self._remaining:
            self._destinations = None
            self._sink.frame_finished()

    def drop_destinations(self) -> None:
        """Skip the rest of the payload under way: its buffers are needed elsewhere."""
        self._destinations = None


# ── handshake ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hello:
    """A client's first frame."""

    version_min: int
    version_max: int
    tenant: str

    def encode(self, request_id: int) -> bytes:
        """The frame."""
        tenant = self.tenant.encode()
        meta = HELLO.pack(self.version_min, self.version_max, len(tenant), 0) + tenant
        return frame(FrameType.HELLO, request_id, meta)

    @classmethod
    def decode(cls, meta: memoryview) -> "Hello":
        """Raises BadRequest."""
        version_min, version_max, tenant_bytes, _ = _fixed(HELLO, meta, "HELLO")
        return cls(version_min, version_max, _text(meta, HELLO.size, tenant_bytes, "HELLO", exact=True))


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon's answer to HELLO."""

    version: int
    instance: int
    """Changes when the daemon restarts; handles and arenas of another instance mean nothing."""
    in_flight_max: int
    inline_bytes_max: int
    arena_bytes_max: int

    def encode(self, request_id: int) -> bytes:
        """The frame."""
        meta = WELCOME.pack(
            self.version, 0, self.in_flight_max, self.instance, self.inline_bytes_max, self.arena_bytes_max
        )
        return frame(FrameType.WELCOME, request_id, meta)

    @classmethod
    def decode(cls, meta: memoryview) -> "Welcome":
        """Raises BadRequest."""
        version, _, in_flight_max, instance, inline_max, arena_max = _fixed(WELCOME, meta, "WELCOME")
        return cls(version, instance, in_flight_max, inline_max, arena_max)


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def encode_open(request_id: int, name: str) -> bytes:
    """OPEN `name`, `name:version` or `name:label`."""
    encoded = name.encode()
    return frame(FrameType.OPEN, request_id, NAME.pack(len(encoded)) + encoded)


def decode_open(meta: memoryview) -> str:
    """The name. Raises BadRequest."""
    (name_bytes,) = _fixed(NAME, meta, "OPEN")
    return _text(meta, NAME.size, name_bytes, "OPEN", exact=True)


def _encode_spec(spec: TensorSpec) -> bytes:
    name = spec.name.encode()
    head = SPEC.pack(spec.dtype, len(spec.shape), len(name), spec.optional, len(spec.labels))
    shape = [0 if isinstance(each, Dimension) else each for each in spec.shape]
    dimensions = b"".join(map(_encode_dimension, spec.dimensions))
    labels = [label.encode() for label in spec.labels]
    texts = b"".join(NAME.pack(len(label)) + label for label in labels)
    return head + struct.pack(f"<{len(shape)}Q", *shape) + name + dimensions + texts


def _encode_dimension(dimension: Dimension) -> bytes:
    name = dimension.name.encode()
    return DIMENSION.pack(dimension.max, dimension.from_data, len(name), 0) + name


def encode_opened(request_id: int, handle: int, spec: ModelSpec) -> bytes:
    """OPENED: the handle and the model's specification."""
    name = spec.name.encode()
    head = OPENED.pack(
        handle, spec.version, spec.rows_max, spec.idempotent, len(spec.inputs), len(spec.outputs), len(name)
    )
    return frame(FrameType.OPENED, request_id, head + name + b"".join(map(_encode_spec, (*spec.inputs, *spec.outputs))))


def decode_opened(meta: memoryview) -> tuple[int, ModelSpec]:
    """Handle and specification. Raises BadRequest."""
    handle, version, rows_max, idempotent, inputs, outputs, name_bytes = _fixed(OPENED, meta, "OPENED")
    if inputs > TENSORS_MAX or outputs > TENSORS_MAX:
        raise _malformed("OPENED", f"{inputs} inputs and {outputs} outputs")
    position = OPENED.size
    name = _text(meta, position, name_bytes, "OPENED")
    position += name_bytes
    specs = []
    for _ in range(inputs + outputs):
        tensor, position = _decode_spec(meta, position)
        specs.append(tensor)
    if position != len(meta):
        raise _malformed("OPENED", "longer than its specifications")
    spec = ModelSpec(name, version, tuple(specs[:inputs]), tuple(specs[inputs:]), rows_max, bool(idempotent))
    return handle, spec


def _decode_spec(meta: memoryview, position: int) -> tuple[TensorSpec, int]:
    dtype, ndim, name_bytes, optional, label_count = _fixed(SPEC, meta, "OPENED", position)
    if ndim >= TENSOR_DIMENSIONS_MAX or label_count > LABELS_MAX:
        raise _malformed("OPENED", f"a tensor of {ndim} dimensions with {label_count} labels")
    position += SPEC.size
    sizes = _unpack_shape(ndim, meta, position, "OPENED")
    position += 8 * ndim
    name = _text(meta, position, name_bytes, "OPENED")
    position += name_bytes
    shape: list[int | Dimension] = list(sizes)
    for axis, size in enumerate(sizes):
        if not size:
            shape[axis], position = _decode_dimension(meta, position)
    labels = []
    for _ in range(label_count):
        (label_bytes,) = _fixed(NAME, meta, "OPENED", position)
        labels.append(_text(meta, position + NAME.size, label_bytes, "OPENED", nbytes_max=META_BYTES_MAX))
        position += NAME.size + label_bytes
    return TensorSpec(name, _dtype(dtype), tuple(shape), tuple(labels), bool(optional)), position


def _decode_dimension(meta: memoryview, position: int) -> tuple[Dimension, int]:
    largest, from_data, name_bytes, _ = _fixed(DIMENSION, meta, "OPENED", position)
    position += DIMENSION.size
    return Dimension(_text(meta, position, name_bytes, "OPENED"), largest, bool(from_data)), position + name_bytes


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of MODELS."""

    name: str
    version: int
    ready: bool
    """Whether a replica of it is ready now."""


def encode_models(request_id: int, entries: Sequence[ModelEntry]) -> bytes:
    """MODELS; what does not fit into one frame is left out, the count says how many came."""
    parts: list[bytes] = []
    size = COUNT.size
    for entry in entries:
        name = entry.name.encode()
        size += MODEL.size + len(name)
        if size > META_BYTES_MAX:
            break
        parts.append(MODEL.pack(entry.version, entry.ready, len(name), 0) + name)
    return frame(FrameType.MODELS, request_id, COUNT.pack(len(parts), 0) + b"".join(parts))


def decode_models(meta: memoryview) -> list[ModelEntry]:
    """Raises BadRequest."""
    count, _ = _fixed(COUNT, meta, "MODELS")
    position = COUNT.size
    entries = []
    for _ in range(min(count, len(meta) // MODEL.size)):
        version, ready, name_bytes, _ = _fixed(MODEL, meta, "MODELS", position)
        position += MODEL.size
        entries.append(ModelEntry(_text(meta, position, name_bytes, "MODELS"), version, bool(ready)))
        position += name_bytes
    if len(entries) != count or position != len(meta):
        raise _malformed("MODELS", f"{count} entries in {len(meta)} bytes")
    return entries


# ── arenas ──────────────────────────────────────────────────────────────────────────────────────


def encode_arena(frame_type: FrameType, request_id: int, arena: int, nbytes: int) -> bytes:
    """ATTACH, ATTACHED or DETACH."""
    return frame(frame_type, request_id, ARENA.pack(arena, 0, nbytes))


def decode_arena(meta: memoryview) -> tuple[int, int]:
    """Arena number and bytes. Raises BadRequest."""
    arena, _, nbytes = _fixed(ARENA, meta, "ATTACH", exact=True)
    return arena, nbytes


# ── requests ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor of a request or result is, and its form."""

    index: int
    """Position among the model's inputs, or outputs, as OPENED lists them."""
    dtype: DType
    shape: tuple[int, ...]
    """Rows included; empty for an output range, whose shape the model decides."""
    nbytes: int
    lane: Lane = Lane.INLINE
    arena: int = 0
    offset: int = 0

    def encode(self) -> bytes:
        """The header as bytes."""
        head = TENSOR.pack(self.index, self.dtype, len(self.shape), self.lane, self.arena, self.offset, self.nbytes)
        return head + struct.pack(f"<{len(self.shape)}Q", *self.shape)


def decode_tensors(headers: memoryview, count: int) -> list[TensorHeader]:
    """Exactly `count` tensor headers that fill `headers`. Raises BadRequest."""
    if count > 2 * TENSORS_MAX:
        raise BadRequest("tensors", str(count), f"a request has at most {TENSORS_MAX} inputs and as many outputs")
    position = 0
    tensors = []
    for _ in range(count):
        index, dtype, ndim, lane, arena, offset, nbytes = _fixed(TENSOR, headers, "tensor header", position)
        if ndim > TENSOR_DIMENSIONS_MAX:
            raise BadRequest("ndim", str(ndim), f"a tensor has at most {TENSOR_DIMENSIONS_MAX} dimensions")
        position += TENSOR.size
        shape = _unpack_shape(ndim, headers, position, "tensor header")
        position += 8 * ndim
        if any(dimension > DIMENSION_MAX for dimension in shape):
            raise BadRequest("shape", str(shape), f"a dimension is at most {DIMENSION_MAX}")
        if lane not in (Lane.INLINE, Lane.ARENA):
            raise BadRequest("lane", str(lane), "use 0 (inline) or 1 (arena)")
        tensors.append(TensorHeader(index, _dtype(dtype), shape, nbytes, Lane(lane), arena, offset))
    if position != len(headers):
        raise BadRequest("meta_bytes", str(len(headers)), f"{count} tensor headers end at {position}")
    return tensors


LATEST_NEEDS_SESSION: Final = "the flag LATEST is about the requests of one session: give its key"


@dataclass(frozen=True, slots=True)
class InferHead:
    """The fixed fields of INFER."""

    handle: int
    priority: int
    input_count: int
    output_count: int
    """Output ranges in arenas; 0 to have all outputs inline."""
    deadline_ns: int
    """Absolute CLOCK_MONOTONIC; 0 for the model's default."""
    session: int
    """Key for policies by which sessions stick to a replica; 0 for none."""
    trace: bytes = b""
    latest: bool = False
    """Of this session only the newest request counts; needs a session."""

    def encode(self, request_id: int, tensor_headers: bytes, payload_bytes: int) -> bytes:
        """Header and meta; the payload follows them on the stream."""
        flags = (Flags.TRACE if self.trace else 0) | (Flags.LATEST if self.latest else 0)
        meta = INFER.pack(
            self.handle,
            self.priority,
            self.input_count,
            self.output_count,
            0,
            self.deadline_ns,
            self.session,
        )
        meta_bytes = len(meta) + len(self.trace) + len(tensor_headers)
        head = HEADER.pack(MAGIC, FrameType.INFER, flags, meta_bytes, request_id, payload_bytes)
        return b"".join((head, meta, self.trace, tensor_headers))

    @classmethod
    def decode(cls, meta: memoryview, flags: int) -> tuple["InferHead", memoryview]:
        """The head and the bytes of the tensor headers. Raises BadRequest."""
        if len(meta) < INFER.size:
            raise BadRequest("meta_bytes", str(len(meta)), f"INFER has at least {INFER.size}")
        handle, priority, inputs, outputs, _, deadline_ns, session = INFER.unpack_from(meta)
        if priority >= PRIORITY_CLASSES:
            raise BadRequest("priority", str(priority), "use 0 (high), 1 (normal) or 2 (low)")
        if deadline_ns < 0:
            raise BadRequest("deadline_ns", str(deadline_ns), "use CLOCK_MONOTONIC in nanoseconds, or 0")
        latest = bool(flags & Flags.LATEST)
        if latest and not session:
            raise BadRequest("session", "0", LATEST_NEEDS_SESSION)
        if not flags & Flags.TRACE:
            return cls(handle, priority, inputs, outputs, deadline_ns, session, b"", latest), meta[INFER.size :]
        stop = INFER.size + TRACE_BYTES
        if len(meta) < stop:
            raise BadRequest("meta_bytes", str(len(meta)), "the flag TRACE promises 24 more bytes")
        trace = bytes(meta[INFER.size : stop])
        return cls(handle, priority, inputs, outputs, deadline_ns, session, trace, latest), meta[stop:]


@dataclass(frozen=True, slots=True)
class ResultHead:
    """The fixed fields of RESULT."""

    version: int
    batch_rows: int
    """Rows of the batch that this request ran in."""
    queue_us: int
    """From the complete arrival of the request to the release of its batch."""
    compute_us: int
    """The model's time for the whole batch."""
    output_count: int

    @classmethod
    def decode(cls, meta: memoryview) -> tuple["ResultHead", list[TensorHeader]]:
        """The head and the outputs. Raises BadRequest."""
        version, batch_rows, queue_us, compute_us, outputs, _, _ = _fixed(RESULT, meta, "RESULT")
        head = cls(version, batch_rows, queue_us, compute_us, outputs)
        return head, decode_tensors(meta[RESULT.size :], outputs)


RESULT_FRAME = struct.Struct("<HBBIQQ" + "IIIIHHI")
"""Header and fixed fields of RESULT in one go: the reply is packed once per request."""
assert RESULT_FRAME.size == HEADER.size + RESULT.size


def encode_result(head: ResultHead, request_id: int, tensor_headers: bytes, payload_bytes: int) -> bytes:
    """Header and meta of RESULT; the payload follows them on the stream."""
    return (
        RESULT_FRAME.pack(
            MAGIC,
            FrameType.RESULT,
            0,
            RESULT.size + len(tensor_headers),
            request_id,
            payload_bytes,
            head.version,
            head.batch_rows,
            head.queue_us,
            head.compute_us,
            head.output_count,
            0,
            0,
        )
        + tensor_headers
    )


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def encode_error(request_id: int, error: TensordError) -> bytes:
    """ERROR: code, sentence and data."""
    text = str(error).encode()[:8_192]
    data = msgspec.json.encode(error.data())
    if len(data) > 16_384:
        data = b""
    after = RETRY_UNKNOWN if error.retry_after_ms is None else min(error.retry_after_ms, RETRY_UNKNOWN - 1)
    meta = ERROR.pack(error.code, error.retry, 0, after, len(text), len(data)) + text + data
    return frame(FrameType.ERROR, request_id, meta)


def decode_error(meta: memoryview) -> TensordError:
    """The error as its class again. Raises BadRequest."""
    code, _, _, after, text_bytes, data_bytes = _fixed(ERROR, meta, "ERROR")
    if ERROR.size + text_bytes + data_bytes != len(meta):
        raise _malformed("ERROR", f"{len(meta)} bytes of meta")
    text = bytes(meta[ERROR.size : ERROR.size + text_bytes]).decode(errors="replace")
    data = bytes(meta[ERROR.size + text_bytes :])
    return rebuild(code, text, data, None if after == RETRY_UNKNOWN else after)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _malformed(what: str, value: object) -> BadRequest:
    return BadRequest(what, str(value), "lengths and counts must agree with the frame (docs/protocol.md)")


def _dtype(value: int) -> DType:
    try:
        return DType(value)
    except ValueError:
        raise BadRequest("dtype", str(value), "use 1 (bool) to 10 (float64)") from None


def _fixed(
    form: struct.Struct, meta: memoryview, what: str, position: int = 0, *, exact: bool = False
) -> tuple[int, ...]:
    if len(meta) < position + form.size or (exact and len(meta) != form.size):
        raise _malformed(what, f"{len(meta)} bytes of meta")
    return form.unpack_from(meta, position)


def _unpack_shape(ndim: int, meta: memoryview, position: int, what: str) -> tuple[int, ...]:
    if len(meta) < position + 8 * ndim:
        raise _malformed(what, f"cut off within its {ndim} dimensions")
    return struct.unpack_from(f"<{ndim}Q", meta, position)


def _text(
    meta: memoryview,
    position: int,
    nbytes: int,
    what: str,
    *,
    exact: bool = False,
    nbytes_max: int = NAME_BYTES_MAX,
) -> str:
    """A UTF-8 text of `nbytes` at `position`; with `exact`, it is the last thing in the meta."""
    stop = position + nbytes
    if nbytes > nbytes_max or len(meta) < stop or (exact and len(meta) != stop):
        raise _malformed(what, f"a text of {nbytes} bytes in {len(meta)} bytes of meta, at most {nbytes_max}")
    try:
        return bytes(meta[position:stop]).decode()
    except UnicodeDecodeError:
        raise _malformed(what, "a text that is not UTF-8") from None
