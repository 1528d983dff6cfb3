import itertools
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc import wire
from tensord.ipc.errors import BadFrame, BadRequest, QueueFull
from tensord.ipc.limits import (
    DIMENSION_MAX,
    LABELS_MAX,
    META_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    PRIORITY_CLASSES,
    TENSOR_DIMENSIONS_MAX,
    TENSORS_MAX,
)
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
from tensord.ipc.wire import (
    HEADER,
    MAGIC,
    Flags,
    FrameReader,
    FrameType,
    Hello,
    InferHead,
    Lane,
    ModelEntry,
    ResultHead,
    TensorHeader,
    Welcome,
    frame,
)

# ── what can be sent ────────────────────────────────────────────────────────────────────────────

u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
texts = st.text(max_size=NAME_BYTES_MAX // 4)
dimensions = st.integers(0, DIMENSION_MAX)

tensor_specs = st.builds(
    TensorSpec,
    texts,
    st.sampled_from(DType),
    st.lists(
        st.integers(1, 2**64 - 1) | st.builds(Dimension, texts, u64, st.booleans()), max_size=TENSOR_DIMENSIONS_MAX - 1
    ).map(tuple),
    st.lists(texts, max_size=4).map(tuple),
    st.booleans(),
)
model_specs = st.builds(
    ModelSpec,
    texts,
    u32,
    st.lists(tensor_specs, max_size=3).map(tuple),
    st.lists(tensor_specs, max_size=3).map(tuple),
    u32,
    st.booleans(),
)
tensor_headers = st.builds(
    TensorHeader,
    u8,
    st.sampled_from(DType),
    st.lists(dimensions, max_size=TENSOR_DIMENSIONS_MAX).map(tuple),
    u64,
    st.sampled_from(Lane),
    u32,
    u64,
)
many_headers = st.lists(tensor_headers, max_size=4)
infers = st.tuples(
    st.builds(
        InferHead,
        u32,
        st.integers(0, PRIORITY_CLASSES - 1),
        u8,
        u8,
        st.integers(0, 2**63 - 1),
        st.integers(1, 2**64 - 1),
        st.just(b"") | st.binary(min_size=wire.TRACE_BYTES, max_size=wire.TRACE_BYTES),
        st.booleans(),
    ),
    many_headers,
)
results = st.tuples(u32, u32, u32, u32, many_headers)


def joined(headers: Sequence[TensorHeader]) -> bytes:
    return b"".join(header.encode() for header in headers)


def encode_infer(request_id: int, value: tuple[InferHead, list[TensorHeader]]) -> bytes:
    return value[0].encode(request_id, joined(value[1]), 0)


def decode_infer(meta: memoryview, flags: int, expected: Any) -> tuple[InferHead, list[TensorHeader]]:
    head, headers = InferHead.decode(meta, flags)
    return head, wire.decode_tensors(headers, len(expected[1]))


def encode_result(request_id: int, value: tuple[int, int, int, int, list[TensorHeader]]) -> bytes:
    return wire.encode_result(ResultHead(*value[:4], len(value[4])), request_id, joined(value[4]), 0)


def decode_result(meta: memoryview) -> tuple[int, int, int, int, list[TensorHeader]]:
    head, headers = ResultHead.decode(meta)
    assert head.output_count == len(headers)
    return head.version, head.batch_rows, head.queue_us, head.compute_us, headers


@dataclass
class Codec:
    """How values of a frame type are made, encoded and decoded."""

    values: st.SearchStrategy[Any]
    encode: Callable[[int, Any], bytes]
    decode: Callable[[memoryview, int, Any], Any]


def bare(frame_type: FrameType) -> Codec:
    return Codec(st.just(b""), lambda id_, _: frame(frame_type, id_), lambda meta, *_: bytes(meta))


def arena(frame_type: FrameType) -> Codec:
    return Codec(
        st.tuples(u32, u64),
        lambda id_, value: wire.encode_arena(frame_type, id_, *value),
        lambda meta, *_: wire.decode_arena(meta),
    )


CODECS: dict[FrameType, Codec] = {
    FrameType.HELLO: Codec(
        st.builds(Hello, u16, u16, texts), lambda id_, value: value.encode(id_), lambda meta, *_: Hello.decode(meta)
    ),
    FrameType.WELCOME: Codec(
        st.builds(Welcome, u16, u64, u32, u64, u64),
        lambda id_, value: value.encode(id_),
        lambda meta, *_: Welcome.decode(meta),
    ),
    FrameType.OPEN: Codec(texts, wire.encode_open, lambda meta, *_: wire.decode_open(meta)),
    FrameType.OPENED: Codec(
        st.tuples(u32, model_specs),
        lambda id_, value: wire.encode_opened(id_, *value),
        lambda meta, *_: wire.decode_opened(meta),
    ),
    FrameType.ATTACH: arena(FrameType.ATTACH),
    FrameType.ATTACHED: arena(FrameType.ATTACHED),
    FrameType.DETACH: arena(FrameType.DETACH),
    FrameType.INFER: Codec(infers, encode_infer, decode_infer),
    FrameType.RESULT: Codec(results, encode_result, lambda meta, *_: decode_result(meta)),
    FrameType.ERROR: Codec(
        st.tuples(texts, u32),
        lambda id_, value: wire.encode_error(id_, QueueFull(*value)),
        lambda meta, *_: tuple(wire.decode_error(meta).data().values()),
    ),
    FrameType.CANCEL: bare(FrameType.CANCEL),
    FrameType.PING: bare(FrameType.PING),
    FrameType.PONG: bare(FrameType.PONG),
    FrameType.LIST: bare(FrameType.LIST),
    FrameType.MODELS: Codec(
        st.lists(st.builds(ModelEntry, texts, u32, st.booleans()), max_size=5),
        wire.encode_models,
        lambda meta, *_: wire.decode_models(meta),
    ),
    FrameType.CLOSE: bare(FrameType.CLOSE),
}


BARE = {FrameType.CANCEL, FrameType.PING, FrameType.PONG, FrameType.LIST, FrameType.CLOSE}
"""Header only."""

GROWS = FrameType.WELCOME
"""A later daemon may append fields, which this version does not read."""


def meta_of(encoded: bytes) -> memoryview:
    return memoryview(encoded)[HEADER.size :]


# ── every frame type ────────────────────────────────────────────────────────────────────────────


def test_every_frame_type_has_a_codec_here() -> None:
    assert set(CODECS) == set(FrameType)


@pytest.mark.parametrize("frame_type", FrameType)
@given(data=st.data(), request_id=u64)
def test_a_frame_comes_through_as_it_was(frame_type: FrameType, data: st.DataObject, request_id: int) -> None:
    codec = CODECS[frame_type]
    value = data.draw(codec.values)
    encoded = codec.encode(request_id, value)
    magic, number, flags, meta_bytes, sent_id, payload_bytes = HEADER.unpack_from(encoded)
    assert (magic, number, sent_id, payload_bytes) == (MAGIC, frame_type, request_id, 0)
    assert HEADER.size + meta_bytes == len(encoded)
    assert codec.decode(meta_of(encoded), flags, value) == value


@pytest.mark.parametrize("frame_type", [frame_type for frame_type in FrameType if frame_type not in BARE])
@given(data=st.data())
def test_a_meta_that_is_cut_off_is_a_bad_request(frame_type: FrameType, data: st.DataObject) -> None:
    codec = CODECS[frame_type]
    value = data.draw(codec.values)
    encoded = codec.encode(1, value)
    meta = meta_of(encoded)
    with pytest.raises(BadRequest):
        codec.decode(meta[: data.draw(st.integers(0, len(meta) - 1))], encoded[3], value)


@pytest.mark.parametrize("frame_type", [frame_type for frame_type in FrameType if frame_type not in BARE | {GROWS}])
@given(data=st.data())
def test_a_meta_that_goes_on_is_a_bad_request(frame_type: FrameType, data: st.DataObject) -> None:
    codec = CODECS[frame_type]
    value = data.draw(codec.values)
    encoded = codec.encode(1, value)
    longer = bytes(meta_of(encoded)) + data.draw(st.binary(min_size=1, max_size=40))
    with pytest.raises(BadRequest):
        codec.decode(memoryview(longer), encoded[3], value)


# ── what decoders refuse ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ndim": TENSOR_DIMENSIONS_MAX + 1}, "ndim is 9"),
        ({"ndim": 255}, "ndim is 255"),
        ({"dtype": 0}, "dtype is 0"),
        ({"dtype": 11}, "dtype is 11"),
        ({"lane": 2}, "lane is 2"),
    ],
)
def test_a_tensor_header_with_a_wrong_number_names_it(changed: dict[str, int], named: str) -> None:
    head = {"index": 0, "dtype": 9, "ndim": 1, "lane": 0, "arena": 0, "offset": 0, "nbytes": 4, **changed}
    headers = wire.TENSOR.pack(*head.values()) + struct.pack("<Q", 1)
    with pytest.raises(BadRequest, match=named):
        wire.decode_tensors(memoryview(headers), 1)


