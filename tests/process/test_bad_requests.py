"""Requests that make no sense: each gets its one error, the stream stays in step, and nobody else notices."""

import random
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tensord.ipc.errors import (
    ArenaQuotaExceeded,
    BadRequest,
    DeadlineExceeded,
    OutputTooSmall,
    PayloadTooLarge,
    TensordError,
    TooManyRows,
    UnknownArena,
    UnknownFrame,
    UnknownHandle,
    UnknownModel,
    WrongDType,
    WrongShape,
    WrongTensors,
)
from tensord.ipc.tensors import DType
from tensord.ipc.wire import (
    HEADER,
    INFER,
    MAGIC,
    NAME,
    Flags,
    FrameType,
    Lane,
    TensorHeader,
    encode_arena,
    encode_open,
)

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon, RawClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
A = np.ones((2, 3), np.float32)
B = np.arange(8, dtype=np.int64).reshape(2, 2, 2)
ID = 7
NOT_ATTACHED = 4_000_000_000

Build = Callable[["RawClient"], bytes]


# ── building bad requests ───────────────────────────────────────────────────────────────────────


def with_x(tensor: "np.ndarray[Any, Any]", **fields: Any) -> Build:
    """`echo` with this tensor, otherwise well-formed."""
    return lambda client: client.request("echo", tensor, request_id=ID, **fields)


def with_headers(model: str, headers: Sequence[TensorHeader], nbytes: int = 0, **fields: Any) -> Build:
    """Any tensor headers, and a payload of that many bytes."""
    return lambda client: client.infer(client.open(model).handle, headers, bytes(nbytes), request_id=ID, **fields)


def header(index: int = 0, **changes: Any) -> TensorHeader:
    """The header of X, changed."""
    fields: dict[str, Any] = {"dtype": DType.FLOAT32, "shape": X.shape, "nbytes": X.nbytes} | changes
    return TensorHeader(index, **fields)


def output(index: int = 0, nbytes: int = X.nbytes, **changes: Any) -> TensorHeader:
    """A range for an output."""
    fields: dict[str, Any] = {"lane": Lane.ARENA, "arena": NOT_ATTACHED, "offset": 0} | changes
    return TensorHeader(index, DType.FLOAT32, (), nbytes, **fields)


def with_meta(meta: bytes, flags: int = 0, frame_type: int = FrameType.INFER) -> Build:
    """A frame with this meta."""
    return lambda _: HEADER.pack(MAGIC, frame_type, flags, len(meta), ID, 0) + meta


def pair(client: "RawClient", *indices: int, **fields: Any) -> bytes:
    """A request to `pair` whose headers carry these indices."""
    tensors = (A, B)
    headers = [client.inline(index, tensors[place]) for place, index in enumerate(indices)]
    payload = b"".join(tensor.tobytes() for tensor in tensors[: len(indices)])
    return client.infer(client.open("pair").handle, headers, payload, request_id=ID, **fields)


INFER_X = INFER.pack(1, 1, 1, 0, 0, 0, 0)
NO_HEADER = BadRequest("tensor header", "0 bytes of meta", "")
CUT_TENSOR = BadRequest("tensor header", "10 bytes of meta", "")
CUT_SHAPE = BadRequest("tensor header", "cut off within its 2 dimensions", "")

