"""The worker's loop: take a batch, stack, compute, unstack, answer; in between, what the supervisor says.

One thread. Batches are answered in the order in which they came. On a device that works asynchronously the
next batch is begun while the one before it is still under way, as many as the device allows; their slots
go back to the front end with the answer, which is sent when the device has reached the batch's last mark.
"""

import os
import select
import struct
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from tensord.ipc.descriptors import INGEST_ARENA, Kind, encode_done, encode_failed
from tensord.ipc.errors import InternalError, ModelFault, NoMemory, TensordError
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.ring import RingBroken
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter, Phase, Word

from ..messages import (
    ChannelOpened,
    KnobsApplied,
    KnobValues,
    Link,
    LinkClosed,
    LoadModel,
    MapArena,
    ModelBroken,
    ModelLoaded,
    OpenChannel,
    Stop,
    UnmapArena,
    WorkerNoted,
    WorkerSetup,
    WorkerStarted,
)
from ..models.errors import ManifestError, reason_of
from ..models.loader import LoadedModel, load
from ..models.manifest import read_manifest
from .batch import Batch, decode
from .channel import Channel
from .device import Device, Stage
from .graphs import Graphs
from .heap import mapped_pieces
from .memory import Memory, UnknownArena
from .spin import Spin

BEAT_S: Final = 0.25
"""An idle worker wakes this often to beat: well within the least `hang_timeout_s`, one second."""

LOOK_S: Final = 1.0
"""How often the device is asked for its memory: on a GPU that takes a fraction of a millisecond."""

CHANNEL_FDS: Final = 5
"""Descriptors of OpenChannel."""

ARENA_WAIT_S: Final = 2.0
"""The supervisor sends an arena to the workers before its client hears of it; a descriptor can still overtake
that message when the supervisor's socket to this worker was full."""


class LeftBehind(Exception):
    """The batch's generation ended while it waited for an arena: nobody awaits its answer, its slots are another's."""


@dataclass(slots=True)
class Begun:
    """A batch on the device."""

    batch: Batch
    model: LoadedModel
    marks: list[Any]
    """Before and after copying in; before preprocessing, computing, postprocessing and after; around copying out."""
    data_sizes: list[int]


COMPUTED: Final = (2, 5)
"""The marks around all that the device computes for a batch."""

PHASES: Final = ((Phase.PREPROCESS, 2, 3), (Phase.COMPUTE, 3, 4), (Phase.POSTPROCESS, 4, 5))
"""Its parts, each between two marks, where a model has steps before or after it."""


