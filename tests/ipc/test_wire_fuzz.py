"""Bytes that no correct peer sends: by seed, so that what fails once can be looked at again."""

import contextlib
import random
from collections.abc import Sequence

import pytest

from tensord.ipc import wire
from tensord.ipc.errors import BadFrame, BadRequest, ModelFailed, QueueFull, TensordError, UnknownError, UnknownModel
from tensord.ipc.limits import META_BYTES_MAX
from tensord.ipc.tensors import DType, ModelSpec, TensorSpec
from tensord.ipc.wire import (
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

SEEDS = range(20)
STREAMS_PER_SEED = 200
CANARY = b"\xa5" * 64


def specification() -> ModelSpec:
    x = TensorSpec("x", DType.FLOAT32, (3, 224, 224))
    y = TensorSpec("scores", DType.FLOAT16, (3,), ("cat", "dog", "größer"))
    return ModelSpec("resnet", 3, (x,), (y, x), 32, True)


def samples(rng: random.Random) -> list[bytes]:
    """One correct frame of each type, some with a payload."""
    spec = specification()
    inline = TensorHeader(0, DType.FLOAT32, (2, 3, 4), 96).encode()
    placed = TensorHeader(1, DType.BOOL, (), 64, Lane.ARENA, 2, 4096).encode()
    payload = rng.randbytes(96)
    result = ResultHead(3, 32, 120, 900, 2)
    return [
        Hello(1, 1, "tenant").encode(1),
        Welcome(1, 2**60, 1024, 2**20, 2**30).encode(1),
        wire.encode_open(2, "resnet:stable"),
        wire.encode_opened(2, 1, spec),
        wire.encode_arena(FrameType.ATTACH, 3, 0, 2**20),
        wire.encode_arena(FrameType.ATTACHED, 3, 1, 2**20),
        wire.encode_arena(FrameType.DETACH, 3, 1, 0),
        InferHead(1, 1, 1, 1, 10**15, 5, b"t" * 24).encode(4, inline + placed, 96) + payload,
        InferHead(1, 2, 1, 0, 0, 0).encode(5, inline, 96) + payload,
        wire.encode_result(result, 4, inline + placed, 96) + payload,
        wire.encode_error(5, QueueFull("resnet", 64)),
        wire.encode_error(5, ModelFailed("resnet", "RuntimeError: große Not")),
        wire.encode_error(5, UnknownModel("x", ["a", "b"])),
        frame(FrameType.CANCEL, 6),
        frame(FrameType.PING, 7),
        frame(FrameType.PONG, 7),
        frame(FrameType.LIST, 8),
        wire.encode_models(8, [ModelEntry("resnet", 3, True), ModelEntry("digits", 1, False)]),
        frame(FrameType.CLOSE, 9),
    ]


NUMBERS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 254, 255]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, taken out, put in, or repeated."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.choice(NUMBERS)])
            case 1:
                out[at : at + 1] = rng.randbytes(1)
            case 2:
                out[at : at + 8] = rng.choice([b"\xff", b"\x00", b"\x80"]) * 8
            case 3:
                del out[at : at + rng.randrange(1, 9)]
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                out[at:at] = out[max(0, at - rng.randrange(1, 40)) : at]
    return bytes(out)


def decode(frame_type: int, flags: int, meta: memoryview) -> None:
    """What either end does with a frame of this type. Raises BadRequest."""
    match frame_type:
        case FrameType.HELLO:
            Hello.decode(meta)
        case FrameType.WELCOME:
            Welcome.decode(meta)
        case FrameType.OPEN:
            wire.decode_open(meta)
        case FrameType.OPENED:
            wire.decode_opened(meta)
        case FrameType.ATTACH | FrameType.ATTACHED | FrameType.DETACH:
            wire.decode_arena(meta)
        case FrameType.INFER:
            head, headers = InferHead.decode(meta, flags)
            wire.decode_tensors(headers, head.input_count + head.output_count)
        case FrameType.RESULT:
            ResultHead.decode(meta)
        case FrameType.ERROR:
            assert isinstance(wire.decode_error(meta), TensordError)
        case FrameType.MODELS:
            wire.decode_models(meta)


