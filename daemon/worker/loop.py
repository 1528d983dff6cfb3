"""The worker's loop: take a batch, stack, compute, unstack, answer; in between, what the supervisor says.

One thread. Batches are answered in the order in which they came. On a device that works asynchronously the
next batch is begun while the one before it is still under way, at most IN_FLIGHT_MAX at a time; their slots
go back to the front end with the answer, which is sent when the device has reached the batch's last mark.
"""

import contextlib
import os
import resource
import select
import struct
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tensord.ipc.descriptors import DONE, INGEST_ARENA, BatchDescriptor, Kind, decode_batch, encode_failed
from tensord.ipc.errors import InternalError, ModelFault, TensordError
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
    WorkerSetup,
    WorkerStarted,
)
from ..models.errors import ManifestError
from ..models.loader import LoadedModel, load
from ..models.manifest import read_manifest
from .channel import Channel
from .device import Device
from .memory import Memory, UnknownArena

IN_FLIGHT_MAX: Final = 2
"""Batches begun and not answered: one that computes, one whose copy is under way."""

BEAT_S: Final = 0.25
"""An idle worker wakes this often to beat: well within the least `hang_timeout_s`, one second."""

CHANNEL_FDS: Final = 5
"""Descriptors of OpenChannel."""

ARENA_WAIT_S: Final = 2.0
"""The supervisor sends an arena to the workers before its client hears of it; a descriptor can still overtake
that message when the supervisor's socket to this worker was full."""

PREEMPTIONS_PER_S_MAX: Final = 50
"""More involuntary context switches than this while spinning: somebody else needs the core."""


class LeftBehind(Exception):
    """The batch's generation ended while it waited for an arena: nobody awaits its answer, its slots are another's."""


