"""A daemon for tests of clients: real sockets and arenas, no scheduling, and it misbehaves on request."""

import contextlib
import itertools
import mmap
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensord.ipc.arena import create_arena
from tensord.ipc.client.arrays import Array
from tensord.ipc.errors import ArenaQuotaExceeded, TensordError, UnknownHandle, UnknownModel
from tensord.ipc.tensors import Dimension, DType, ModelSpec, TensorSpec
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
    decode_arena,
    decode_open,
    decode_tensors,
    encode_arena,
    encode_error,
    encode_models,
    encode_opened,
    encode_result,
    frame,
)

WATCHDOG_S = 20.0
"""Longest wait of a test for something that must happen; a limit against hanging, not a measurement."""


@dataclass(frozen=True)
class FakeModel:
    """A specification and what computes the outputs."""

    spec: ModelSpec
    compute: Callable[[Sequence[Array]], Sequence[Array]]


def one_to_one(
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
    compute: Callable[[Array], Array],
    *,
    rows_max: int = 1_024,
    idempotent: bool = True,
) -> FakeModel:
    """A model with one input x and one output y of the same form."""
    spec = ModelSpec(name, 3, (TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),), rows_max, idempotent)
    return FakeModel(spec, lambda inputs: [compute(inputs[0])])


def sum_and_difference() -> FakeModel:
    """A model with two inputs and two outputs."""
    inputs = (TensorSpec("a", DType.INT32, (2,)), TensorSpec("b", DType.INT32, (2,)))
    outputs = (TensorSpec("sum", DType.INT32, (2,)), TensorSpec("difference", DType.INT32, (2,)))
    spec = ModelSpec("pair", 1, inputs, outputs, 16, idempotent=True)
    return FakeModel(spec, lambda given: [given[0] + given[1], given[0] - given[1]])


def repeated(rows_max: int = 8) -> FakeModel:
    """A model whose output is far larger than its input."""
    outputs = (TensorSpec("y", DType.UINT8, (1 << 20,)),)
    spec = ModelSpec("wide", 1, (TensorSpec("x", DType.UINT8, ()),), outputs, rows_max, idempotent=True)
    return FakeModel(spec, lambda given: [np.repeat(given[0][:, None], 1 << 20, axis=1)])


def ragged() -> FakeModel:
    """A model of integers that gives them back, those above zero, and how many these are; its mask is optional."""
    n, found = Dimension("n", 1 << 16), Dimension("found", 8, from_data=True)
    inputs = (TensorSpec("x", DType.INT32, (n,)), TensorSpec("mask", DType.INT32, (n,), optional=True))
    outputs = (
        TensorSpec("same", DType.INT32, (n,)),
        TensorSpec("positive", DType.INT32, (found,)),
        TensorSpec("count", DType.INT64, ()),
    )
    spec = ModelSpec("ragged", 1, inputs, outputs, 64, idempotent=True)

    def compute(given: Sequence[Array]) -> Sequence[Array]:
        x = given[0] * given[1] if len(given) > 1 else given[0]
        rows = [row[row > 0] for row in x]
        positive = np.zeros((len(x), max(map(len, rows))), np.int32)
        for padded, row in zip(positive, rows, strict=True):
            padded[: len(row)] = row
        return [x, positive, np.array([len(row) for row in rows])]

    return FakeModel(spec, compute)


def usual_models() -> dict[str, FakeModel]:
    """What a FakeDaemon serves unless told otherwise."""
    models = [
        one_to_one("double", DType.FLOAT32, (4,), lambda x: x * 2),
        one_to_one("once", DType.FLOAT32, (4,), lambda x: x * 2, idempotent=False),
        one_to_one("image", DType.FLOAT32, (3, 64, 64), lambda x: x + 1, rows_max=64),
        one_to_one("half", DType.BFLOAT16, (4,), lambda x: x + x),
        one_to_one("scalar", DType.INT64, (), lambda x: x + 1),
        one_to_one("flags", DType.BOOL, (2,), lambda x: ~x),
        sum_and_difference(),
        repeated(),
        ragged(),
    ]
    return {model.spec.name: model for model in models}