def test_a_dimension_beyond_the_limit_is_refused() -> None:
    for dimension, good in ((DIMENSION_MAX, True), (DIMENSION_MAX + 1, False), (2**64 - 1, False)):
        header = memoryview(TensorHeader(0, DType.INT8, (dimension,), 0).encode())
        if good:
            assert wire.decode_tensors(header, 1)[0].shape == (dimension,)
        else:
            with pytest.raises(BadRequest, match="a dimension is at most"):
                wire.decode_tensors(header, 1)


def test_more_tensors_than_a_model_can_have_are_refused() -> None:
    header = TensorHeader(0, DType.BOOL, (1,), 1).encode()
    assert len(wire.decode_tensors(memoryview(header * 2 * TENSORS_MAX), 2 * TENSORS_MAX)) == 2 * TENSORS_MAX
    with pytest.raises(BadRequest, match="tensors is 33"):
        wire.decode_tensors(memoryview(header * 33), 33)


@pytest.mark.parametrize(
    ("priority", "deadline_ns", "named"),
    [(PRIORITY_CLASSES, 0, "priority is 3"), (255, 0, "priority is 255"), (0, -1, "deadline_ns is -1")],
)
def test_infer_with_a_wrong_number_names_it(priority: int, deadline_ns: int, named: str) -> None:
    meta = memoryview(wire.INFER.pack(1, priority, 0, 0, 0, deadline_ns, 0))
    with pytest.raises(BadRequest, match=named):
        InferHead.decode(meta, 0)