INLINE: dict[str, tuple[Build, TensordError]] = {
    "unknown handle": (lambda c: c.infer(999, [header()], X.tobytes(), request_id=ID), UnknownHandle(999)),
    "wrong dtype": (with_x(X.astype(np.float64)), WrongDType("echo", "x", "float32", "float64")),
    "wrong dtype of the same size": (with_x(X.view(np.int32)), WrongDType("echo", "x", "float32", "int32")),
    "wrong row shape": (with_x(X[:, :3].copy()), WrongShape("echo", "x", "(rows, 4)", "(2, 3)")),
    "one dimension too few": (with_x(X[0]), WrongShape("echo", "x", "(rows, 4)", "(4)")),
    "one dimension too many": (with_x(X[None]), WrongShape("echo", "x", "(rows, 4)", "(1, 2, 4)")),
    "no dimension": (with_x(X[0, 0].reshape(())), WrongShape("echo", "x", "(rows, 4)", "()")),
    "no rows": (with_x(X[:0]), WrongShape("echo", "x", "(rows, 4)", "(0, 4)")),
    "too many rows": (with_x(np.zeros((4097, 4), np.float32)), TooManyRows("echo", 4097, 4096)),
    "rows of inputs disagree": (
        lambda c: c.request("pair", A, B[:1], request_id=ID),
        WrongShape("pair", "b", "(2, 2, 2)", "(1, 2, 2)"),
    ),
    "no tensor": (with_headers("echo", []), WrongTensors("echo", ["x"], [])),
    "one tensor too many": (
        with_headers("echo", [header(), header(1)], 2 * X.nbytes),
        WrongTensors("echo", ["x"], ["x", "number 1"]),
    ),
    "one tensor too few": (lambda c: pair(c, 0), WrongTensors("pair", ["a", "b"], ["a"])),
    "index twice": (lambda c: pair(c, 0, 0), WrongTensors("pair", ["a", "b"], ["a", "a"])),
    "index out of range": (lambda c: pair(c, 0, 255), WrongTensors("pair", ["a", "b"], ["a", "number 255"])),
    "inputs in another order": (lambda c: pair(c, 1, 0), WrongTensors("pair", ["a", "b"], ["b", "a"])),
    "nbytes does not match": (
        with_headers("echo", [header(nbytes=31)], X.nbytes),
        BadRequest("nbytes", "31", "input 'x' of this shape has 32"),
    ),
    "nbytes is enormous": (
        with_headers("echo", [header(nbytes=2**64 - 1)], X.nbytes),
        BadRequest("nbytes", str(2**64 - 1), "input 'x' of this shape has 32"),
    ),
    "payload too short": (
        with_headers("echo", [header()], 31),
        BadRequest("payload_bytes", "31", "the inline inputs have 32"),
    ),
    "payload too long": (
        with_headers("echo", [header()], 33),
        BadRequest("payload_bytes", "33", "the inline inputs have 32"),
    ),
    "no payload": (with_headers("echo", [header()]), BadRequest("payload_bytes", "0", "the inline inputs have 32")),
    "payload beyond inline_bytes_max": (
        lambda c: c.request("large", np.zeros((17, 65536), np.uint8), request_id=ID),
        PayloadTooLarge(17 * 65536, 2**20),
    ),
    "bad priority": (with_x(X, priority=3), BadRequest("priority", "3", "")),
    "negative deadline": (with_x(X, deadline_ns=-1), BadRequest("deadline_ns", "-1", "")),
    "most negative deadline": (with_x(X, deadline_ns=-(2**63)), BadRequest("deadline_ns", str(-(2**63)), "")),
    "nine dimensions": (with_headers("echo", [header(shape=(1,) * 9)], X.nbytes), BadRequest("ndim", "9", "")),
    "an enormous dimension": (
        with_headers("echo", [header(shape=(2**63, 4))], X.nbytes),
        BadRequest("shape", f"({2**63}, 4)", ""),
    ),
    "a product beyond 64 bits": (
        with_headers("echo", [header(shape=(2**40,) * 8)], X.nbytes),
        WrongShape("echo", "x", "(rows, 4)", "(" + ", ".join([str(2**40)] * 8) + ")"),
    ),
    "more tensors than there can be": (
        with_headers("echo", [header()], X.nbytes, input_count=255, output_count=255),
        BadRequest("tensors", "510", ""),
    ),
    "more tensors than there are": (
        with_headers("echo", [header()], X.nbytes, input_count=2),
        BadRequest("tensor header", "40 bytes of meta", ""),
    ),
    "fewer tensors than there are": (
        with_headers("echo", [header()], X.nbytes, input_count=0),
        BadRequest("meta_bytes", "40", ""),
    ),
    "unknown dtype": (
        with_meta(INFER_X + struct.pack("<BBBBIQQ2Q", 0, 99, 2, 0, 0, 0, 32, 2, 4)),
        BadRequest("dtype", "99", ""),
    ),
    "unknown lane": (
        with_meta(INFER_X + struct.pack("<BBBBIQQ2Q", 0, 9, 2, 2, 0, 0, 32, 2, 4)),
        BadRequest("lane", "2", ""),
    ),
    "meta too short": (with_meta(INFER_X[:-1]), BadRequest("meta_bytes", "23", "")),
    "no meta": (with_meta(b""), BadRequest("meta_bytes", "0", "")),
    "tensor header cut off": (with_meta(INFER_X + bytes(10)), CUT_TENSOR),
    "shape cut off": (with_meta(INFER_X + struct.pack("<BBBBIQQQ", 0, 9, 2, 0, 0, 0, 32, 2)), CUT_SHAPE),
    "no trace where one is promised": (with_meta(INFER_X, Flags.TRACE), NO_HEADER),
    "half a trace": (with_meta(INFER_X + bytes(12), Flags.TRACE), NO_HEADER),
    "output inline": (
        with_headers("echo", [header()], X.nbytes, outputs=[output(lane=Lane.INLINE)]),
        BadRequest("output lane", "inline", ""),
    ),
    "output out of range": (
        with_headers("echo", [header()], X.nbytes, outputs=[output(1)]),
        BadRequest("output index", "1", "name each of 0 to 0 once"),
    ),
    "output twice": (
        with_headers("echo", [header()], X.nbytes, outputs=[output(), output()]),
        BadRequest("output index", "0", "name each of 0 to 0 once"),
    ),
    "output in an unknown arena": (
        with_headers("echo", [header()], X.nbytes, outputs=[output()]),
        UnknownArena(NOT_ATTACHED),
    ),
    "input in an unknown arena": (
        with_headers("echo", [header(lane=Lane.ARENA, arena=NOT_ATTACHED)]),
        UnknownArena(NOT_ATTACHED),
    ),
    "input in the ingest arena": (with_headers("echo", [header(lane=Lane.ARENA, arena=0)]), UnknownArena(0)),
    "output too small": (
        with_headers("echo", [header()], X.nbytes, outputs=[output(nbytes=31)]),
        OutputTooSmall("y", 32, 31),
    ),
}

