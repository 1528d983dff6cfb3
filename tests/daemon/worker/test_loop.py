"""The worker's loop in a thread of the test, with real rings and links, and a device that is late on purpose.

`LateDevice` works like a GPU's stream: stacking and unstacking only enqueue copies, which are carried out when
somebody waits for a mark behind them. The model `identity` returns its input, so a result can only be right if
the loop waits for the device before it answers, and it can only be overtaken if it does not.
"""

import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tensord.daemon import messages as m
from tensord.daemon.frontend.worker_port import WorkerPort
from tensord.daemon.knobs import KNOBS, Setting
from tensord.daemon.messages import Link
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker import loop as loops
from tensord.daemon.worker.device import CpuDevice, Device
from tensord.daemon.worker.loop import IN_FLIGHT_MAX, PREEMPTIONS_PER_S_MAX, Spin, Worker
from tensord.ipc.arena import create_arena, map_arena
from tensord.ipc.descriptors import DONE, Kind, Run, decode_failed, encode_batch
from tensord.ipc.errors import BadModelOutput, InternalError, ModelFailed, TensordError
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter, Phase, Word
from tensord.ipc.tensors import TensorSpec

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
CODE = """
import torch
from pathlib import Path

class Model(torch.nn.Module):
    def forward(self, x):
        {body}

def build():
    return Model()
"""
IDENTITY, FAILING, CHANGING, NARROW = range(4)
MODELS = {
    "identity": "return x",
    # These two are well until their switch is there, and so pass their warm-up.
    "failing": "if Path(__file__).with_name('switch').exists(): raise RuntimeError('on purpose')\n        return x",
    "changing": "return x.mul_(2)",
    "narrow": "return x[:, :3] if Path(__file__).with_name('switch').exists() else x",
}