def test_a_name_may_have_128_bytes() -> None:
    longest = "ß" * (NAME_BYTES_MAX // 2)
    assert wire.decode_open(meta_of(wire.encode_open(1, longest))) == longest
    with pytest.raises(BadRequest, match="at most 128"):
        wire.decode_open(meta_of(wire.encode_open(1, longest + "x")))


def test_a_name_must_be_utf8() -> None:
    with pytest.raises(BadRequest, match="not UTF-8"):
        wire.decode_open(memoryview(wire.NAME.pack(2) + b"\xc3\x28"))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(wire.SPEC.pack(9, TENSOR_DIMENSIONS_MAX, 0, 0, 0) + bytes(64), id="rows leave seven dimensions"),
        pytest.param(wire.SPEC.pack(9, 0, 0, 0, LABELS_MAX + 1), id="too many labels"),
        pytest.param(wire.SPEC.pack(9, 0, 0, 0, LABELS_MAX), id="labels that are not there"),
        pytest.param(wire.SPEC.pack(0, 0, 0, 0, 0), id="no such data type"),
        pytest.param(wire.SPEC.pack(9, 1, 0, 0, 0) + bytes(8), id="a free dimension that is not described"),
        pytest.param(
            wire.SPEC.pack(9, 1, 0, 0, 0) + bytes(8) + wire.DIMENSION.pack(5, 0, NAME_BYTES_MAX + 1, 0) + b"x" * 129,
            id="a dimension's name of 129 bytes",
        ),
        pytest.param(
            wire.SPEC.pack(9, 1, 0, 0, 0) + bytes(8) + wire.DIMENSION.pack(5, 0, 2, 0) + b"\xc3\x28",
            id="a dimension's name that is not UTF-8",
        ),
    ],
)
def test_a_specification_that_no_model_has_is_refused(spec: bytes) -> None:
    with pytest.raises(BadRequest):
        wire.decode_opened(memoryview(wire.OPENED.pack(1, 1, 1, 1, 1, 0, 0) + spec))