KNOWN = ["counts", "deadly", "detect", "echo", "gate", "inplace", "labels", "large", "pair", "picky", "pixels"]

CONTROL: dict[str, tuple[Build, TensordError]] = {
    "unknown version": (lambda _: encode_open(ID, "echo:7"), UnknownModel("echo:7", [])),
    "unknown label": (lambda _: encode_open(ID, "echo:canary"), UnknownModel("echo:canary", [])),
    "unknown model": (lambda _: encode_open(ID, "nope"), UnknownModel("nope", [])),
    "empty name": (lambda _: encode_open(ID, ""), UnknownModel("", [])),
    "a name full of traps": (lambda _: encode_open(ID, "{0}\0../\n\x1b[2J"), UnknownModel("{0}\0../\n\x1b[2J", [])),
    "name too long": (
        lambda _: encode_open(ID, "n" * 129),
        BadRequest("OPEN", "a text of 129 bytes in 131 bytes of meta, at most 128", ""),
    ),
    "name not UTF-8": (
        with_meta(NAME.pack(2) + b"\xff\xfe", frame_type=FrameType.OPEN),
        BadRequest("OPEN", "a text that is not UTF-8", ""),
    ),
    "name cut off": (
        with_meta(NAME.pack(9) + b"echo", frame_type=FrameType.OPEN),
        BadRequest("OPEN", "a text of 9 bytes in 6 bytes of meta, at most 128", ""),
    ),
    "bytes behind the name": (
        with_meta(NAME.pack(4) + b"echo!", frame_type=FrameType.OPEN),
        BadRequest("OPEN", "a text of 4 bytes in 7 bytes of meta, at most 128", ""),
    ),
    "OPEN without meta": (with_meta(b"", frame_type=FrameType.OPEN), BadRequest("OPEN", "0 bytes of meta", "")),
    "arena of no bytes": (
        lambda _: encode_arena(FrameType.ATTACH, ID, 0, 0),
        BadRequest("nbytes", "0", "ask for an arena of at least one byte"),
    ),
    "arena too large": (
        lambda _: encode_arena(FrameType.ATTACH, ID, 0, 2**30 + 1),
        ArenaQuotaExceeded(2**30 + 1, 2**30, "arena_bytes_max"),
    ),
    "arena of all there is": (
        lambda _: encode_arena(FrameType.ATTACH, ID, 0, 2**64 - 1),
        ArenaQuotaExceeded(2**64 - 1, 2**30, "arena_bytes_max"),
    ),
    "ATTACH cut off": (
        with_meta(bytes(15), frame_type=FrameType.ATTACH),
        BadRequest("ATTACH", "15 bytes of meta", ""),
    ),
    "DETACH of nothing": (
        lambda _: encode_arena(FrameType.DETACH, ID, NOT_ATTACHED, 0),
        UnknownArena(NOT_ATTACHED),
    ),
    "HELLO again": (with_meta(bytes(8), frame_type=FrameType.HELLO), BadRequest("HELLO", "repeated", "")),
} | {
    f"frame type {number}": (with_meta(b"", frame_type=number), UnknownFrame(number))
    for number in (
        0,
        FrameType.WELCOME,
        FrameType.OPENED,
        FrameType.ATTACHED,
        FrameType.RESULT,
        FrameType.ERROR,
        FrameType.PONG,
        FrameType.MODELS,
        17,
        255,
    )
}
CASES = INLINE | CONTROL