class LateDevice:
    """Carries out what was enqueued before a mark when that mark is waited for, and nothing before."""

    def __init__(self) -> None:
        self.name = "cpu:0"
        self.torch_device = torch.device("cpu")
        self.gate: Callable[[int], None] = lambda _mark: None
        """Called when a mark is waited for; may wait itself, or raise what a GPU raises."""
        self.reached = 0
        self.begun = 0
        """Batches of which copies were enqueued."""
        self._queue: list[Callable[[], Any]] = []

    def open_region(self, buffer: Any) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def close_region(self, region: torch.Tensor) -> None:
        pass

    def stack(self, spec: TensorSpec, parts: Sequence[torch.Tensor], *, private: bool) -> tuple[torch.Tensor, bool]:
        self.begun += 1
        whole = torch.full((sum(len(part) for part in parts),), 0xEE, dtype=torch.uint8)
        self._queue.append(lambda: torch.cat(list(parts), out=whole))
        return whole.view(torch.float32).view(-1, *spec.shape), False

    def unstack(self, output: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        def copy() -> None:
            rows = output.contiguous().view(-1).view(torch.uint8)
            for part in parts:
                part.copy_(rows[: len(part)])
                rows = rows[len(part) :]

        self._queue.append(copy)

    def mark(self) -> int:
        return len(self._queue)

    def wait(self, mark: int) -> None:
        self.gate(mark)
        while self.reached < mark:
            self._queue[self.reached]()
            self.reached += 1

    @property
    def enqueued(self) -> int:
        return len(self._queue)

    def between_ns(self, first: int, second: int) -> int:
        assert max(first, second) <= self.reached, "asked for the time of a mark that is not reached"
        return 1000 * (second - first)

    def memory_bytes(self) -> int:
        return 4711


class Stage:
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
        self.unread: list[m.AnyMessage] = []
        self._thread = threading.Thread(target=self.worker.run, daemon=True)

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

    def send(self, batch_id: int, inputs: list[Run], outputs: list[Run], model: int = IDENTITY) -> None:
        rows = sum(run[1] for run in inputs)
        self.port.send(encode_batch(batch_id, model, rows, [inputs], [outputs]))

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
                found.append((DONE.unpack(body)[0], None))
            else:
                batch_id, _, error = decode_failed(body)
                found.append((batch_id, error))
        return found

    def switch(self, model: str) -> None:
        """From now on the model fails, in its way."""
        (self.root / model / "1" / "switch").touch()

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
        (directory / "model.toml").write_text(TENSORS)
        (directory / "model.py").write_text(CODE.format(body=body))
    return tmp_path / "models"


Open = Callable[..., Stage]


@pytest.fixture
def open_stage(root: Path) -> Iterator[Open]:
    """Starts workers on the devices given; none outlives the test."""
    stages: list[Stage] = []

    def open_one(device: Device, *, spin: bool = False) -> Stage:
        stages.append(Stage(root, device))
        stages[-1].start(spin=spin)
        return stages[-1]

    yield open_one
    for stage in stages:
        stage.close()


@pytest.fixture
def late() -> LateDevice:
    return LateDevice()


@pytest.fixture
def stage(open_stage: Open, late: LateDevice) -> Stage:
    """With the late device."""
    return open_stage(late)


@pytest.fixture
def cpu_stage(open_stage: Open) -> Stage:
    return open_stage(CpuDevice("cpu:0"))


class Gate:
    """Holds a device back at every wait until the test lets it through."""

    def __init__(self, device: LateDevice) -> None:
        self._arrived = threading.Semaphore(0)
        self._passed = threading.Semaphore(0)
        device.gate = self._wait

    def _wait(self, _mark: int) -> None:
        self._arrived.release()
        assert self._passed.acquire(timeout=WATCHDOG_S)

    def somebody_waits(self) -> None:
        """Return when the loop has come to wait for the device."""
        assert self._arrived.acquire(timeout=WATCHDOG_S)

    def let_through(self) -> None:
        self._passed.release()


# ── a device that is late ───────────────────────────────────────────────────────────────────────


def test_the_slots_of_a_batch_are_given_back_when_the_device_is_through(stage: Stage, late: LateDevice) -> None:
    gate = Gate(late)
    stage.write(0, 7.0)
    stage.run((0, 10))
    gate.somebody_waits()
    assert stage.answers_now() == []
    assert (late.reached, stage.read(10)) == (0, [0.0])
    stage.write(0, 8.0)  # the device has not read it yet: what a front end that took it for free would do
    gate.let_through()
    assert stage.answers(1) == [(1, None)]
    assert stage.read(10) == [8.0]


def test_batches_are_answered_in_their_order_each_when_it_is_done(stage: Stage, late: LateDevice) -> None:
    gate = Gate(late)
    for row in range(6):
        stage.write(row, 1.0 + row)
    stage.run(*((row, 10 + row) for row in range(6)))
    for row in range(6):
        gate.somebody_waits()
        assert stage.answers_now() == []
        assert stage.read(10 + row) == [0.0]
        gate.let_through()
        assert stage.answers(1) == [(row + 1, None)]
        assert stage.read(10 + row) == [1.0 + row]


def test_the_next_batch_is_begun_while_one_is_under_way_and_no_more(stage: Stage, late: LateDevice) -> None:
    gate = Gate(late)
    stage.run(*((row, 10 + row) for row in range(6)))
    begun = []
    for answered in range(6):
        gate.somebody_waits()
        begun.append(late.begun - answered)
        gate.let_through()
        stage.answers(1)
    assert begun == [IN_FLIGHT_MAX] * 5 + [1]


def test_a_batch_that_comes_while_the_device_works_is_begun_before_it_is_through(
    stage: Stage, late: LateDevice
) -> None:
    gate = Gate(late)
    stage.run((0, 10), (1, 11))
    gate.somebody_waits()
    stage.send(3, [(0, 1, 2 * ROW)], [(0, 1, 12 * ROW)])
    stage.port.ring()
    gate.let_through()
    gate.somebody_waits()
    assert stage.answers_now() == [(1, None)]
    assert late.begun == 3
    gate.let_through()
    gate.somebody_waits()
    gate.let_through()
    assert stage.answers(2) == [(2, None), (3, None)]


def test_a_batch_that_fails_is_answered_in_its_turn(stage: Stage, late: LateDevice) -> None:
    stage.switch("failing")
    for row in range(5):
        stage.write(row, 1.0 + row)
    for batch_id, model in enumerate([IDENTITY, FAILING, IDENTITY, FAILING, IDENTITY], 1):
        stage.send(batch_id, [(0, 1, (batch_id - 1) * ROW)], [(0, 1, (9 + batch_id) * ROW)], model)
    stage.port.ring()
    answers = stage.answers(5)
    assert [batch_id for batch_id, _ in answers] == [1, 2, 3, 4, 5]
    assert [type(error) for _, error in answers] == [type(None), ModelFailed, type(None), ModelFailed, type(None)]
    assert stage.read(10, 5) == [1.0, 0.0, 3.0, 0.0, 5.0]


def test_a_batch_that_fails_gives_its_slots_back_when_the_device_has_let_go(stage: Stage, late: LateDevice) -> None:
    stage.switch("failing")
    gate = Gate(late)
    stage.run((0, 10), model=FAILING)
    gate.somebody_waits()
    assert stage.answers_now() == []
    gate.let_through()
    ((batch_id, error),) = stage.answers(1)
    assert (batch_id, type(error)) == (1, ModelFailed)
    assert late.reached == late.enqueued


def test_what_a_device_says_late_is_answered_in_its_turn(stage: Stage, late: LateDevice) -> None:
    waits = 0

    def second_fails(_mark: int) -> None:
        nonlocal waits
        waits += 1
        if waits == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    late.gate = second_fails
    stage.run(*((row, 10 + row) for row in range(4)))
    answers = stage.answers(4)
    assert [batch_id for batch_id, _ in answers] == [1, 2, 3, 4]
    assert [error.data() if error else None for _, error in answers] == [
        None,
        {"reason": "RuntimeError on the device"},
        None,
        None,
    ]


def test_stopping_finishes_what_was_begun(stage: Stage, late: LateDevice) -> None:
    gate = Gate(late)
    stage.write(0, 3.0)
    stage.run((0, 10))
    gate.somebody_waits()
    stage.supervisor.send(m.Stop())
    gate.let_through()
    stage.join()
    assert stage.answers(1) == [(1, None)]
    assert stage.read(10) == [3.0]
    assert Heartbeat(stage.block).read(0).activity is Activity.STOPPING


def test_times_are_those_of_the_device(stage: Stage) -> None:
    stage.run((0, 10))
    stage.answers(1)
    stage.until(lambda: stage.block.counters(IDENTITY)[Counter.BATCHES] == 1)
    assert [stage.block.histogram(IDENTITY, phase).count for phase in (Phase.COPY_IN, Phase.COMPUTE)] == [1, 1]
    assert stage.block.words[Word.MEMORY_BYTES] == 4711


# ── a device that is at once ────────────────────────────────────────────────────────────────────


def test_rows_are_gathered_from_several_runs_and_spread_over_others(cpu_stage: Stage) -> None:
    for row in range(6):
        cpu_stage.write(row, float(row))
    inputs = [(0, 1, 4 * ROW), (0, 2, 0), (0, 1, 3 * ROW)]
    outputs = [(0, 3, 20 * ROW), (0, 1, 30 * ROW)]
    cpu_stage.send(1, inputs, outputs)
    cpu_stage.port.ring()
    assert cpu_stage.answers(1) == [(1, None)]
    assert cpu_stage.read(20, 3) + cpu_stage.read(30) == [4.0, 0.0, 1.0, 3.0]


def test_bytes_read_in_place_and_gathered_are_counted_apart(cpu_stage: Stage) -> None:
    cpu_stage.send(1, [(0, 3, 0)], [(0, 3, 20 * ROW)])
    cpu_stage.send(2, [(0, 1, 0), (0, 1, 2 * ROW)], [(0, 2, 20 * ROW)])
    cpu_stage.send(3, [(0, 3, 0)], [(0, 3, 20 * ROW)], CHANGING)
    cpu_stage.port.ring()
    cpu_stage.answers(3)
    cpu_stage.until(lambda: cpu_stage.block.counters(CHANGING)[Counter.BATCHES] == 1)
    counters = [cpu_stage.block.counters(model) for model in (IDENTITY, CHANGING)]
    assert [each[Counter.VIEWED_BYTES] for each in counters] == [3 * ROW, 0]
    assert [each[Counter.GATHERED_BYTES] for each in counters] == [2 * ROW, 3 * ROW]
    assert [each[Counter.BATCHES] for each in counters] == [2, 1]
    assert [each[Counter.BATCH_ROWS] for each in counters] == [5, 3]


def test_a_model_that_changes_its_input_gets_a_copy(cpu_stage: Stage) -> None:
    cpu_stage.write(0, 21.0)
    cpu_stage.run((0, 10), model=CHANGING)
    assert cpu_stage.answers(1) == [(1, None)]
    assert (cpu_stage.read(0), cpu_stage.read(10)) == ([21.0], [42.0])


def test_an_output_of_another_form_than_promised_is_the_models_fault(cpu_stage: Stage) -> None:
    cpu_stage.switch("narrow")
    cpu_stage.run((0, 10), model=NARROW)
    ((_, error),) = cpu_stage.answers(1)
    assert isinstance(error, BadModelOutput)
    assert cpu_stage.read(10) == [0.0]


def test_a_model_that_is_not_loaded_is_an_internal_error(cpu_stage: Stage) -> None:
    cpu_stage.run((0, 10), model=99)
    ((_, error),) = cpu_stage.answers(1)
    assert isinstance(error, InternalError)
    cpu_stage.run((0, 10))
    assert cpu_stage.answers(1) == [(1, None)]


def test_hundreds_of_batches_go_around_the_rings(cpu_stage: Stage) -> None:
    for turn in range(100):
        cpu_stage.write(0, float(turn))
        cpu_stage.run(*((0, 10 + place) for place in range(8)))
        assert cpu_stage.answers(8) == [(batch_id, None) for batch_id in range(1, 9)]
        assert cpu_stage.read(10, 8) == [float(turn)] * 8


# ── client arenas ───────────────────────────────────────────────────────────────────────────────


def test_tensors_in_client_arenas_are_used_in_place(cpu_stage: Stage) -> None:
    fd = create_arena(4096)
    with map_arena(fd, 4096) as mapping:
        mapping[0:ROW] = torch.full((4,), 5.0).numpy().tobytes()
        cpu_stage.supervisor.send(m.MapArena(3, 4096), [fd])
        cpu_stage.send(1, [(3, 1, 0)], [(3, 1, 64)])
        cpu_stage.port.ring()
        assert cpu_stage.answers(1) == [(1, None)]
        assert mapping[64 : 64 + ROW] == mapping[0:ROW]
    os.close(fd)


def test_a_descriptor_that_overtakes_its_arena_waits_for_it(cpu_stage: Stage) -> None:
    cpu_stage.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_stage.port.ring()
    cpu_stage.until(lambda: Heartbeat(cpu_stage.block).read(0).activity is Activity.RUNNING)
    fd = create_arena(4096)
    cpu_stage.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    assert cpu_stage.answers(1) == [(1, None)]


def test_an_arena_that_never_comes_is_an_internal_error(cpu_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    cpu_stage.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_stage.port.ring()
    ((_, error),) = cpu_stage.answers(1)
    assert isinstance(error, InternalError)
    assert error.data() == {"reason": "UnknownArena in a worker"}


def test_an_arena_is_gone_when_it_is_unmapped(cpu_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    fd = create_arena(4096)
    cpu_stage.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    cpu_stage.supervisor.send(m.UnmapArena(3))
    cpu_stage.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_stage.port.ring()
    ((_, error),) = cpu_stage.answers(1)
    assert isinstance(error, InternalError)


# ── generations ─────────────────────────────────────────────────────────────────────────────────


def test_a_new_generation_is_joined_and_the_old_one_left(cpu_stage: Stage) -> None:
    cpu_stage.write(0, 2.0)
    old = cpu_stage.open_channel()
    assert cpu_stage.expect(m.ChannelOpened) == m.ChannelOpened(2)
    old.send(encode_batch(1, IDENTITY, 1, [[(0, 1, 0)]], [[(0, 1, 10 * ROW)]]))
    old.ring()
    cpu_stage.run((0, 11))
    assert cpu_stage.answers(1) == [(1, None)]
    assert old.answers() == []
    assert cpu_stage.read(10, 2) == [0.0, 2.0]
    old.close()


def test_a_new_generation_starts_without_the_arenas_of_the_old_one(
    cpu_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "ARENA_WAIT_S", 0.01)
    fd = create_arena(4096)
    cpu_stage.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    cpu_stage.open_channel().close()
    cpu_stage.expect(m.ChannelOpened)
    cpu_stage.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_stage.port.ring()
    ((_, error),) = cpu_stage.answers(1)
    assert isinstance(error, InternalError)


def test_a_batch_that_waits_for_its_arena_is_left_with_its_generation(stage: Stage, late: LateDevice) -> None:
    """Its slots are another's now: it must not be run, and nobody waits for its answer."""
    stage.send(1, [(0, 1, 0)], [(0, 1, 10 * ROW)])
    stage.send(2, [(3, 1, 0)], [(0, 1, 11 * ROW)])
    stage.send(3, [(0, 1, 0)], [(0, 1, 12 * ROW)])
    stage.port.ring()
    stage.until(lambda: late.begun == 1 and Heartbeat(stage.block).read(0).activity is Activity.RUNNING)
    old = stage.open_channel()
    assert stage.expect(m.ChannelOpened) == m.ChannelOpened(2)
    fd = create_arena(4096)
    stage.supervisor.send(m.MapArena(3, 4096), [fd])
    os.close(fd)
    stage.write(0, 9.0)
    stage.send(7, [(0, 1, 0)], [(0, 1, 20 * ROW)])
    stage.port.ring()
    assert stage.answers(1) == [(7, None)]
    assert stage.read(20) == [9.0]
    assert stage.read(11, 2) == [0.0, 0.0]
    assert old.answers() == []
    old.close()


@pytest.mark.parametrize("body", [b"", b"short", encode_batch(1, 0, 1, [[(0, 1, 0)]], [[(0, 1, 0)]])[:-1]])
def test_a_descriptor_that_makes_no_sense_ends_the_worker(cpu_stage: Stage, body: bytes) -> None:
    cpu_stage.port.send(body)
    cpu_stage.port.ring()
    cpu_stage.join()


def test_a_doorbell_that_makes_no_sense_ends_the_worker(cpu_stage: Stage) -> None:
    cpu_stage.port._work_bell.ring(1_000_000)
    cpu_stage.join()


def test_another_kind_than_a_batch_ends_the_worker(cpu_stage: Stage) -> None:
    cpu_stage.port._producer.publish(Kind.DONE, b"x" * 16)
    cpu_stage.port.ring()
    cpu_stage.join()


# ── the supervisor's messages ───────────────────────────────────────────────────────────────────


def test_a_worker_ends_with_its_supervisor(cpu_stage: Stage) -> None:
    cpu_stage.supervisor.close()
    cpu_stage.join()


def test_a_worker_ends_with_its_supervisor_even_while_it_waits_for_an_arena(cpu_stage: Stage) -> None:
    cpu_stage.send(1, [(3, 1, 0)], [(0, 1, 10 * ROW)])
    cpu_stage.port.ring()
    cpu_stage.until(lambda: Heartbeat(cpu_stage.block).read(0).activity is Activity.RUNNING)
    cpu_stage.supervisor.close()
    cpu_stage.join()


def test_knobs_are_applied_and_acknowledged(cpu_stage: Stage) -> None:
    general = {name: knob.default for name, knob in KNOBS.items()}
    others: dict[str, dict[str, Setting]] = {"cpu:1": {"spin_us": 1}}
    own: dict[str, dict[str, Setting]] = {"cpu:0": {"spin_us": 7}}
    for epoch, devices, spin_us in ((5, others, general["spin_us"]), (6, others | own, 7)):
        cpu_stage.supervisor.send(m.KnobValues(epoch, general, {}, devices))
        assert cpu_stage.expect(m.KnobsApplied) == m.KnobsApplied(epoch)
        assert cpu_stage.block.words[Word.EPOCH] == epoch
        assert cpu_stage.worker._spin.duration_ns == int(spin_us) * 1000


def test_a_model_that_is_broken_is_said_and_the_others_are_served(cpu_stage: Stage, root: Path) -> None:
    (root / "failing" / "1" / "model.py").write_text("def build():\n    raise OSError('no luck')\n")
    cpu_stage.supervisor.send(m.LoadModel(FAILING, str(root), "failing", 1))
    broken = cpu_stage.expect(m.ModelBroken)
    assert isinstance(broken, m.ModelBroken)
    assert broken.index == FAILING
    assert "no luck" in broken.reason
    cpu_stage.run((0, 10))
    assert cpu_stage.answers(1) == [(1, None)]


def test_a_model_that_is_not_there_is_said(cpu_stage: Stage, root: Path) -> None:
    cpu_stage.supervisor.send(m.LoadModel(3, str(root), "nowhere", 1))
    broken = cpu_stage.expect(m.ModelBroken)
    assert isinstance(broken, m.ModelBroken)
    assert "nowhere" in broken.reason


def test_loading_is_measured(cpu_stage: Stage) -> None:
    assert [cpu_stage.block.histogram(index, Phase.LOAD).count for index in range(len(MODELS))] == [1] * len(MODELS)


def test_an_idle_worker_beats(cpu_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "BEAT_S", 0.001)
    words = cpu_stage.block.words
    beat, turns = words[Word.HEARTBEAT_NS], words[Word.LOOP_TURNS]
    cpu_stage.until(lambda: words[Word.HEARTBEAT_NS] > beat and words[Word.LOOP_TURNS] > turns)
    assert words[Word.PID] == os.getpid()


# ── spinning ────────────────────────────────────────────────────────────────────────────────────

S = 10**9


class Clock:
    """Virtual time and preemptions, in the place of the kernel's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1000 * S
        self.preemptions = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(resource, "getrusage", lambda _who: SimpleNamespace(ru_nivcsw=self.preemptions))

    def pass_s(self, seconds: float, preemptions: int = 0) -> None:
        self.now_ns += int(seconds * S)
        self.preemptions += preemptions


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def spin_for(duration_ns: int, *, allowed: bool = True) -> Spin:
    spin = Spin()
    spin.allowed, spin.duration_ns = allowed, duration_ns
    return spin


def test_spinning_needs_a_core_and_a_duration(clock: Clock) -> None:
    assert not spin_for(1000, allowed=False).worthwhile()
    assert not spin_for(0).worthwhile()
    assert spin_for(1000).worthwhile()


def test_spinning_stops_for_a_while_when_the_core_is_needed(clock: Clock) -> None:
    spin = spin_for(1000)
    clock.preemptions = 10**6  # of the time before: they say nothing
    assert spin.worthwhile()
    clock.pass_s(2, preemptions=2 * PREEMPTIONS_PER_S_MAX)
    assert spin.worthwhile()
    clock.pass_s(2, preemptions=2 * PREEMPTIONS_PER_S_MAX + 1)
    assert not spin.worthwhile()
    clock.pass_s(9.9)
    assert not spin.worthwhile()
    clock.pass_s(0.1)
    assert spin.worthwhile()


def test_a_burst_within_a_second_is_not_looked_at_twice(clock: Clock) -> None:
    spin = spin_for(1000)
    assert spin.worthwhile()
    clock.pass_s(0.5, preemptions=10**6)
    assert spin.worthwhile()
    clock.pass_s(0.6)
    assert not spin.worthwhile()


def test_a_spinning_worker_answers_too(open_stage: Open) -> None:
    stage = open_stage(CpuDevice("cpu:0"), spin=True)
    general = {name: knob.default for name, knob in KNOBS.items()} | {"spin_us": 1000}
    stage.supervisor.send(m.KnobValues(1, general, {}, {}))
    stage.expect(m.KnobsApplied)
    for _ in range(20):
        stage.run((0, 10))
        assert stage.answers(1) == [(1, None)]