def test_a_free_dimension_is_a_zero_and_its_description_behind_the_name() -> None:
    spec = TensorSpec("ab", DType.UINT8, (3, Dimension("n", 7), Dimension("mm", 9, from_data=True)), ("l",), True)
    encoded = wire.encode_opened(1, 5, ModelSpec("", 2, (), (spec,), 4, False))
    assert bytes(meta_of(encoded)[wire.OPENED.size :]) == (
        struct.pack("<BBBBI3Q", 6, 3, 2, 1, 1, 3, 0, 0)
        + b"ab"
        + struct.pack("<QBBH", 7, 0, 1, 0)
        + b"n"
        + struct.pack("<QBBH", 9, 1, 2, 0)
        + b"mm"
        + struct.pack("<H", 1)
        + b"l"
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(TENSORS_MAX + 1, 0), (0, TENSORS_MAX + 1), (255, 255)])
def test_a_model_of_too_many_tensors_is_refused(inputs: int, outputs: int) -> None:
    with pytest.raises(BadRequest, match=f"{inputs} inputs and {outputs} outputs"):
        wire.decode_opened(memoryview(wire.OPENED.pack(1, 1, 1, 1, inputs, outputs, 0)))


def test_a_list_of_models_ends_where_its_frame_does() -> None:
    entries = [ModelEntry(f"{index:0128}", index, True) for index in range(5_000)]
    encoded = wire.encode_models(1, entries)
    assert len(encoded) <= HEADER.size + META_BYTES_MAX
    decoded = wire.decode_models(meta_of(encoded))
    assert decoded == entries[: len(decoded)]
    assert len(decoded) == (META_BYTES_MAX - wire.COUNT.size) // (wire.MODEL.size + 128)


def test_a_promise_of_four_billion_models_is_refused_at_once() -> None:
    with pytest.raises(BadRequest):
        wire.decode_models(memoryview(wire.COUNT.pack(2**32 - 1, 0)))


# ── the reader ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class Sent:
    """A frame, and how its payload is to be received: the lengths of the buffers, or None to skip it."""

    frame_type: int
    flags: int
    request_id: int
    meta: bytes
    payload: bytes
    parts: list[int] | None

    def encode(self) -> bytes:
        head = HEADER.pack(MAGIC, self.frame_type, self.flags, len(self.meta), self.request_id, len(self.payload))
        return head + self.meta + self.payload

    def received(self) -> tuple[object, ...]:
        payload = None if self.parts is None or not self.payload else self.payload
        return (self.frame_type, self.flags, self.request_id, self.meta, len(self.payload), payload)


CANARY = b"\xa5" * 16


@dataclass
class Sink:
    """Receives the frames that are planned, with guarded buffers, and writes down what came."""

    plan: list[Sent]
    received: list[tuple[object, ...]] = field(default_factory=list)
    finished: int = 0

    def __post_init__(self) -> None:
        self._memory = bytearray()
        self._parts: list[tuple[int, int]] = []

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        sent = self.plan[len(self.received)]
        self.received.append((frame_type, flags, request_id, bytes(meta), payload_bytes, None))
        if sent.parts is None or not payload_bytes:
            return None
        self._memory = bytearray(CANARY + b"".join(bytes(part) + CANARY for part in sent.parts))
        self._parts, position = [], len(CANARY)
        for part in sent.parts:
            self._parts.append((position, position + part))
            position += part + len(CANARY)
        return [memoryview(self._memory)[start:stop] for start, stop in self._parts]

    def frame_finished(self) -> None:
        self.finished += 1
        if self.plan[len(self.received) - 1].parts is None:
            return
        payload = b"".join(self._memory[start:stop] for start, stop in self._parts)
        self.received[-1] = (*self.received[-1][:5], payload)
        guards = bytearray(self._memory)
        for start, stop in reversed(self._parts):
            del guards[start:stop]
        assert guards == CANARY * (len(self._parts) + 1)


