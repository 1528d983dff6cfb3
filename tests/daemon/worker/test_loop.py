"""The worker's loop in a thread of the test, with real rings and links, and a device that is late on purpose.

`LateDevice` works like a GPU's streams, one per stage: stacking, padding and copying out only enqueue copies, which
are carried out when somebody waits for a mark behind them. The model `identity` returns its input, so a result can
only be right if the loop waits for the device before it answers, and it can only be overtaken if it does not.
"""

import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tensord.daemon import messages as m
from tensord.daemon.frontend.worker_port import WorkerPort
from tensord.daemon.knobs import KNOBS, Setting
from tensord.daemon.messages import Link
from tensord.daemon.models.dtypes import TORCH_DTYPES
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker import loop as loops
from tensord.daemon.worker.device import CpuDevice, Device, DeviceLost, DeviceStatistics, Stage, fill_corners, typed
from tensord.daemon.worker.loop import Worker
from tensord.ipc.arena import create_arena, map_arena
from tensord.ipc.descriptors import (
    Kind,
    RaggedRequest,
    Run,
    decode_done,
    decode_failed,
    encode_batch,
    encode_ragged,
)
from tensord.ipc.errors import BadModelOutput, InternalError, ModelFailed, TensordError
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter, Phase, Word
from tensord.ipc.tensors import DType, TensorSpec

pytestmark = pytest.mark.timeout(60)

WATCHDOG_S = 30.0
INGEST_BYTES = 64 * 1024
ROW = 16
"""Bytes of a row of the models here: four float32."""

TENSORS = """
format = "factory"
factory = "model.py:build"
[[inputs]]
name = "x"
dtype = "float32"
shape = [4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [4]
"""
PADDED_TENSORS = """
format = "factory"
factory = "model.py:build"
[dimensions.n]
max = 8
buckets = [4, 8]
[[inputs]]
name = "x"
dtype = "float32"
shape = ["n"]
pad = -1
[[outputs]]
name = "y"
dtype = "float32"
shape = ["n"]
"""
POSITIVE_TENSORS = (
    PADDED_TENSORS
    + """
[[outputs]]
name = "positive"
dtype = "float32"
shape = ["found"]
[[outputs]]
name = "count"
dtype = "int64"
shape = []
[dimensions.found]
max = 8
count = "count"
[[preprocess]]
op = "normalize"
input = "x"
scale = 2
"""
)
CODE = """
import torch
from pathlib import Path

class Model(torch.nn.Module):
    def forward(self, x):
        {body}

def build():
    return Model()
"""
IDENTITY, FAILING, CHANGING, NARROW, PADDED, POSITIVE = range(6)
MODELS = {
    "identity": "return x",
    # These two are well until their switch is there, and so pass their warm-up.
    "failing": "if Path(__file__).with_name('switch').exists(): raise RuntimeError('on purpose')\n        return x",
    "changing": "return x.mul_(2)",
    "narrow": "return x[:, :3] if Path(__file__).with_name('switch').exists() else x",
    "padded": "return x",
    "positive": "return x, x.sort(dim=1, descending=True).values, (x > 0).sum(1)",
}
TOML = {"padded": PADDED_TENSORS, "positive": POSITIVE_TENSORS}


@dataclass(frozen=True)
class Mark:
    """A point in the queue of a stage."""

    stage: Stage
    behind: int
    """Steps of that queue that lie before it."""
    number: int
    """Steps of all queues that were enqueued before it: virtual time."""