@dataclass(slots=True)
class Begun:
    """A batch on the device."""

    descriptor: BatchDescriptor
    marks: tuple[Any, Any, Any, Any]
    """Before stacking, before computing, after computing, after unstacking."""


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
        self._running = True
        self._block: Block
        self._heartbeat: Heartbeat

    def run(self) -> None:
        """Serve until told to stop."""
        self._poller.register(self._link, select.POLLIN)
        try:
            self._receive_setup()
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
        import torch

        torch.set_num_threads(setup.threads)
        self._spin.allowed = setup.spin
        segment = Segment(fds[0], setup.statistics_bytes)
        self._segment = segment
        self._block = Block(segment.view)
        self._heartbeat = Heartbeat(self._block)
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())
        self._block.words[Word.PID] = os.getpid()
        self._link.send(WorkerStarted(self._device.memory_bytes()))

    # ── one turn ────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        """Wait for something to do, and do all of it."""
        self._heartbeat.beat(time.monotonic_ns())
        self._block.words[Word.LOOP_TURNS] += 1
        self._wait()
        self._receive()
        channel = self._channel
        if channel is None:
            return
        try:
            channel.listen()
            while (message := channel.take()) is not None:
                self._begin(*message)
                if len(self._begun) >= IN_FLIGHT_MAX:
                    self._answer_oldest()
                channel.listen()
            while self._begun:
                self._answer_oldest()
        except LeftBehind:
            return  # to the new rings, in the next turn
        except (RingBroken, struct.error):
            self._running = False  # the supervisor starts a successor with new rings

    def _wait(self) -> None:
        """Until a doorbell, a message, or the time to beat: first spinning, where there is a core for it."""
        events: list[tuple[int, int]] = []
        if self._spin.worthwhile():
            stop = time.monotonic_ns() + self._spin.duration_ns
            while not events and time.monotonic_ns() < stop:
                events = self._poller.poll(0)
        if not events:
            self._poller.poll(BEAT_S * 1000)

    # ── batches ─────────────────────────────────────────────────────────────────────────────────

    def _begin(self, kind: int, body: bytes) -> None:
        """Start a batch on the device; a batch that fails is answered at once, in its turn."""
        if kind != Kind.BATCH:
            raise RingBroken(f"kind {kind} in a work ring")
        descriptor = decode_batch(body)
        self._heartbeat.enter(Activity.RUNNING, time.monotonic_ns())
        started = self._device.mark()
        try:
            self._begun.append(Begun(descriptor, self._compute(descriptor, started)))
        except TensordError as error:
            self._fail(descriptor, error)
        except (KeyError, RuntimeError, UnknownArena, MemoryError) as error:
            self._fail(descriptor, InternalError(f"{type(error).__name__} in a worker"))

    def _compute(self, descriptor: BatchDescriptor, started: Any) -> tuple[Any, Any, Any, Any]:
        model = self._models[descriptor.model]
        device = self._device
        self._await_arenas(descriptor)
        inputs = []
        viewed_bytes = gathered_bytes = 0
        for spec, runs in zip(model.manifest.inputs, descriptor.inputs, strict=True):
            parts = self._memory.parts(runs, spec.row_bytes)
            tensor, is_view = device.stack(spec, parts, private=model.changes_input)
            inputs.append(tensor)
            if is_view:
                viewed_bytes += descriptor.rows * spec.row_bytes
            else:
                gathered_bytes += descriptor.rows * spec.row_bytes
        stacked = device.mark()
        outputs = model.run(inputs)
        computed = device.mark()
        for spec, output, runs in zip(model.manifest.outputs, outputs, descriptor.outputs, strict=True):
            device.unstack(output, self._memory.parts(runs, spec.row_bytes))
        self._block.count(descriptor.model, Counter.VIEWED_BYTES, viewed_bytes)
        self._block.count(descriptor.model, Counter.GATHERED_BYTES, gathered_bytes)
        return started, stacked, computed, device.mark()

    def _await_arenas(self, descriptor: BatchDescriptor) -> None:
        """Raises LeftBehind when new rings come before the arena."""
        channel = self._channel
        wanted = {run[0] for runs in (*descriptor.inputs, *descriptor.outputs) for run in runs}
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
        started, stacked, computed, finished = begun.marks
        model = begun.descriptor.model
        try:
            self._device.wait(finished)
        except RuntimeError as error:  # what a GPU reports of a kernel, it reports here
            self._answer_failed(begun.descriptor, InternalError(f"{type(error).__name__} on the device"))
            return
        compute_ns = self._device.between_ns(stacked, computed)
        self._channel.answer(Kind.DONE, DONE.pack(begun.descriptor.batch_id, compute_ns))
        block = self._block
        block.observe(model, Phase.COPY_IN, self._device.between_ns(started, stacked))
        block.observe(model, Phase.COMPUTE, compute_ns)
        block.observe(model, Phase.COPY_OUT, self._device.between_ns(computed, finished))
        block.count(model, Counter.BATCHES)
        block.count(model, Counter.BATCH_ROWS, begun.descriptor.rows)
        block.count(model, Counter.COMPUTE_NS, compute_ns)
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())

    def _fail(self, descriptor: BatchDescriptor, error: TensordError) -> None:
        """Answer a batch that could not be begun whole: in its turn, and when the device has let go of its slots."""
        while self._begun:
            self._answer_oldest()
        with contextlib.suppress(RuntimeError):  # a device that cannot be waited for copies nothing any more
            self._device.wait(self._device.mark())
        self._answer_failed(descriptor, error)

    def _answer_failed(self, descriptor: BatchDescriptor, error: TensordError) -> None:
        assert self._channel is not None
        self._channel.answer(Kind.FAILED, encode_failed(descriptor.batch_id, 0, error))
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
                case UnmapArena(arena):
                    self._memory.unmap(arena)
                case KnobValues():
                    values = {**message.general, **message.devices.get(self._device.name, {})}
                    self._spin.duration_ns = int(values["spin_us"]) * 1000
                    self._block.words[Word.EPOCH] = message.epoch
                    self._link.send(KnobsApplied(message.epoch))
                case Stop():
                    self._running = False

    def _load(self, message: LoadModel) -> None:
        started = time.monotonic_ns()
        self._heartbeat.enter(Activity.LOADING, started)
        try:
            manifest = read_manifest(Path(message.root) / message.name / str(message.version))
            model = load(manifest, self._device.torch_device)
            model.warm_up()
        except ManifestError as error:
            self._link.send(ModelBroken(message.index, str(error)))
        except ModelFault as error:
            self._link.send(ModelBroken(message.index, f"{message.name}:{message.version} in its warm-up: {error}"))
        else:
            self._models[message.index] = model
            loaded_ns = time.monotonic_ns() - started
            self._block.observe(message.index, Phase.LOAD, loaded_ns)
            self._link.send(ModelLoaded(message.index, loaded_ns / 1e6))
        self._block.words[Word.MEMORY_BYTES] = self._device.memory_bytes()
        self._heartbeat.enter(Activity.IDLE, time.monotonic_ns())

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
        self._link.send(ChannelOpened(message.generation))


class Spin:
    """Whether to spin before sleeping: a sleeping worker takes 30 to 80 µs to wake, a spinning one none.

    Spinning while another process needs the core is worse than sleeping, so it stops for a while as soon as
    the kernel preempts this thread often.
    """

    def __init__(self) -> None:
        self.allowed = False
        self.duration_ns = 0
        self._preemptions = 0
        self._looked_ns = 0
        self._pause_until_ns = 0

    def worthwhile(self) -> bool:
        """Whether to spin now."""
        if not self.allowed or not self.duration_ns:
            return False
        now = time.monotonic_ns()
        if now - self._looked_ns > 1_000_000_000:
            preemptions = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
            elapsed_s = (now - self._looked_ns) / 1e9
            if self._looked_ns and (preemptions - self._preemptions) / elapsed_s > PREEMPTIONS_PER_S_MAX:
                self._pause_until_ns = now + 10_000_000_000
            self._preemptions, self._looked_ns = preemptions, now
        return now >= self._pause_until_ns
