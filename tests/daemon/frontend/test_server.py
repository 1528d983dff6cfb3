"""What the front end makes of answers of a worker, nonsense among them; all else is tested with real processes."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tensord.daemon import messages as m
from tensord.daemon.frontend.connection import Connection
from tensord.daemon.frontend.ingest import Ingest
from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.frontend.server import FrontEnd
from tensord.daemon.frontend.streams import Streams
from tensord.daemon.frontend.worker_port import WorkerPort
from tensord.daemon.knobs import KNOBS
from tensord.daemon.messages import Link
from tensord.daemon.scheduling import ModelPolicy
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.scheduling.request import Batch, ReleaseReason
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker.channel import Channel
from tensord.ipc.descriptors import DONE, Kind, encode_done, encode_failed
from tensord.ipc.errors import (
    Cancelled,
    InternalError,
    ModelFailed,
    NoMemory,
    OutputTooSmall,
    TenantQueueFull,
    TensordError,
)
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter
from tensord.ipc.tensors import DType
from tensord.ipc.wire import HEADER, FrameType, Lane, ResultHead, TensorHeader, decode_error

MakeRequest = Callable[..., InferRequest]


class Meeting:
    """A front end that has sent one batch to a worker, and the ends of supervisor and worker."""

    def __init__(self) -> None:
        self.supervisor, link = Link.pair()
        self.front_end = FrontEnd(link)
        self.loop = asyncio.new_event_loop()
        self.front_end._loop = self.loop
        rings = Rings.create(4)
        self.port = WorkerPort(2, "cpu:0", 4, [os.dup(fd) for fd in rings.fds])
        self.channel = Channel(4, [os.dup(fd) for fd in rings.fds])
        rings.close()
        self.loop.add_reader(self.port.bell.fileno(), self.front_end._answered, self.port)
        self.front_end._ports[2] = self.port
        queue = ModelQueue(0, "m", ModelPolicy(), idempotent=True)
        self.front_end._running[8] = Batch(8, queue, None, 3, [], 0, ReleaseReason.FULL, 0, 0, 1)  # another worker's
        self.port.send(Kind.BATCH, b"a batch")

    def close(self) -> None:
        if 2 in self.front_end._ports:
            self.loop.remove_reader(self.port.bell.fileno())
            self.port.close()
        self.channel.close()
        self.front_end.link.close()
        self.front_end._timer.close()
        self.supervisor.close()
        self.loop.close()


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    made = Meeting()
    yield made
    made.close()


NONSENSE = pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(Kind.DONE, DONE.pack(7, 1), id="a batch that nobody has"),
        pytest.param(Kind.DONE, DONE.pack(8, 1), id="another worker's batch"),
        pytest.param(Kind.DONE, b"", id="no batch"),
        pytest.param(Kind.DONE, DONE.pack(8, 1) + b"x", id="too long"),
        pytest.param(Kind.DONE, encode_done(8, 1, [0]), id="sizes of another worker's batch"),
        pytest.param(Kind.FAILED, b"short", id="cut off"),
        pytest.param(Kind.FAILED, DONE.pack(7, 1), id="no error"),
        pytest.param(Kind.FAILED, encode_failed(7, 1, InternalError("x")), id="the failure of a batch that nobody has"),
        pytest.param(99, b"", id="another kind"),
    ],
)


class Client:
    """The other end of a connection of the front end."""

    def __init__(self, front_end: FrontEnd, streams: Streams) -> None:
        self._socket, ours = socket.socketpair()
        self._socket.setblocking(False)
        self.connection = Connection(front_end)
        self.connection.start(streams, ours)
        self.results: dict[int, list[TensorHeader]] = {}
        self.errors: dict[int, TensordError] = {}

    def read(self) -> None:
        """Take what was answered."""
        with contextlib.suppress(BlockingIOError):
            self._take(self._socket.recv(1 << 20))

    def _take(self, data: bytes) -> None:
        """One write may hold several frames."""
        while data:
            _, frame_type, _, meta_bytes, request_id, payload_bytes = HEADER.unpack_from(data)
            end = HEADER.size + meta_bytes
            meta = memoryview(data)[HEADER.size : end]
            assert request_id not in {*self.results, *self.errors}
            if frame_type == FrameType.RESULT:
                self.results[request_id] = ResultHead.decode(meta)[1]
            else:
                self.errors[request_id] = decode_error(meta)
            data = data[end + payload_bytes :]

    def close(self) -> None:
        self._socket.close()
        self.connection.stream.abort()


class Serving(Meeting):
    """A front end that serves one model on the worker, and requests of a client for it."""

    def __init__(self, model: Model, make: MakeRequest, ingest: Ingest) -> None:
        super().__init__()
        front_end = self.front_end
        self.page = Segment.create(Block.nbytes(model.index + 1))
        self.block = front_end._block = Block.format(self.page.view, model.index + 1)
        front_end.ingest, front_end.ingest_view = ingest, memoryview(bytearray(ingest.nbytes))
        front_end.models.by_index[model.index] = model
        general = {name: knob.default for name, knob in KNOBS.items()}
        front_end._knobs = m.KnobValues(0, general, {}, {}, {})
        front_end.users.set_knobs(general, {})
        front_end.scheduler.add_model(model.index, model.name, front_end._policy(model), idempotent=True)
        front_end.scheduler.add_worker(2, "cpu:0")
        front_end.scheduler.add_replica(0, 2, model.index)
        self.model = model
        self.streams = Streams(self.loop, lambda: None)
        self.client = Client(front_end, self.streams)
        self._make = make

    def submit(self, **wishes: Any) -> None:
        """A request of the client has arrived; they are numbered as they come."""
        request = self._make(request_id=self.front_end.scheduler.queued + 1, **wishes)
        request.connection = self.client.connection
        request.connection.in_flight[request.request_id] = request
        request.arrival_ns = time.monotonic_ns()
        assert self.front_end.scheduler.submit(request.arrival_ns, request) is None

    def dispatch(self) -> int:
        """All of them go to the worker; the id of their batch."""
        self.front_end._dispatch()
        self.channel.listen()
        messages = iter(self.channel.take, None)
        assert next(messages) == (Kind.BATCH, b"a batch")
        (message,) = messages
        batch_id = int.from_bytes(message[1][:8], "little")
        assert batch_id in self.front_end._running
        return batch_id

    def answer(self, body: bytes) -> None:
        """The worker says this of what it was sent."""
        self.channel.answer(Kind.DONE, body)
        self.front_end._answered(self.port)
        self.client.read()

    def accused(self) -> bool:
        received = self.supervisor.receive()
        return received is not None and isinstance(received[0], m.WorkerAccused)

    def close(self) -> None:
        self.client.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.streams.close()
        super().close()
        self.block.words.release()
        self.page.close()


@pytest.fixture
def serving(ragged_model: Model, make_ragged: MakeRequest, ingest: Ingest) -> Iterator[Serving]:
    """Of the model with free dimensions."""
    made = Serving(ragged_model, make_ragged, ingest)
    yield made
    made.close()


SIZES = {"tokens": 5, "beams": 3}


def test_each_request_gets_the_sizes_that_came_from_its_data(serving: Serving) -> None:
    for rows in (1, 2):
        serving.submit(rows=rows, sizes=SIZES)
    serving.answer(encode_done(serving.dispatch(), 1000, [7, 0]))
    assert {
        request_id: [tensor.shape for tensor in tensors] for request_id, tensors in serving.client.results.items()
    } == {1: [(1, 5, 3), (1, 7, 4), (1,)], 2: [(2, 5, 3), (2, 0, 4), (2,)]}
    assert not serving.accused()
    counters = serving.block.counters(serving.model.index)
    assert counters[Counter.SUCCEEDED] == 2
    assert counters[Counter.REPLIED_BYTES] == (30 + 7 * 16 + 4) + (60 + 0 + 8)


def test_a_request_whose_output_does_not_fit_gets_an_error_and_its_neighbour_a_result(serving: Serving) -> None:
    serving.submit(rows=1, sizes=SIZES, outputs_in={1: (1, 0)}, room=48)
    serving.submit(rows=1, sizes=SIZES, outputs_in={1: (1, 64)}, room=64)
    serving.answer(encode_done(serving.dispatch(), 1000, [4, 4]))
    (error,) = serving.client.errors.values()
    assert isinstance(error, OutputTooSmall)
    assert error.data() == {"tensor": "spans", "needed_bytes": 64, "given_bytes": 48}
    assert list(serving.client.errors) == [1]
    assert serving.client.results[2][1] == TensorHeader(1, DType.FLOAT32, (1, 4, 4), 64, Lane.ARENA, 1, 64)
    counters = serving.block.counters(serving.model.index)
    assert (counters[Counter.FAILED_CLIENT], counters[Counter.SUCCEEDED]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "health"), [(InternalError("x"), 0.5), (NoMemory("gpu"), 0.5), (ModelFailed("m", "x"), 1.0)], ids=repr
)
def test_a_failure_counts_against_the_device_unless_the_model_is_at_fault(
    serving: Serving, error: TensordError, health: float
) -> None:
    serving.submit(rows=1, sizes=SIZES)
    serving.channel.answer(Kind.FAILED, encode_failed(serving.dispatch(), 1000, error))
    serving.front_end._answered(serving.port)
    serving.client.read()
    assert [type(one) for one in serving.client.errors.values()] == [type(error)]
    assert [worker.health for worker in serving.front_end.scheduler.statistics().workers] == [health]


def test_the_weight_of_a_device_reaches_the_scheduler(serving: Serving) -> None:
    def weights() -> list[float]:
        return [worker.weight for worker in serving.front_end.scheduler.statistics().workers]

    general = serving.front_end._knobs.general
    serving.front_end._apply_knobs(m.KnobValues(1, general, {}, {"cpu:0": {"device_weight": 3.0}}, {}))
    assert weights() == [3.0]
    serving.front_end._apply_knobs(m.KnobValues(2, general, {}, {"cpu:1": {"device_weight": 5.0}}, {}))
    assert weights() == [1.0]


@pytest.mark.parametrize("sizes", [[], [1], [1, 1, 1], [9, 1], [1, 9], [2**32 - 1, 0]], ids=str)
def test_sizes_that_make_no_sense_break_the_ring(serving: Serving, sizes: list[int]) -> None:
    for _ in range(2):
        serving.submit(rows=1, sizes=SIZES)
    batch_id = serving.dispatch()
    serving.answer(encode_done(batch_id, 1000, sizes))
    assert serving.accused()
    assert batch_id in serving.front_end._running, "it runs again when the worker has ended"
    assert (serving.client.results, serving.client.errors) == ({}, {})


def test_parts_are_taken_back_once_however_many_fail(
    serving: Serving, make_ragged: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    front_end = serving.front_end
    front_end._apply_knobs(m.KnobValues(1, front_end._knobs.general | {"queue_max": 4, "max_batch": 1}, {}, {}, {}))
    cancel = front_end.scheduler.cancel
    asked: list[InferRequest] = []

    def count(now: int, part: InferRequest) -> bool:
        asked.append(part)
        return cancel(now, part)

    monkeypatch.setattr(front_end.scheduler, "cancel", count)
    whole = make_ragged(request_id=1, rows=64, sizes=SIZES)
    whole.connection = serving.client.connection
    whole.connection.in_flight[1] = whole
    front_end.submit(time.monotonic_ns(), whole)
    serving.client.read()
    assert [type(error) for error in serving.client.errors.values()] == [TenantQueueFull]
    assert len(asked) == len(set(asked))
    assert front_end.scheduler.queued == 0


def test_sizes_of_a_model_that_has_none_break_the_ring(model: Model, make_request: MakeRequest, ingest: Ingest) -> None:
    serving = Serving(model, make_request, ingest)
    serving.submit(rows=1)
    serving.answer(encode_done(serving.dispatch(), 1000, [0]))
    assert serving.accused()
    serving.close()


def test_a_cancelled_request_gets_no_result_whatever_its_sizes(serving: Serving) -> None:
    serving.submit(rows=1, sizes=SIZES, outputs_in={1: (1, 0)}, room=48)
    batch_id = serving.dispatch()
    (request,) = serving.front_end._running[batch_id].requests
    serving.front_end.cancel(request)
    serving.answer(encode_done(batch_id, 1000, [4]))
    assert [type(error) for error in serving.client.errors.values()] == [Cancelled]


@NONSENSE
def test_a_worker_whose_answer_makes_no_sense_is_accused(meeting: Meeting, kind: int, body: bytes) -> None:
    meeting.channel.answer(kind, body)
    meeting.front_end._answered(meeting.port)
    received = meeting.supervisor.receive()
    assert received is not None
    accused, _ = received
    assert isinstance(accused, m.WorkerAccused)
    assert (accused.worker, accused.generation) == (2, 4)
    assert not meeting.loop.remove_reader(meeting.port.bell.fileno()), "it is listened to no more"
    assert 8 in meeting.front_end._running


@NONSENSE
def test_the_last_words_of_a_dead_worker_may_be_nonsense(meeting: Meeting, kind: int, body: bytes) -> None:
    meeting.channel.answer(kind, body)
    meeting.front_end.scheduler.add_worker(2, "cpu:0")
    meeting.front_end._remove_worker(1, 2)
    assert 2 not in meeting.front_end._ports
    assert list(meeting.front_end._running) == [8]