class Infer:
    """A request as the fake daemon sees it."""

    def __init__(self, connection: "FakeConnection", request_id: int, head: InferHead, tensors: list[TensorHeader]):
        self.connection = connection
        self.request_id = request_id
        self.head = head
        self.tensors = tensors
        self.payload = bytearray()
        self.model = connection.handles.get(head.handle)

    @property
    def in_arena(self) -> bool:
        """Whether the outputs go into an arena."""
        return self.head.output_count > 0

    def inputs(self) -> list[Array]:
        """The inputs, in place."""
        arrays = []
        position = 0
        for tensor in self.tensors[: self.head.input_count]:
            if tensor.lane is Lane.ARENA:
                flat = self.connection.range_of(tensor)
            else:
                flat = np.frombuffer(self.payload, np.uint8, tensor.nbytes, position)
                position += tensor.nbytes
            arrays.append(flat.view(tensor.dtype.numpy).reshape(tensor.shape))
        return arrays

    def answer(self) -> None:
        """Compute, and send the RESULT."""
        if self.model is None:
            self.refuse(UnknownHandle(self.head.handle))
            return
        outputs = [np.ascontiguousarray(output) for output in self.model.compute(self.inputs())]
        headers = []
        payload = b""
        for index, (output, spec) in enumerate(zip(outputs, self.model.spec.outputs, strict=True)):
            header = TensorHeader(index, spec.dtype, output.shape, output.nbytes)
            if self.in_arena:
                given = self.tensors[self.head.input_count + index]
                flat = output.reshape(-1).view(np.uint8)
                self.connection.range_of(given)[: output.nbytes] = flat
                header = TensorHeader(
                    index, spec.dtype, output.shape, output.nbytes, Lane.ARENA, given.arena, given.offset
                )
            else:
                payload += output.tobytes()
            headers.append(header.encode())
        head = ResultHead(self.model.spec.version, outputs[0].shape[0], 7, 11, len(outputs))
        self.connection.send(encode_result(head, self.request_id, b"".join(headers), len(payload)) + payload)

    def refuse(self, error: TensordError) -> None:
        """Send an ERROR."""
        self.connection.send(encode_error(self.request_id, error))

    def drop(self) -> None:
        """End the connection without an answer."""
        self.connection.drop()


class FakeConnection:
    """One accepted connection and the thread that serves it."""

    def __init__(self, daemon: "FakeDaemon", accepted: socket.socket) -> None:
        self.daemon = daemon
        self.handles: dict[int, FakeModel] = {}
        self.arenas: dict[int, Array] = {}
        self.tenant = ""
        self._socket = accepted
        self._lock = threading.Lock()
        self._arena_numbers = itertools.count(1)
        self._infer: Infer | None = None
        self.thread = threading.Thread(target=self._serve, name="fake-connection")

    def _serve(self) -> None:
        reader = FrameReader(self, memoryview(bytearray(1 << 16)))
        with contextlib.suppress(OSError):
            while nbytes := self._socket.recv_into(reader.get_buffer()):
                reader.buffer_updated(nbytes)
        self.drop()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send all of it; a client that is gone is ignored."""
        with self._lock, contextlib.suppress(OSError):
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors)
            else:
                self._socket.sendall(data)

    def drop(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and its thread."""
        self.drop()
        self.thread.join()
        self._socket.close()

    def range_of(self, tensor: TensorHeader) -> Array:
        """The bytes of an arena that a header names."""
        assert tensor.offset % 64 == 0
        memory = self.arenas[tensor.arena]
        assert tensor.offset + tensor.nbytes <= len(memory)
        return memory[tensor.offset : tensor.offset + tensor.nbytes]

    # ── frames ──────────────────────────────────────────────────────────────────────────────────

    def frame_started(
        self, frame_type: int, flags: int, request_id: int, meta: memoryview, payload_bytes: int
    ) -> Sequence[memoryview] | None:
        """Answer a frame, or remember the request whose payload comes."""
        kind = FrameType(frame_type)
        if kind is FrameType.INFER:
            head, headers = InferHead.decode(meta, flags)
            tensors = decode_tensors(headers, head.input_count + head.output_count)
            self._infer = Infer(self, request_id, head, tensors)
            if payload_bytes:
                self._infer.payload = bytearray(payload_bytes)
                return [memoryview(self._infer.payload)]
            self.frame_finished()
            return None
        assert payload_bytes == 0
        hook = self.daemon.on_frame.get(kind)
        if hook is None:
            self.answer_control(kind, request_id, bytes(meta))
        else:
            hook(self, request_id, bytes(meta))
        self.daemon.note(kind, request_id)
        return None

    def frame_finished(self) -> None:
        """A request is complete."""
        infer, self._infer = self._infer, None
        assert infer is not None
        self.daemon.requests.append(infer)
        self.daemon.on_infer(infer)
        self.daemon.note(FrameType.INFER, infer.request_id)

    def answer_control(self, kind: FrameType, request_id: int, meta: bytes) -> None:
        """The usual answer to everything but INFER."""
        daemon = self.daemon
        match kind:
            case FrameType.HELLO:
                self.tenant = Hello.decode(memoryview(meta)).tenant
                self.send(daemon.welcome.encode(request_id))
            case FrameType.OPEN:
                self._open(request_id, decode_open(memoryview(meta)))
            case FrameType.ATTACH:
                self._attach(request_id, decode_arena(memoryview(meta))[1])
            case FrameType.PING:
                self.send(frame(FrameType.PONG, request_id))
            case FrameType.LIST:
                entries = [ModelEntry(model.spec.name, model.spec.version, True) for model in daemon.models.values()]
                self.send(encode_models(request_id, entries))
            case _:
                assert kind in (FrameType.CANCEL, FrameType.CLOSE, FrameType.DETACH)

    def _open(self, request_id: int, name: str) -> None:
        model = self.daemon.models.get(name)
        if model is None:
            self.send(encode_error(request_id, UnknownModel(name, sorted(self.daemon.models))))
            return
        handle = next(self.daemon.handle_numbers)
        self.handles[handle] = model
        self.send(encode_opened(request_id, handle, model.spec))

    def _attach(self, request_id: int, nbytes: int) -> None:
        daemon = self.daemon
        if len(self.arenas) >= daemon.arenas_max or nbytes > daemon.welcome.arena_bytes_max:
            self.send(encode_error(request_id, ArenaQuotaExceeded(nbytes, daemon.welcome.arena_bytes_max, "arenas")))
            return
        number = next(self._arena_numbers)
        fd = create_arena(nbytes)
        self.arenas[number] = np.frombuffer(mmap.mmap(fd, nbytes), np.uint8)
        self.send(encode_arena(FrameType.ATTACHED, request_id, number, nbytes), [fd])
        os.close(fd)