class LateDevice:
    """Carries out what lies before a mark when that mark is waited for, and nothing before.

    A stage that is entered waits for what its predecessor has been given so far, and for nothing else. Copies and
    marks outside of their stage are an error: a stream that nobody waits for would carry them out.
    """

    in_flight_max = 2
    computes_in_place = False
    copy_in_phase = Phase.HOST_TO_DEVICE
    copy_out_phase = Phase.DEVICE_TO_HOST
    capture = None

    def __init__(self) -> None:
        self.name = "cpu:0"
        self.torch_device = torch.device("cpu")
        self.gate: Callable[[Mark], None] = lambda _mark: None
        """Called when a mark is waited for; may wait itself, or raise what a GPU raises."""
        self.begun = 0
        """Batches of which copies were enqueued."""
        self._stage: Stage | None = None
        self._queues: dict[Stage, list[Callable[[], Any]]] = {stage: [] for stage in Stage}
        self._reached = dict.fromkeys(Stage, 0)
        """Steps that were carried out."""

    @contextmanager
    def stage(self, stage: Stage, uses: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        assert self._stage is None, f"{stage.name} within another stage"
        if stage is not Stage.COPY_IN:
            before = Stage(stage - 1)
            behind = len(self._queues[before])
            self._queues[stage].append(lambda: self._carry_out(before, behind))
        self._stage = stage
        try:
            yield
        finally:
            self._stage = None

    def open_region(self, buffer: Any) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def close_region(self, region: torch.Tensor) -> None:
        pass

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        self.begun += 1
        whole = torch.full((sum(len(part) for part in parts),), 0xEE, dtype=torch.uint8)
        self._enqueue(Stage.COPY_IN, lambda: torch.cat(list(parts), out=whole))
        return whole.view(torch.float32).view(-1, *spec.row_shape()), False

    def pad(
        self,
        dtype: DType,
        parts: Sequence[torch.Tensor],
        shapes: Sequence[tuple[int, ...]],
        shape: tuple[int, ...],
        value: float,
        *,
        private: bool,
    ) -> tuple[torch.Tensor, bool]:
        self.begun += 1
        whole = torch.full((math.prod(shape) * dtype.itemsize,), 0xEE, dtype=torch.uint8)
        tensor = whole.view(TORCH_DTYPES[dtype]).view(shape)

        def copy() -> None:
            tensor.fill_(value)
            fill_corners(tensor, [typed(part, dtype) for part in parts], shapes)

        self._enqueue(Stage.COPY_IN, copy)
        return tensor, False

    def copy_out(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert source.shape == target.shape
        self._enqueue(Stage.COPY_OUT, lambda: target.copy_(source))

    def _enqueue(self, stage: Stage, step: Callable[[], Any]) -> None:
        assert self._stage is stage, f"a step of {stage.name} in the stage {self._stage}"
        self._queues[stage].append(step)

    def mark(self) -> Mark:
        assert self._stage is not None, "a mark in no stage"
        return Mark(self._stage, len(self._queues[self._stage]), self.enqueued)

    def wait(self, mark: Mark) -> None:
        self.gate(mark)
        self._carry_out(mark.stage, mark.behind)

    def _carry_out(self, stage: Stage, behind: int) -> None:
        while self._reached[stage] < behind:
            self._queues[stage][self._reached[stage]]()
            self._reached[stage] += 1

    @property
    def reached(self) -> int:
        return sum(self._reached.values())

    @property
    def enqueued(self) -> int:
        return sum(map(len, self._queues.values()))

    def between_ns(self, first: Mark, second: Mark) -> int:
        for mark in (first, second):
            assert mark.behind <= self._reached[mark.stage], "asked for the time of a mark that is not reached"
        return 1000 * (second.number - first.number)

    def statistics(self) -> DeviceStatistics:
        return DeviceStatistics(4711)

    def held_bytes(self) -> int:
        return 0


class Play:
    """A worker in a thread, and the test in the place of supervisor and front end."""

    def __init__(self, root: Path, device: Device) -> None:
        self.root = root
        self.supervisor, self._workers_link = Link.pair()
        self.worker = Worker(self._workers_link, device)
        self.page = Segment.create(Block.nbytes(len(MODELS)))
        self.block = Block.format(self.page.view, len(MODELS))
        self.ingest = Segment.create(INGEST_BYTES)
        self.port: WorkerPort
        self.generation = 0
        self.data_sizes: tuple[int, ...] = ()
        """Those of the last answer."""
        self.lost: DeviceLost | None = None
        """What ended the worker, if its device did."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.worker.run()
        except DeviceLost as error:
            self.lost = error

    # ── supervisor ──────────────────────────────────────────────────────────────────────────────

    def start(self, *, spin: bool) -> None:
        self._thread.start()
        setup = m.WorkerSetup(0, "cpu:0", torch.get_num_threads(), spin, self.page.nbytes)
        self.supervisor.send(setup, [self.page.fd])
        assert self.expect(m.WorkerStarted)
        for index, name in enumerate(MODELS):
            self.supervisor.send(m.LoadModel(index, str(self.root), name, 1))
            assert self.expect(m.ModelLoaded).index == index  # type: ignore[attr-defined]
        self.open_channel()
        assert self.expect(m.ChannelOpened) == m.ChannelOpened(1)

    def open_channel(self) -> WorkerPort:
        """New rings; returns the port of the old ones."""
        self.generation += 1
        rings = Rings.create(self.generation)
        old = getattr(self, "port", None)
        self.port = WorkerPort(0, "cpu:0", self.generation, [os.dup(fd) for fd in rings.fds])
        message = m.OpenChannel(self.generation, INGEST_BYTES)
        self.supervisor.send(message, [*rings.fds, self.ingest.fd])
        rings.close()
        return old or self.port

    def expect(self, kind: type[m.Message]) -> m.Message:
        """The next message, which must be of this kind."""
        readable, _, _ = select.select([self.supervisor], [], [], WATCHDOG_S)
        assert readable, f"no {kind.__name__} within {WATCHDOG_S} s"
        received = self.supervisor.receive()
        assert received is not None
        assert isinstance(received[0], kind)
        return received[0]

    # ── front end ───────────────────────────────────────────────────────────────────────────────

    def write(self, row: int, value: float, rows: int = 1) -> None:
        """Fill rows of the ingest arena."""
        tensor = torch.full((rows * 4,), value)
        self.ingest.view[row * ROW : (row + rows) * ROW] = tensor.numpy().tobytes()

    def read(self, row: int, rows: int = 1) -> list[float]:
        """The first number of each row."""
        return torch.frombuffer(self.ingest.view, dtype=torch.float32).view(-1, 4)[row : row + rows, 0].tolist()

    def write_at(self, offset: int, values: Sequence[float]) -> None:
        """Put float32 into the ingest arena."""
        data = torch.tensor(values, dtype=torch.float32).numpy().tobytes()
        self.ingest.view[offset : offset + len(data)] = data

    def read_at(self, offset: int, count: int) -> list[float]:
        return torch.frombuffer(self.ingest.view, dtype=torch.float32, count=count, offset=offset).tolist()

    def send_ragged(self, batch_id: int, size: int, requests: Sequence[RaggedRequest], model: int) -> None:
        """Send a batch that is padded to `size`, and ring."""
        rows = sum(request.rows for request in requests)
        self.port.send(Kind.RAGGED, encode_ragged(batch_id, model, rows, [size], requests))
        self.port.ring()

    def send(self, batch_id: int, inputs: list[Run], outputs: list[Run], model: int = IDENTITY) -> None:
        rows = sum(run[1] for run in inputs)
        self.port.send(Kind.BATCH, encode_batch(batch_id, model, rows, [inputs], [outputs]))

    def run(self, *batches: tuple[int, int], model: int = IDENTITY) -> None:
        """Send batches of one row each, by input and output row; they are numbered as they come."""
        for batch_id, (source, target) in enumerate(batches, 1):
            self.send(batch_id, [(0, 1, source * ROW)], [(0, 1, target * ROW)], model)
        self.port.ring()

    def answers(self, count: int) -> list[tuple[int, TensordError | None]]:
        """The next answers: batch and error."""
        found: list[tuple[int, TensordError | None]] = []
        deadline = time.monotonic() + WATCHDOG_S
        while len(found) < count:
            readable, _, _ = select.select([self.port.bell], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{len(found)} of {count} answers within {WATCHDOG_S} s"
            found += self.answers_now()
        assert len(found) == count
        return found

    def answers_now(self) -> list[tuple[int, TensordError | None]]:
        found: list[tuple[int, TensordError | None]] = []
        for kind, body in self.port.answers():
            if kind == Kind.DONE:
                batch_id, _, self.data_sizes = decode_done(body)
                found.append((batch_id, None))
            else:
                batch_id, _, error = decode_failed(body)
                found.append((batch_id, error))
        return found

    def switch(self, model: str) -> None:
        """From now on the model fails, in its way."""
        (self.root / model / "1" / "switch").touch()

    def phases(self, model: int) -> list[Phase]:
        """Those that were measured once; no other was measured at all."""
        counts = {phase: self.block.histogram(model, phase).count for phase in Phase}
        assert set(counts.values()) <= {0, 1}
        return [phase for phase, count in counts.items() if count]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WATCHDOG_S
        while not condition():
            assert time.monotonic() < deadline
            os.sched_yield()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def join(self) -> None:
        self._thread.join(WATCHDOG_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            self.supervisor.send(m.Stop())
            self.join()
        self.supervisor.close()
        self._workers_link.close()
        worker = self.worker
        worker._memory.unmap_all()
        if worker._channel is not None:
            worker._channel.close()
        for block in (worker._block, self.block):
            block.words.release()
        worker._segment.close()
        self.page.close()
        self.port.close()
        self.ingest.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, body in MODELS.items():
        directory = tmp_path / "models" / name / "1"
        directory.mkdir(parents=True)
        (directory / "model.toml").write_text(TOML.get(name, TENSORS))
        (directory / "model.py").write_text(CODE.format(body=body))
    return tmp_path / "models"


Open = Callable[..., Play]


@pytest.fixture
def open_play(root: Path) -> Iterator[Open]:
    """Starts workers on the devices given; none outlives the test."""
    plays: list[Play] = []

    def open_one(device: Device, *, spin: bool = False) -> Play:
        plays.append(Play(root, device))
        plays[-1].start(spin=spin)
        return plays[-1]

    yield open_one
    for play in plays:
        play.close()


@pytest.fixture
def late() -> LateDevice:
    return LateDevice()


@pytest.fixture
def play(open_play: Open, late: LateDevice) -> Play:
    """With the late device."""
    return open_play(late)


@pytest.fixture
def cpu_play(open_play: Open) -> Play:
    return open_play(CpuDevice("cpu:0"))


class Gate:
    """Holds a device back at every wait until the test lets it through."""

    def __init__(self, device: LateDevice) -> None:
        self._arrived = threading.Semaphore(0)
        self._passed = threading.Semaphore(0)
        device.gate = self._wait

    def _wait(self, _mark: Mark) -> None:
        self._arrived.release()
        assert self._passed.acquire(timeout=WATCHDOG_S)

    def somebody_waits(self) -> None:
        """Return when the loop has come to wait for the device."""
        assert self._arrived.acquire(timeout=WATCHDOG_S)

    def let_through(self) -> None:
        self._passed.release()


# ── a device that is late ───────────────────────────────────────────────────────────────────────


def test_the_slots_of_a_batch_are_given_back_when_the_device_is_through(play: Play, late: LateDevice) -> None:
    gate = Gate(late)
    play.write(0, 7.0)
    play.run((0, 10))
    gate.somebody_waits()
    assert play.answers_now() == []
    assert (late.reached, play.read(10)) == (0, [0.0])
    play.write(0, 8.0)  # the device has not read it yet: what a front end that took it for free would do
    gate.let_through()
    assert play.answers(1) == [(1, None)]
    assert play.read(10) == [8.0]


def test_batches_are_answered_in_their_order_each_when_it_is_done(play: Play, late: LateDevice) -> None:
    gate = Gate(late)
    for row in range(6):
        play.write(row, 1.0 + row)
    play.run(*((row, 10 + row) for row in range(6)))
    for row in range(6):
        gate.somebody_waits()
        assert play.answers_now() == []
        assert play.read(10 + row) == [0.0]
        gate.let_through()
        assert play.answers(1) == [(row + 1, None)]
        assert play.read(10 + row) == [1.0 + row]


def test_the_next_batch_is_begun_while_one_is_under_way_and_no_more(play: Play, late: LateDevice) -> None:
    gate = Gate(late)
    play.run(*((row, 10 + row) for row in range(6)))
    begun = []
    for answered in range(6):
        gate.somebody_waits()
        begun.append(late.begun - answered)
        gate.let_through()
        play.answers(1)
    assert begun == [late.in_flight_max] * 5 + [1]


def test_a_batch_that_comes_while_the_device_works_is_begun_before_it_is_through(play: Play, late: LateDevice) -> None:
    gate = Gate(late)
    play.run((0, 10), (1, 11))
    gate.somebody_waits()
    play.send(3, [(0, 1, 2 * ROW)], [(0, 1, 12 * ROW)])
    play.port.ring()
    gate.let_through()
    gate.somebody_waits()
    assert play.answers_now() == [(1, None)]
    assert late.begun == 3
    gate.let_through()
    gate.somebody_waits()
    gate.let_through()
    assert play.answers(2) == [(2, None), (3, None)]


def test_a_batch_that_fails_is_answered_in_its_turn(play: Play, late: LateDevice) -> None:
    play.switch("failing")
    for row in range(5):
        play.write(row, 1.0 + row)
    for batch_id, model in enumerate([IDENTITY, FAILING, IDENTITY, FAILING, IDENTITY], 1):
        play.send(batch_id, [(0, 1, (batch_id - 1) * ROW)], [(0, 1, (9 + batch_id) * ROW)], model)
    play.port.ring()
    answers = play.answers(5)
    assert [batch_id for batch_id, _ in answers] == [1, 2, 3, 4, 5]
    assert [type(error) for _, error in answers] == [type(None), ModelFailed, type(None), ModelFailed, type(None)]
    assert play.read(10, 5) == [1.0, 0.0, 3.0, 0.0, 5.0]


def test_a_batch_that_fails_gives_its_slots_back_when_the_device_has_let_go(play: Play, late: LateDevice) -> None:
    play.switch("failing")
    gate = Gate(late)
    play.run((0, 10), model=FAILING)
    gate.somebody_waits()
    assert play.answers_now() == []
    gate.let_through()
    ((batch_id, error),) = play.answers(1)
    assert (batch_id, type(error)) == (1, ModelFailed)
    assert late.reached == late.enqueued


def test_a_worker_whose_device_is_lost_ends_without_another_answer(play: Play, late: LateDevice) -> None:
    """Others see that it ended; the batches may be run again elsewhere."""
    waits = 0

    def second_fails(_mark: Mark) -> None:
        nonlocal waits
        waits += 1
        if waits == 2:
            raise DeviceLost("CUDA error: an illegal memory access was encountered")

    late.gate = second_fails
    play.run(*((row, 10 + row) for row in range(4)))
    assert play.answers(1) == [(1, None)]
    play.join()
    assert isinstance(play.lost, DeviceLost)
    assert play.answers_now() == []


def test_stopping_finishes_what_was_begun(play: Play, late: LateDevice) -> None:
    gate = Gate(late)
    play.write(0, 3.0)
    play.run((0, 10))
    gate.somebody_waits()
    play.supervisor.send(m.Stop())
    gate.let_through()
    play.join()
    assert play.answers(1) == [(1, None)]
    assert play.read(10) == [3.0]
    assert Heartbeat(play.block).read(0).activity is Activity.STOPPING


def test_times_are_those_of_the_device(play: Play) -> None:
    play.run((0, 10))
    play.answers(1)
    play.until(lambda: play.block.counters(IDENTITY)[Counter.BATCHES] == 1)
    assert play.phases(IDENTITY) == [Phase.LOAD, Phase.HOST_TO_DEVICE, Phase.COMPUTE, Phase.DEVICE_TO_HOST]
    assert play.block.words[Word.MEMORY_BYTES] == 4711


def test_requests_of_different_sizes_are_padded_and_cut_when_the_device_is_through(
    play: Play, late: LateDevice
) -> None:
    gate = Gate(late)
    requests = [
        RaggedRequest(1, (3,), ((0, 0),), ((0, 1024, 12),)),
        RaggedRequest(2, (2,), ((0, 64),), ((0, 1088, 16),)),
    ]
    play.send_ragged(1, 4, requests, PADDED)
    gate.somebody_waits()
    assert play.answers_now() == []
    play.write_at(0, [1, 2, 3])  # the device has not read it yet
    play.write_at(64, [4, 5, 6, 7])
    gate.let_through()
    assert play.answers(1) == [(1, None)]
    assert play.read_at(1024, 4) == [1, 2, 3, 0]
    assert play.read_at(1088, 5) == [4, 5, 6, 7, 0]


def test_a_batch_that_fails_while_it_is_copied_out_gives_its_slots_back_when_the_device_has_let_go(
    play: Play, late: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    gate = Gate(late)
    unknown = (3, 0, 64)
    request = RaggedRequest(1, (3,), ((0, 0),), ((0, 1024, 12), (0, 1088, 32), unknown))
    play.send_ragged(1, 4, [request], POSITIVE)
    gate.somebody_waits()
    assert play.answers_now() == []
    gate.let_through()
    ((_, error),) = play.answers(1)
    assert isinstance(error, InternalError)
    assert late.reached == late.enqueued


# ── a device that is at once ────────────────────────────────────────────────────────────────────


def test_rows_are_gathered_from_several_runs_and_spread_over_others(cpu_play: Play) -> None:
    for row in range(6):
        cpu_play.write(row, float(row))
    inputs = [(0, 1, 4 * ROW), (0, 2, 0), (0, 1, 3 * ROW)]
    outputs = [(0, 3, 20 * ROW), (0, 1, 30 * ROW)]
    cpu_play.send(1, inputs, outputs)
    cpu_play.port.ring()
    assert cpu_play.answers(1) == [(1, None)]
    assert cpu_play.read(20, 3) + cpu_play.read(30) == [4.0, 0.0, 1.0, 3.0]


def test_bytes_read_in_place_and_gathered_are_counted_apart(cpu_play: Play) -> None:
    cpu_play.send(1, [(0, 3, 0)], [(0, 3, 20 * ROW)])
    cpu_play.send(2, [(0, 1, 0), (0, 1, 2 * ROW)], [(0, 2, 20 * ROW)])
    cpu_play.send(3, [(0, 3, 0)], [(0, 3, 20 * ROW)], CHANGING)
    cpu_play.port.ring()
    cpu_play.answers(3)
    cpu_play.until(lambda: cpu_play.block.counters(CHANGING)[Counter.BATCHES] == 1)
    counters = [cpu_play.block.counters(model) for model in (IDENTITY, CHANGING)]
    assert [each[Counter.VIEWED_BYTES] for each in counters] == [3 * ROW, 0]
    assert [each[Counter.GATHERED_BYTES] for each in counters] == [2 * ROW, 3 * ROW]
    assert [each[Counter.BATCHES] for each in counters] == [2, 1]
    assert [each[Counter.BATCH_ROWS] for each in counters] == [5, 3]


POSITIVE_REQUESTS = [
    RaggedRequest(1, (3,), ((0, 0),), ((0, 1024, 12), (0, 1088, 32), (0, 1152, 8))),
    RaggedRequest(2, (2,), ((0, 64),), ((0, 1216, 16), (0, 1280, 64), (0, 1344, 16))),
]


def test_sizes_that_come_from_the_data_are_answered_per_request(cpu_play: Play) -> None:
    cpu_play.write_at(0, [1, -2, 3])
    cpu_play.write_at(64, [5, -1, -1, -1])
    cpu_play.send_ragged(1, 4, POSITIVE_REQUESTS, POSITIVE)
    assert cpu_play.answers(1) == [(1, None)]
    assert cpu_play.data_sizes == (2, 1)
    assert (cpu_play.read_at(1024, 3), cpu_play.read_at(1088, 3)) == ([2, -4, 6], [6, 2, 0])
    assert (cpu_play.read_at(1216, 4), cpu_play.read_at(1280, 3)) == ([10, -2, -2, -2], [10, 0, 0])


def test_padding_and_written_bytes_are_counted_and_steps_are_timed(cpu_play: Play) -> None:
    cpu_play.write_at(0, [1, -2, 3])
    cpu_play.write_at(64, [5, -1, -1, -1])
    cpu_play.send_ragged(1, 4, POSITIVE_REQUESTS, POSITIVE)
    cpu_play.answers(1)
    cpu_play.until(lambda: cpu_play.block.counters(POSITIVE)[Counter.WRITTEN_BYTES] > 0)
    counters = cpu_play.block.counters(POSITIVE)
    assert [counters[counter] for counter in (Counter.BATCHES, Counter.BATCH_ROWS)] == [1, 3]
    assert (counters[Counter.VIEWED_BYTES], counters[Counter.GATHERED_BYTES]) == (0, 4 * (3 + 4))
    assert counters[Counter.PADDED_BYTES] == 4 * (3 * 4 - 3 - 4)
    assert counters[Counter.WRITTEN_BYTES] == (12 + 8 + 8) + (16 + 8 + 16)
    steps = [Phase.PREPROCESS, Phase.COMPUTE, Phase.POSTPROCESS]
    assert cpu_play.phases(POSITIVE) == [Phase.LOAD, Phase.COPY_IN, *steps, Phase.COPY_OUT]


def test_a_model_that_counts_more_than_there_is_fails_its_batch(cpu_play: Play, root: Path) -> None:
    wrong = MODELS["positive"].replace("(x > 0).sum(1)", "(x > 0).sum(1) + 5")
    (root / "positive" / "1" / "model.py").write_text(CODE.format(body=wrong))
    cpu_play.supervisor.send(m.LoadModel(POSITIVE, str(root), "positive", 1))
    cpu_play.expect(m.ModelLoaded)
    cpu_play.send_ragged(1, 4, POSITIVE_REQUESTS, POSITIVE)
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, BadModelOutput)
    assert (error.tensor, error.expected) == ("count", "counts from 0 to 4")


def test_a_model_that_changes_its_input_gets_a_copy(cpu_play: Play) -> None:
    cpu_play.write(0, 21.0)
    cpu_play.run((0, 10), model=CHANGING)
    assert cpu_play.answers(1) == [(1, None)]
    assert (cpu_play.read(0), cpu_play.read(10)) == ([21.0], [42.0])


def test_an_output_of_another_form_than_promised_is_the_models_fault(cpu_play: Play) -> None:
    cpu_play.switch("narrow")
    cpu_play.run((0, 10), model=NARROW)
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, BadModelOutput)
    assert cpu_play.read(10) == [0.0]


def test_a_model_that_is_not_loaded_is_an_internal_error(cpu_play: Play) -> None:
    cpu_play.run((0, 10), model=99)
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, InternalError)
    cpu_play.run((0, 10))
    assert cpu_play.answers(1) == [(1, None)]


def test_hundreds_of_batches_go_around_the_rings(cpu_play: Play) -> None:
    for turn in range(100):
        cpu_play.write(0, float(turn))
        cpu_play.run(*((0, 10 + place) for place in range(8)))
        assert cpu_play.answers(8) == [(batch_id, None) for batch_id in range(1, 9)]
        assert cpu_play.read(10, 8) == [float(turn)] * 8


# ── client arenas ───────────────────────────────────────────────────────────────────────────────


def test_tensors_in_client_arenas_are_used_in_place(cpu_play: Play) -> None:
    fd = create_arena(4096)
    with map_arena(fd, 4096) as mapping:
        mapping[0:ROW] = torch.full((4,), 5.0).numpy().tobytes()
        cpu_play.supervisor.send(m.MapArena(3, 4096), [fd])
        cpu_play.send(1, [(3, 1, 0)], [(3, 1, 64)])
        cpu_play.port.ring()
        assert cpu_play.answers(1) == [(1, None)]
        assert mapping[64 : 64 + ROW] == mapping[0:ROW]
    os.close(fd)


def test_a_descriptor_that_overtakes_its_arena_waits_for_it(cpu_play: Play) -> None:
    cpu_play.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_play.port.ring()
    cpu_play.until(lambda: Heartbeat(cpu_play.block).read(0).activity is Activity.RUNNING)
    fd = create_arena(4096)
    cpu_play.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    assert cpu_play.answers(1) == [(1, None)]


def test_an_arena_that_never_comes_is_an_internal_error(cpu_play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    cpu_play.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_play.port.ring()
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, InternalError)
    assert error.data() == {"reason": "UnknownArena in a worker"}


def test_an_arena_is_gone_when_it_is_unmapped(cpu_play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    fd = create_arena(4096)
    cpu_play.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    cpu_play.supervisor.send(m.UnmapArena(3))
    cpu_play.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_play.port.ring()
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, InternalError)


# ── generations ─────────────────────────────────────────────────────────────────────────────────


def test_a_new_generation_is_joined_and_the_old_one_left(cpu_play: Play) -> None:
    cpu_play.write(0, 2.0)
    old = cpu_play.open_channel()
    assert cpu_play.expect(m.ChannelOpened) == m.ChannelOpened(2)
    old.send(Kind.BATCH, encode_batch(1, IDENTITY, 1, [[(0, 1, 0)]], [[(0, 1, 10 * ROW)]]))
    old.ring()
    cpu_play.run((0, 11))
    assert cpu_play.answers(1) == [(1, None)]
    assert old.answers() == []
    assert cpu_play.read(10, 2) == [0.0, 2.0]
    old.close()


def test_a_new_generation_starts_without_the_arenas_of_the_old_one(
    cpu_play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    fd = create_arena(4096)
    cpu_play.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    cpu_play.open_channel().close()
    cpu_play.expect(m.ChannelOpened)
    cpu_play.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_play.port.ring()
    ((_, error),) = cpu_play.answers(1)
    assert isinstance(error, InternalError)


def test_a_batch_that_waits_for_its_arena_is_left_with_its_generation(play: Play, late: LateDevice) -> None:
    """Its slots are another's now: it must not be run, and nobody waits for its answer."""
    play.send(1, [(0, 1, 0)], [(0, 1, 10 * ROW)])
    play.send(2, [(3, 1, 0)], [(0, 1, 11 * ROW)])
    play.send(3, [(0, 1, 0)], [(0, 1, 12 * ROW)])
    play.port.ring()
    play.until(lambda: late.begun == 1 and Heartbeat(play.block).read(0).activity is Activity.RUNNING)
    old = play.open_channel()
    assert play.expect(m.ChannelOpened) == m.ChannelOpened(2)
    fd = create_arena(4096)
    play.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    play.write(0, 9.0)
    play.send(7, [(0, 1, 0)], [(0, 1, 20 * ROW)])
    play.port.ring()
    assert play.answers(1) == [(7, None)]
    assert play.read(20) == [9.0]
    assert play.read(11, 2) == [0.0, 0.0]
    assert old.answers() == []
    old.close()


WHOLE = {
    Kind.BATCH: encode_batch(1, 0, 1, [[(0, 1, 0)]], [[(0, 1, 0)]]),
    Kind.RAGGED: encode_ragged(1, 0, 1, [4], [RaggedRequest(1, (3,), ((0, 0),), ((0, 64, 16),))]),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_descriptor_that_makes_no_sense_ends_the_worker(cpu_play: Play, kind: Kind, cut: int) -> None:
    cpu_play.port.send(kind, WHOLE[kind][:cut])
    cpu_play.port.ring()
    cpu_play.join()


def test_a_doorbell_that_makes_no_sense_ends_the_worker(cpu_play: Play) -> None:
    cpu_play.port._work_bell.ring(1_000_000)
    cpu_play.join()


def test_another_kind_than_a_batch_ends_the_worker(cpu_play: Play) -> None:
    cpu_play.port._producer.publish(Kind.DONE, b"x" * 16)
    cpu_play.port.ring()
    cpu_play.join()


# ── the supervisor's messages ───────────────────────────────────────────────────────────────────


def test_a_worker_ends_with_its_supervisor(cpu_play: Play) -> None:
    cpu_play.supervisor.close()
    cpu_play.join()


def test_a_worker_ends_with_its_supervisor_even_while_it_waits_for_an_arena(cpu_play: Play) -> None:
    cpu_play.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_play.port.ring()
    cpu_play.until(lambda: Heartbeat(cpu_play.block).read(0).activity is Activity.RUNNING)
    cpu_play.supervisor.close()
    cpu_play.join()


def test_knobs_are_applied_and_acknowledged(cpu_play: Play) -> None:
    general = {name: knob.default for name, knob in KNOBS.items()}
    others: dict[str, dict[str, Setting]] = {"cpu:1": {"spin_us": 1}}
    own: dict[str, dict[str, Setting]] = {"cpu:0": {"spin_us": 7}}
    for epoch, devices, spin_us in ((5, others, general["spin_us"]), (6, others | own, 7)):
        cpu_play.supervisor.send(m.KnobValues(epoch, general, {}, devices, {}))
        assert cpu_play.expect(m.KnobsApplied) == m.KnobsApplied(epoch)
        assert cpu_play.block.words[Word.EPOCH] == epoch
        assert cpu_play.worker._spin.duration_ns == int(spin_us) * 1000


def test_a_model_that_is_broken_is_said_and_the_others_are_served(cpu_play: Play, root: Path) -> None:
    (root / "failing" / "1" / "model.py").write_text("def build():\n    raise OSError('no luck')\n")
    cpu_play.supervisor.send(m.LoadModel(FAILING, str(root), "failing", 1))
    broken = cpu_play.expect(m.ModelBroken)
    assert isinstance(broken, m.ModelBroken)
    assert broken.index == FAILING
    assert "no luck" in broken.reason
    cpu_play.run((0, 10))
    assert cpu_play.answers(1) == [(1, None)]


def test_a_model_that_is_not_there_is_said(cpu_play: Play, root: Path) -> None:
    cpu_play.supervisor.send(m.LoadModel(3, str(root), "nowhere", 1))
    broken = cpu_play.expect(m.ModelBroken)
    assert isinstance(broken, m.ModelBroken)
    assert "nowhere" in broken.reason


def test_loading_is_measured(cpu_play: Play) -> None:
    assert [cpu_play.block.histogram(index, Phase.LOAD).count for index in range(len(MODELS))] == [1] * len(MODELS)


def test_an_idle_worker_beats(cpu_play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "BEAT_S", 0.001)
    words = cpu_play.block.words
    beat, turns = words[Word.HEARTBEAT_NS], words[Word.LOOP_TURNS]
    cpu_play.until(lambda: words[Word.HEARTBEAT_NS] > beat and words[Word.LOOP_TURNS] > turns)
    assert words[Word.PID] == os.getpid()


# ── spinning ────────────────────────────────────────────────────────────────────────────────────


def test_a_spinning_worker_answers_too(open_play: Open) -> None:
    play = open_play(CpuDevice("cpu:0"), spin=True)
    general = {name: knob.default for name, knob in KNOBS.items()} | {"spin_us": 1000}
    play.supervisor.send(m.KnobValues(1, general, {}, {}, {}))
    play.expect(m.KnobsApplied)
    for _ in range(20):
        play.run((0, 10))
        assert play.answers(1) == [(1, None)]