class Worker:
    """One worker process; `run` returns when the supervisor says stop or is gone."""

    def __init__(self, link: Link, device: Device) -> None:
        self._link = link
        self._device = device
        self._memory = Memory(device)
        self._models: dict[int, LoadedModel] = {}
        self._channel: Channel | None = None
        self._begun: deque[Begun] = deque()
        self._poller = select.poll()
        self._spin = Spin()
        self._knobs = KnobValues(0, {}, {}, {}, {})
        self._look_ns = 0
        """When the device is asked for its memory again."""
        self._noted: dict[str, str] = {}
        """What the supervisor was told of each subject."""
        self._running = True
        self._block: Block
        self._heartbeat: Heartbeat

    def run(self) -> None:
        """Serve until told to stop."""
        self._poller.register(self._link, select.POLLIN)
        try:
            self._receive_setup()
            with torch.inference_mode():  # once, and not for each batch: it costs 2 µs
                while self._running:
                    self._turn()
        except LinkClosed:
            return  # the supervisor ended, and so do we
        self._heartbeat.enter(Activity.STOPPING, time.monotonic_ns())
        while self._begun:
            self._answer_oldest()

    def _receive_setup(self) -> None:
        select.select([self._link], [], [])
        received = self._link.receive()
        assert received is not None
        setup, fds = received
        assert isinstance(setup, WorkerSetup)
        torch.set_num_threads(setup.threads)
        self._spin.allowed = setup.spin
        segment = Segment(fds[0], setup.statistics_bytes)
        self._segment = segment
        self._block = Block(segment.view)
        self._heartbeat = Heartbeat(self._block)
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())
        self._block.words[Word.PID] = os.getpid()
        self._link.send(WorkerStarted(self._device.statistics().memory_bytes))

    # ── one turn ────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        """Wait for something to do, and do all of it."""
        now = time.monotonic_ns()
        self._heartbeat.beat(now)
        if now >= self._look_ns:
            self._look_at_memory()
        self._block.words[Word.LOOP_TURNS] += 1
        if self._link.fileno() in self._spin.wait(self._poller, BEAT_S * 1000):
            self._receive()
        channel = self._channel
        if channel is None:
            return
        try:
            channel.listen()
            while channel is self._channel and (message := channel.take()) is not None:
                self._begin(*message)
                if len(self._begun) >= self._device.in_flight_max:
                    self._answer_oldest()
                self._look_around(channel)
            while self._begun:
                self._answer_oldest()
        except LeftBehind:
            return  # to the new rings, in the next turn
        except (RingBroken, struct.error):
            self._running = False  # the supervisor starts a successor with new rings

    def _look_around(self, channel: Channel) -> None:
        """Between two batches: what has come meanwhile. A worker that is never idle must hear the supervisor, too."""
        for fd, _ in self._poller.poll(0):
            if fd == self._link.fileno():
                self._receive()
            else:
                channel.listen()

    # ── batches ─────────────────────────────────────────────────────────────────────────────────

    def _begin(self, kind: int, body: bytes) -> None:
        """Start a batch on the device; a batch that fails is answered at once, in its turn."""
        batch = decode(kind, body)
        self._heartbeat.enter(Activity.RUNNING, time.monotonic_ns())
        try:
            self._begun.append(self._compute(batch))
        except TensordError as error:
            self._fail(batch, error)
        except (MemoryError, torch.OutOfMemoryError):
            self._fail(batch, NoMemory(f"memory of {self._device.name} for a batch of {batch.rows} rows"))
        except (KeyError, RuntimeError, UnknownArena) as error:
            self._fail(batch, InternalError(f"{type(error).__name__} in a worker"))

    def _compute(self, batch: Batch) -> Begun:
        model = self._models[batch.model]
        manifest, device, memory = model.manifest, self._device, self._memory
        self._await_arenas(batch)
        with device.stage(Stage.COPY_IN):
            marks = [device.mark()]
            inputs = batch.stack(manifest, device, memory, private=model.changes_input)
            marks.append(device.mark())
        with device.stage(Stage.COMPUTE, inputs):
            marks.append(device.mark())
            tensors = model.prepare(inputs)
            marks.append(device.mark())
            answer = model.compute(tensors)
            marks.append(device.mark())
            outputs = model.complete(answer, batch.rows, batch.sizes(manifest))
            marks.append(device.mark())
        with device.stage(Stage.COPY_OUT, outputs):
            marks.append(device.mark())
            data_sizes = batch.unstack(manifest, device, memory, outputs)
            marks.append(device.mark())
        return Begun(batch, model, marks, data_sizes)

    def _await_arenas(self, batch: Batch) -> None:
        """Raises LeftBehind when new rings come before the arena."""
        channel = self._channel
        wanted = batch.arenas()
        deadline = time.monotonic() + ARENA_WAIT_S
        while not all(map(self._memory.knows, wanted)) and time.monotonic() < deadline:
            select.select([self._link], [], [], ARENA_WAIT_S)
            self._receive()
            if self._channel is not channel:
                raise LeftBehind

    def _answer_oldest(self) -> None:
        """Wait until the device is through with the oldest batch, and give its slots back."""
        assert self._channel is not None
        begun = self._begun.popleft()
        self._device.wait(begun.marks[-1])
        first, last = COMPUTED
        compute_ns = self._device.between_ns(begun.marks[first], begun.marks[last])
        self._channel.answer(Kind.DONE, encode_done(begun.batch.batch_id, compute_ns, begun.data_sizes))
        self._spin.last_rows = begun.batch.rows
        self._count(begun, compute_ns)
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())

    def _count(self, begun: Begun, compute_ns: int) -> None:
        """Write down where the batch's time and bytes went."""
        block, batch, index = self._block, begun.batch, begun.batch.model
        device, marks = self._device, begun.marks
        block.observe(index, device.copy_in_phase, device.between_ns(marks[0], marks[1]))
        if begun.model.has_steps:
            for phase, first, second in PHASES:
                block.observe(index, phase, device.between_ns(marks[first], marks[second]))
        else:
            block.observe(index, Phase.COMPUTE, compute_ns)
        block.observe(index, device.copy_out_phase, device.between_ns(marks[6], marks[7]))
        moved = batch.moved
        block.count(index, Counter.BATCHES)
        block.count(index, Counter.BATCH_ROWS, batch.rows)
        block.count(index, Counter.COMPUTE_NS, compute_ns)
        block.count(index, Counter.VIEWED_BYTES, moved.viewed)
        block.count(index, Counter.GATHERED_BYTES, moved.gathered)
        block.count(index, Counter.PADDED_BYTES, moved.padded)
        block.count(index, Counter.WRITTEN_BYTES, moved.written)

    def _fail(self, batch: Batch, error: TensordError) -> None:
        """Answer a batch that could not be begun whole: in its turn, and when the device has let go of its slots."""
        while self._begun:
            self._answer_oldest()
        self._device.wait(self._last_mark())
        self._answer_failed(batch, error)

    def _last_mark(self) -> Any:
        """A point behind everything that was begun, in whatever stage: each stage waits for the one before it."""
        for stage in Stage:
            with self._device.stage(stage):
                mark = self._device.mark()
        return mark

    def _answer_failed(self, batch: Batch, error: TensordError) -> None:
        assert self._channel is not None
        self._channel.answer(Kind.FAILED, encode_failed(batch.batch_id, 0, error))
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def _receive(self) -> None:
        while (received := self._link.receive()) is not None:
            message, fds = received
            match message:
                case LoadModel():
                    self._load(message)
                case OpenChannel():
                    self._open_channel(message, fds)
                case MapArena(arena, nbytes):
                    for fd in fds:  # none when our table is full: requests in that arena fail then
                        self._memory.map_client(arena, fd, nbytes)
                        os.close(fd)
                    self._look_ns = 0
                case UnmapArena(arena):
                    self._memory.unmap(arena)
                    self._look_ns = 0
                case KnobValues():
                    self._knobs = message
                    values = {**message.general, **message.devices.get(self._device.name, {})}
                    self._spin.duration_ns = int(values["spin_us"]) * 1000
                    self._block.words[Word.EPOCH] = message.epoch
                    self._link.send(KnobsApplied(message.epoch))
                case Stop():
                    self._running = False

    def _load(self, message: LoadModel) -> None:
        started, held_bytes = time.monotonic_ns(), self._device.held_bytes()
        self._heartbeat.enter(Activity.LOADING, started)
        try:
            manifest = read_manifest(Path(message.root) / message.name / str(message.version))
            with torch.inference_mode(False), mapped_pieces():
                model = load(manifest, self._device.torch_device)
                model.warm_up()
                self._use_graphs(message.index, model)
        except ManifestError as error:
            self._link.send(ModelBroken(message.index, str(error)))
        except ModelFault as error:
            self._link.send(ModelBroken(message.index, f"{message.name}:{message.version} in its warm-up: {error}"))
        except torch.OutOfMemoryError as error:
            self._link.send(ModelBroken(message.index, f"{message.name}:{message.version}: {reason_of(error)}"))
        else:
            self._models[message.index] = model
            loaded_ns = time.monotonic_ns() - started
            self._block.observe(message.index, Phase.LOAD, loaded_ns)
            more_bytes = max(0, self._device.held_bytes() - held_bytes)
            self._link.send(ModelLoaded(message.index, loaded_ns / 1e6, more_bytes))
        self._look_at_memory()
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())

    def _use_graphs(self, index: int, model: LoadedModel) -> None:
        """Put graphs in the model's place where it and the device want them, and hold them against the sample, too."""
        manifest, capture = model.manifest, self._device.capture
        if capture is None or not manifest.cuda_graphs:
            return
        graphs = Graphs(
            capture,
            model.forward,
            rows_max=partial(self._max_batch, manifest.name),
            count=partial(self._block.count, index),
            note=partial(self._note_graphs, f"{manifest.name}:{manifest.version}"),
        )
        model.forward = graphs
        try:
            model.warm_up()
        except (ManifestError, ModelFault, torch.OutOfMemoryError) as error:
            graphs.give_up(str(error))

    def _max_batch(self, model: str) -> int:
        general = self._knobs.general.get("max_batch", 1)
        return int(self._knobs.models.get(model, {}).get("max_batch", general))

    def _note_graphs(self, model: str, reason: str) -> None:
        self._note(f"graphs of {model}", f"batches of {model} run without CUDA graphs: {reason}")

    def _note(self, subject: str, sentence: str) -> None:
        """Tell the supervisor, unless it knows."""
        if self._noted.get(subject, "") != sentence:
            self._noted[subject] = sentence
            self._link.send(WorkerNoted(subject, sentence))

    def _look_at_memory(self) -> None:
        """Write down how much memory the device has."""
        self._look_ns = time.monotonic_ns() + int(LOOK_S * 1e9)
        memory, words = self._device.statistics(), self._block.words
        words[Word.MEMORY_BYTES] = memory.memory_bytes
        words[Word.PINNED_BYTES] = memory.pinned_bytes
        words[Word.UNPINNED_BYTES] = memory.unpinned_bytes
        words[Word.DEVICE_ALLOCATED_BYTES] = memory.allocated_bytes
        words[Word.DEVICE_FREE_BYTES] = memory.free_bytes
        words[Word.DEVICE_TOTAL_BYTES] = memory.total_bytes
        note = f"copies from and to some arenas are slow: they could not be pinned, {memory.unpinned_reason}"
        self._note("pinned memory", note if memory.unpinned_bytes else "")

    def _open_channel(self, message: OpenChannel, fds: list[int]) -> None:
        """Leave the old generation, whose descriptors nobody waits for any more, and join the new one."""
        for begun in self._begun:
            self._device.wait(begun.marks[-1])
        self._begun.clear()
        self._memory.unmap_all()
        if self._channel is not None:
            self._poller.unregister(self._channel.bell)
            self._channel.close()
        if len(fds) != CHANNEL_FDS:
            self._running = False  # descriptors got lost on the way, as our table is full: a successor has room
            return
        *ring_fds, ingest_fd = fds
        self._channel = Channel(message.generation, ring_fds)
        self._poller.register(self._channel.bell, select.POLLIN)
        self._memory.map_shared(INGEST_ARENA, ingest_fd, message.ingest_bytes)
        os.close(ingest_fd)
        self._look_at_memory()
        self._link.send(ChannelOpened(message.generation))