class FakeDaemon:
    """Serves `models` on a socket; `on_infer` and `on_frame` replace its usual behaviour."""

    def __init__(self, path: Path, models: dict[str, FakeModel] | None = None) -> None:
        self.path = path
        self.models = models if models is not None else usual_models()
        self.welcome = Welcome(1, 42, 1_024, 1 << 20, 1 << 26)
        self.arenas_max = 8
        self.handle_numbers = itertools.count(1)
        self.on_infer: Callable[[Infer], None] = Infer.answer
        self.on_frame: dict[FrameType, Callable[[FakeConnection, int, bytes], None]] = {}
        self.requests: list[Infer] = []
        self.connections: list[FakeConnection] = []
        self._seen: list[tuple[FrameType, int]] = []
        self._changed = threading.Condition()
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen (again)."""
        self.path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen(64)
        self._thread = threading.Thread(target=self._accept, name="fake-daemon")
        self._thread.start()

    def _accept(self) -> None:
        assert self._listening is not None
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            connection = FakeConnection(self, accepted)
            with self._changed:
                self.connections.append(connection)
            connection.thread.start()

    def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._listening is None or self._thread is None:
            return
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self._listening = None
        for connection in self.connections:
            connection.close()

    def note(self, kind: FrameType, request_id: int) -> None:
        """A frame was received and handled."""
        with self._changed:
            self._seen.append((kind, request_id))
            self._changed.notify_all()

    def seen(self, kind: FrameType) -> list[int]:
        """Request ids of the frames of this kind so far."""
        with self._changed:
            return [request_id for seen, request_id in self._seen if seen is kind]

    def wait_seen(self, kind: FrameType, count: int = 1) -> list[int]:
        """Wait until `count` frames of this kind were handled."""
        with self._changed:
            reached = self._changed.wait_for(lambda: sum(seen is kind for seen, _ in self._seen) >= count, WATCHDOG_S)
        assert reached, f"{count} {kind.name} frames did not come"
        return self.seen(kind)


class Script:
    """One behaviour per request, in order; the last one goes on."""

    def __init__(self, *steps: Callable[[Infer], Any]) -> None:
        self._steps = list(steps)

    def __call__(self, infer: Infer) -> None:
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        step(infer)


def ignore(_: Infer) -> None:
    """Never answer."""