class Receiver:
    """Decodes what it can, and lets payloads into guarded buffers only."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._memory = bytearray()
        self.frames = 0
        self.errors: list[TensordError] = []

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        self.frames += 1
        assert len(meta) <= META_BYTES_MAX
        try:
            decode(frame_type, flags, meta)
        except TensordError as error:
            self.errors.append(error)
        if not 0 < payload_bytes < 4096 or self._rng.random() < 0.3:
            self._memory = bytearray()
            return None
        first = self._rng.randrange(payload_bytes + 1)
        self._memory = bytearray(CANARY + bytes(first) + CANARY + bytes(payload_bytes - first) + CANARY)
        view = memoryview(self._memory)
        self._second = len(CANARY) + first
        return [view[len(CANARY) : self._second], view[self._second + len(CANARY) : -len(CANARY)]]

    def frame_finished(self) -> None:
        self.check()

    def check(self) -> None:
        if self._memory:
            assert self._memory.startswith(CANARY)
            assert self._memory.endswith(CANARY)
            assert self._memory[self._second : self._second + len(CANARY)] == CANARY


def receive(rng: random.Random, stream: bytes) -> Receiver:
    """Read a stream in pieces; it may end with BadFrame, and with nothing else."""
    receiver = Receiver(rng)
    reader = FrameReader(receiver, memoryview(bytearray(rng.choice([25, 64, 500, 8192]))))
    position = 0
    try:
        while position < len(stream):
            buffer = reader.get_buffer()
            nbytes = min(len(buffer), len(stream) - position, rng.randrange(1, 300))
            assert nbytes > 0
            buffer[:nbytes] = stream[position : position + nbytes]
            reader.buffer_updated(nbytes)
            position += nbytes
    except BadFrame as error:
        receiver.errors.append(error)
    receiver.check()
    return receiver


def test_the_samples_are_correct() -> None:
    rng = random.Random(0)
    receiver = receive(rng, b"".join(samples(rng)))
    assert receiver.errors == []
    assert receiver.frames == len(samples(rng))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_stream_is_refused_in_words_of_the_protocol(seed: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(STREAMS_PER_SEED):
        chosen = rng.choices(samples(rng), k=rng.randrange(1, 6))
        stream = b"".join(chosen[:-1]) + mutated(rng, chosen[-1]) + b"".join(samples(rng))
        refused += bool(receive(rng, stream).errors)
    assert refused > STREAMS_PER_SEED // 3, "the mutations are too mild to test anything"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_bytes_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(STREAMS_PER_SEED):
        receiver = receive(rng, rng.randbytes(rng.randrange(100, 1_000)))
        assert [type(error) for error in receiver.errors] == [BadFrame]


@pytest.mark.parametrize("sample", range(len(samples(random.Random(0)))))
def test_a_mutated_meta_is_decoded_or_a_bad_request(sample: int) -> None:
    rng = random.Random(sample)
    original = samples(rng)[sample]
    _, frame_type, flags, meta_bytes, _, _ = wire.HEADER.unpack_from(original)
    meta = original[wire.HEADER.size : wire.HEADER.size + meta_bytes]
    for _ in range(2_000):
        changed_flags = flags ^ rng.choice([0, 0, 2])
        with contextlib.suppress(BadRequest):
            decode(frame_type, changed_flags, memoryview(mutated(rng, meta)))


@pytest.mark.parametrize("seed", SEEDS)
def test_any_meta_for_any_type_is_decoded_or_a_bad_request(seed: int) -> None:
    rng = random.Random(seed)
    for frame_type in FrameType:
        for _ in range(20):
            meta = rng.randbytes(rng.randrange(200))
            with contextlib.suppress(BadRequest):
                decode(frame_type, rng.randrange(256), memoryview(meta))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'"', b"\xff", b"9", b"-", b"\\u"])
def test_the_data_of_an_error_can_be_anything(opening: bytes) -> None:
    data = opening * (META_BYTES_MAX // len(opening) - 100)
    for error in (QueueFull, UnknownModel, ModelFailed):
        meta = wire.ERROR.pack(error.code, 0, 0, 5, 4, len(data)) + b"text" + data
        received = wire.decode_error(memoryview(meta))
        assert isinstance(received, UnknownError)
        assert str(received) == "text"