def feed(reader: FrameReader, stream: bytes, chunks: Sequence[int]) -> None:
    """Hand `stream` over in reads of these sizes, and then as much as fits at a time."""
    position = 0
    sizes = iter(chunks)
    while position < len(stream):
        buffer = reader.get_buffer()
        assert len(buffer) > 0
        nbytes = min(len(buffer), len(stream) - position, next(sizes, len(stream)))
        buffer[:nbytes] = stream[position : position + nbytes]
        reader.buffer_updated(nbytes)
        position += nbytes


def scratch_of(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


def split(payload: bytes, cuts: Sequence[int]) -> list[int]:
    """Lengths of the parts of a payload that is cut at these places; some may be empty."""
    bounds = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    return [stop - start for start, stop in itertools.pairwise(bounds)]


frames = st.builds(
    lambda frame_type, flags, request_id, meta, payload, cuts: Sent(
        frame_type, flags, request_id, meta, payload, None if cuts is None else split(payload, cuts)
    ),
    u8,
    u8,
    u64,
    st.binary(max_size=100),
    st.binary(max_size=300),
    st.none() | st.lists(st.integers(0, 300), max_size=4),
)


@given(
    st.lists(frames, max_size=6),
    st.lists(st.integers(1, 200), max_size=40),
    st.sampled_from([HEADER.size + 1, 50, 64, 300, 4096]),
)
def test_any_stream_cut_anywhere_gives_the_same_frames(plan: list[Sent], chunks: list[int], scratch: int) -> None:
    sink = Sink(plan)
    reader = FrameReader(sink, scratch_of(scratch))
    feed(reader, b"".join(sent.encode() for sent in plan), chunks)
    assert sink.received == [sent.received() for sent in plan]
    assert sink.finished == sum(1 for sent in plan if sent.payload)
    assert not reader.mid_frame


@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_a_stream_that_stops_within_a_frame_is_mid_frame(plan: list[Sent], data: st.DataObject) -> None:
    stream = b"".join(sent.encode() for sent in plan)
    ends = [0]
    for sent in plan:
        ends.append(ends[-1] + len(sent.encode()))
    stop = data.draw(st.integers(0, len(stream)))
    reader = FrameReader(Sink(plan), scratch_of(128))
    feed(reader, stream[:stop], [])
    assert reader.mid_frame == (stop not in ends)


def test_one_byte_at_a_time_is_a_stream_too() -> None:
    rng = random.Random(3)
    plan = [
        Sent(8, 2, 2**64 - 1, rng.randbytes(77), rng.randbytes(200), [0, 100, 0, 100, 0]),
        Sent(1, 0, 0, b"", b"", []),
        Sent(200, 255, 5, rng.randbytes(30), rng.randbytes(90), None),
        Sent(12, 0, 1, b"", b"x", [1]),
    ]
    stream = b"".join(sent.encode() for sent in plan)
    sink = Sink(plan)
    feed(FrameReader(sink, scratch_of(40)), stream, [1] * len(stream))
    assert sink.received == [sent.received() for sent in plan]


def test_a_large_payload_is_received_in_place() -> None:
    payload = random.Random(1).randbytes(100_000)
    sent = Sent(8, 0, 1, b"meta", payload, [30_000, 70_000])
    sink = Sink([sent])
    reader = FrameReader(sink, scratch_of(1024))
    stream = sent.encode()
    feed(reader, stream[:1024], [])
    assert len(reader.get_buffer()) == 30_000 - (1024 - HEADER.size - 4)
    feed(reader, stream[1024:], [])
    assert sink.received == [sent.received()]


def test_readers_share_their_scratch_between_reads() -> None:
    rng = random.Random(2)
    scratch = scratch_of(256)
    plans = [[Sent(8, 0, n, rng.randbytes(100), rng.randbytes(400), [400]) for n in range(5)] for _ in range(3)]
    streams = [b"".join(sent.encode() for sent in plan) for plan in plans]
    sinks = [Sink(plan) for plan in plans]
    readers = [FrameReader(sink, scratch) for sink in sinks]
    while any(streams):
        for index, reader in enumerate(readers):
            nbytes = rng.randrange(1, 60)
            part, streams[index] = streams[index][:nbytes], streams[index][nbytes:]
            feed(reader, part, [])
            scratch[:] = bytes(256)  # nobody counts on it after its turn
    for sink, plan in zip(sinks, plans, strict=True):
        assert sink.received == [sent.received() for sent in plan]


@pytest.mark.parametrize("scratch", [HEADER.size + 1, 1024, 128 * 1024])
@pytest.mark.parametrize("chunk", [7_919, META_BYTES_MAX])
def test_the_longest_meta_comes_through_a_small_scratch(scratch: int, chunk: int) -> None:
    rng = random.Random(4)
    plan = [Sent(4, 0, n, rng.randbytes(META_BYTES_MAX), rng.randbytes(50), [50]) for n in range(3)]
    stream = b"".join(sent.encode() for sent in plan)
    sink = Sink(plan)
    shared = scratch_of(scratch)
    feed(FrameReader(sink, shared), stream, [chunk] * (len(stream) // chunk))
    assert sink.received == [sent.received() for sent in plan]


def test_payloads_that_are_dropped_on_the_way_are_skipped() -> None:
    plan = [Sent(8, 0, 1, b"", b"abcdefgh" * 100, [800]), Sent(12, 0, 2, b"", b"", None)]
    sink = Sink(plan)
    reader = FrameReader(sink, scratch_of(128))
    stream = b"".join(sent.encode() for sent in plan)
    feed(reader, stream[:300], [])
    before = bytes(sink._memory)
    plan[0].parts = None
    reader.drop_destinations()
    feed(reader, stream[300:], [])
    assert bytes(sink._memory) == before
    assert [received[2] for received in sink.received] == [1, 2]
    assert not reader.mid_frame


@pytest.mark.parametrize("chunks", [[], [1] * HEADER.size])
@pytest.mark.parametrize(
    ("head", "named"),
    [
        ((MAGIC + 1, 8, 0, 0, 1, 0), "magic is 0x7445, not 0x7444"),
        ((0, 8, 0, 0, 1, 0), "magic is 0x0000"),
        ((MAGIC, 8, 0, META_BYTES_MAX + 1, 1, 0), "meta_bytes is 262145, at most 262144"),
        ((MAGIC, 8, 0, 2**32 - 1, 1, 0), "meta_bytes is 4294967295"),
        ((MAGIC, 8, 0, 0, 1, PAYLOAD_BYTES_MAX + 1), "payload_bytes is 67108865, at most 67108864"),
        ((MAGIC, 8, 0, 0, 1, 2**64 - 1), "payload_bytes is 18446744073709551615"),
    ],
)
def test_a_header_that_cannot_be_followed_ends_the_stream(head: tuple[int, ...], named: str, chunks: list[int]) -> None:
    good = Sent(12, 0, 1, b"", b"", None)
    sink = Sink([good])
    reader = FrameReader(sink, scratch_of(4096))
    with pytest.raises(BadFrame, match=named):
        feed(reader, good.encode() + HEADER.pack(*head), [len(good.encode()), *chunks])
    assert sink.received == [good.received()]


def test_the_longest_payload_is_followed() -> None:
    sink = Sink([Sent(8, 0, 1, b"", b"", None)])
    reader = FrameReader(sink, scratch_of(1024))
    feed(reader, HEADER.pack(MAGIC, 8, 0, 0, 1, PAYLOAD_BYTES_MAX), [])
    assert reader.mid_frame


def test_flags_say_whether_a_trace_follows() -> None:
    trace = bytes(range(wire.TRACE_BYTES))
    assert InferHead(1, 1, 0, 0, 0, 0, trace).encode(1, b"", 0)[3] == Flags.TRACE
    assert InferHead(1, 1, 0, 0, 0, 0).encode(1, b"", 0)[3] == 0


def test_only_the_requests_of_a_session_can_ask_for_the_latest() -> None:
    frame = InferHead(1, 1, 0, 0, 0, 7, latest=True).encode(1, b"", 0)
    meta = memoryview(frame)[HEADER.size :]
    assert frame[3] == Flags.LATEST
    assert InferHead.decode(meta, frame[3])[0].latest
    with pytest.raises(BadRequest, match="session"):
        InferHead.decode(memoryview(InferHead(1, 1, 0, 0, 0, 0).encode(1, b"", 0))[HEADER.size :], Flags.LATEST)