def assert_error(error: TensordError, expected: TensordError) -> None:
    """The same class with the same data; a remedy that is not given here, and the list of models, may say anything."""
    assert error.args is not None  # repr() of an exception that was not built by its class crashes Python
    assert type(error) is type(expected), error
    got, want = error.data(), expected.data()
    if isinstance(expected, BadRequest) and not expected.remedy:
        assert got["remedy"]
        want["remedy"] = got["remedy"]
    if isinstance(expected, UnknownModel):
        assert got["known"][: len(KNOWN)] == KNOWN
        want["known"] = got["known"]
    assert got == want


def assert_in_step(client: "RawClient") -> None:
    """A good request is answered well, and nothing else is on its way."""
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    client.ping()


# ── one by one, and all together ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", CASES)
def test_bad_request_gets_its_one_error(unharmed: "Daemon", connect: "Connect", case: str) -> None:
    build, expected = CASES[case]
    client = connect()
    client.open("echo")
    answer = client.ask(build(client))
    assert answer.request_id == ID
    assert_error(answer.error(), expected)
    assert_in_step(client)


def test_bad_frames_between_good_ones_each_get_their_own_answer(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    for model in ("echo", "pair", "large"):
        client.open(model)
    for seed in range(5):
        order = list(CASES) * 2
        random.Random(seed).shuffle(order)
        for case in order:
            build, expected = CASES[case]
            client.send(build(client), client.request("echo", X, request_id=8), build(client))
            answers = [client.receive() for _ in range(3)]
            for answer in answers:
                if answer.request_id == ID:
                    assert_error(answer.error(), expected)
            good = next(answer for answer in answers if answer.request_id == 8)
            assert good.frame_type == FrameType.RESULT
            assert good.payload == X.tobytes()
    assert_in_step(client)


def test_payload_of_a_frame_that_has_none_is_skipped(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    for frame_type in (FrameType.PING, FrameType.OPEN, FrameType.RESULT, 200):
        payload = bytes(300_000)
        answer = client.ask(HEADER.pack(MAGIC, frame_type, 0, 0, ID, len(payload)), payload)
        assert answer.frame_type == (FrameType.PONG if frame_type == FrameType.PING else FrameType.ERROR)
        assert_in_step(client)


def test_unknown_flags_change_nothing(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    good = bytearray(client.request("echo", X))
    good[3] = 0xFF & ~Flags.TRACE & ~Flags.LATEST
    answer = client.ask(bytes(good))
    assert answer.frame_type == FrameType.RESULT
    assert answer.payload == X.tobytes()


# ── time ────────────────────────────────────────────────────────────────────────────────────────


def test_deadline_that_has_passed_is_exceeded_on_arrival(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    for deadline_ns in (1, time.monotonic_ns() - 1):
        error = client.ask(client.request("echo", X, deadline_ns=deadline_ns)).error()
        assert isinstance(error, DeadlineExceeded)
        assert error.stage == "arrival"
        assert error.late_ms >= 0
        assert_in_step(client)


def test_deadline_as_far_as_can_be_said_is_taken(unharmed: "Daemon", connect: "Connect") -> None:
    client = connect()
    np.testing.assert_array_equal(client.call("echo", X)[0], X)
    answer = client.ask(client.request("echo", X, deadline_ns=2**63 - 1))
    assert answer.frame_type == FrameType.RESULT
