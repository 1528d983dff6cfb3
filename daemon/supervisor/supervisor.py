"""The supervisor: one asyncio loop that owns every descriptor which must outlive a child, and never waits on one.

It makes the rings, arenas and statistics pages, spawns the front end and the workers, passes word between
them, and starts again what dies. What it decides about a single worker stands in `workers.py`; what about
models, in `catalog.py`; what it answers to operators, in `report.py`.
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tensord.ipc.arena import create_arena, release_pages
from tensord.ipc.errors import NoMemory, TensordError
from tensord.ipc.segment import Segment, sweep

from .. import control
from .. import messages as m
from ..config import Config
from ..exits import Exit
from ..knob import KnobError
from ..knob_store import Acknowledgements, StaleEpoch
from ..log import configure, get_logger
from .arenas import ArenaAccounts
from .backoff import Backoff
from .catalog import Catalog
from .child import Child, Page, ending
from .control_server import ControlServer
from .costs import Costs
from .failures import InstanceFailure
from .instance import RuntimeDirectory, raise_descriptor_limit
from .knobs import Knobs
from .lifecycle import State
from .memory import check_room
from .recording import Recording
from .report import report
from .rings import Rings
from .second_tier import second_tier
from .workers import STARTING_MS_MAX, WorkerPlace

FRONTEND: Final = "frontend"
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP comes when a terminal closes."""

FRONTEND_BACKOFF_MAX_S: Final = 0.5
"""Nothing is served without a front end, and it starts in a quarter of a second: back off just enough not to spin."""

WATCH_S: Final = 0.5
"""Between two looks at the heartbeats."""

STOP_GRACE_S: Final = 5.0
"""For children to end after they were told to; then they are killed."""

COSTS_WRITTEN_S: Final = 30.0
"""Between two writes of learned execution times; another one is the last thing that an instance does."""

SET_WAIT_S: Final = 1.0
"""How long an answer to Set waits for the processes to acknowledge; front ends do within milliseconds."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device and what its worker gets."""

    name: str
    cores: tuple[int, ...]
    """Empty: not pinned."""
    visible_gpu: str
    """For CUDA_VISIBLE_DEVICES: a UUID, or nothing at all."""


class Supervisor:
    """One instance; `run` returns its exit code."""

    def __init__(self, config: Config, catalog: Catalog, knobs: Knobs, devices: Sequence[DevicePlan]) -> None:
        self.config = config
        self.catalog = catalog
        self.knobs = knobs
        self.arenas = ArenaAccounts()
        self.acknowledgements = Acknowledgements()
        self.places: dict[int, WorkerPlace] = {}
        self.frontend: Child | None = None
        self.frontend_generation = 0
        self.frontend_restarts = 0
        self.page: Page
        self.started_s = time.monotonic()
        self.draining = False
        self.was_ready = False
        self.ready = threading.Event()
        """Set when the instance is ready for the first time; other threads may wait for it."""
        self._listening = False
        self.instance = random.SystemRandom().getrandbits(63)
        self._devices = {device.name: device for device in devices}
        self._runtime = RuntimeDirectory(config.runtime_dir)
        self._backoff = Backoff()
        self._ingest: Segment | None = None
        self._failure: InstanceFailure | None = None
        self._second_tier = ("", b"")
        self._signals = 0
        self._making_bytes = 0
        """Arenas that threads are reserving the memory of now."""
        self._making: set[asyncio.Task[None]] = set()
        self._log = get_logger()
        self._control = ControlServer(self)
        self._costs = Costs(config.state_dir)
        self._costs_written = b""
        self._recording = Recording()
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event
        self._acknowledged: asyncio.Event

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Exit:
        """Serve until stopped. Raises InstanceFailure if it cannot start or go on, leaving nothing behind."""
        self._runtime.take()
        try:
            self._second_tier = second_tier(self.config)
            asyncio.run(self._run())
        except NoMemory as error:
            raise InstanceFailure(Exit.RESOURCES, str(error)) from error
        except OSError as error:
            what = error.strerror or str(error)
            sentence = f"the kernel refused a process or a descriptor ({what}): free some, or raise the service's limit"
            raise InstanceFailure(Exit.RESOURCES, sentence) from error
        finally:
            self._kill_all()
            self._runtime.leave()
        if self._failure is not None:
            raise self._failure
        return Exit.OK

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._acknowledged = asyncio.Event()
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._signalled)
        raise_descriptor_limit()
        sweep()
        if complaint := self._costs.load():
            self._log.warning("costs", reason=complaint)
        self._listener = self._runtime.listen(self.config.socket)
        await self._control.start(self._runtime.listen(self.config.control_socket))
        models_max = self.catalog.models_max
        self.page = Page(models_max)
        self._ingest = self._make_ingest()
        for worker, device in enumerate(self._devices.values()):
            self._add_place(worker, device, Page(models_max))
        self._spawn_frontend()
        for place in self.places.values():
            place.spawn()
        self._log.info("starting", socket=str(self.config.socket), devices=list(self._devices), pid=os.getpid())
        tasks = [self._loop.create_task(self._watch()), self._loop.create_task(self._keep_costs())]
        await self._ended.wait()
        for task in tasks:
            task.cancel()
        await self._write_costs()
        self._control.close()
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # it has ended: one more signal must not change the exit code
        self._log.info("stopped")

    def _add_place(self, worker: int, device: DevicePlan, page: Page) -> None:
        taken = {core for plan in self._devices.values() for core in plan.cores}
        spin = not os.sched_getaffinity(0) <= taken  # a core is left for the front end
        threads = self._threads(device)
        self.places[worker] = WorkerPlace(self, worker, device.name, device.cores, page, threads=threads, spin=spin)

    def _threads(self, device: DevicePlan) -> int:
        return int(self.knobs.device(device.name, "threads")) or max(1, len(device.cores))

    def _signalled(self) -> None:
        """The first signal drains, the second one stops at once."""
        self._signals += 1
        if self._signals == 1:
            self.drain()
        else:
            self._log.warning("stopping at once", reason="second signal")
            self._kill_all()
            self._ended.set()

    def stop_soon(self) -> None:
        """Drain and stop; may be called from any thread."""
        self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Answer what is in flight, then stop everything."""
        if self.draining:
            return
        self.draining = True
        timeout_s = float(self.knobs.general("drain_timeout_s"))
        self._log.info("draining", at_most_s=timeout_s)
        if self.frontend is None:
            self._stop_children()
        else:
            self.frontend.send(m.Drain())
            self._loop.call_later(timeout_s, self._stop_children)

    def _stop_children(self) -> None:
        self._listener.close()  # with the front end gone nobody accepts: clients are to see that at once
        if self.frontend is not None:
            self.frontend.send(m.Stop())
        for place in self.places.values():
            place.stop()
        self._loop.call_later(STOP_GRACE_S, self._ended.set)
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self.frontend is None and all(place.child is None for place in self.places.values()):
            self._ended.set()

    def _kill_all(self) -> None:
        """Children never outlive the supervisor; each has its own session, so each is killed by its pidfd."""
        for child in (self.frontend, *(place.child for place in self.places.values())):
            if child is not None:
                with contextlib.suppress(OSError):
                    child.kill()

    def _fail(self, code: Exit, sentence: str) -> None:
        """The instance cannot go on: end everything, and have `run` say why."""
        if self._failure is None:
            self._failure = InstanceFailure(code, sentence)
        self.draining = True
        self._stop_children()

    # ── front end ───────────────────────────────────────────────────────────────────────────────

    def _spawn_frontend(self) -> None:
        assert self._ingest is not None
        self.frontend_generation += 1
        self._listening = False
        self.page.started()
        self.frontend = Child(
            self._loop,
            "tensord.daemon.frontend",
            [],
            {**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            received=self._from_frontend,
            ended=self._frontend_ended,
        )
        self.acknowledgements.join(FRONTEND, self.knobs.epoch)
        self.knobs.store.started(None)
        send = self.frontend.send
        setup = m.FrontendSetup(
            self.frontend_generation,
            self.instance,
            self._ingest.nbytes,
            self.page.segment.nbytes,
            self.config.tenant_classes,
            *self._second_tier,
        )
        send(setup, [self._listener.fileno(), self._ingest.fd, self.page.segment.fd])
        send(self.knobs.message())
        for served in self.catalog.served():
            send(served)
            send(self._expectation(served.index))
            if lines := self._costs.of(f"{served.name}:{served.version}"):
                send(m.CostsKnown(served.index, lines))
        send(m.Listen())

    def _frontend_ended(self, returncode: int) -> None:
        """The new generation gets a new ingest arena and new rings; workers keep their models."""
        assert self.frontend is not None
        lived_s = self.frontend.lived_s
        self.frontend = None
        self._listening = False
        self._recording.ended(0, "the front end died")
        self.acknowledgements.leave(FRONTEND)
        self._acknowledged.set()
        for arena in self.arenas:
            self._forget_arena(arena.arena)
        if self.draining:
            self._stop_children()
            return
        self.frontend_restarts += 1
        delay_s = self._backoff.died(lived_s, FRONTEND_BACKOFF_MAX_S)
        self._log.warning("front end ended", how=ending(returncode), again_in_s=round(delay_s, 2))
        self._loop.call_later(delay_s, self._restart_frontend)

    def _restart_frontend(self) -> None:
        if self.draining:
            return
        if self._ingest is not None:
            self._ingest.close()
            self._ingest = None
        try:
            self._ingest = self._make_ingest()
            for place in self.places.values():
                place.joined = False  # the new one has heard of nobody
            self._spawn_frontend()
            for place in self.places.values():
                if place.child is not None and place.state in (State.LOADING, State.READY):
                    place.open_channel(self._ingest.fd, self._ingest.nbytes)
        except (InstanceFailure, NoMemory, OSError) as error:
            self._log.error("no new front end with its rings", reason=str(error))
            self._free_old_generation()
            if self.frontend is None:
                self._loop.call_later(FRONTEND_BACKOFF_MAX_S, self._restart_frontend)

    def _free_old_generation(self) -> None:
        """Workers map the last ingest arena until they are given another one: without room for both, end them.

        One that got no rings has nothing to serve with, and its successor asks again."""
        for place in self.places.values():
            if place.child is not None and place.state in (State.LOADING, State.READY):
                place.child.kill()

    def _make_ingest(self) -> Segment:
        """Raises InstanceFailure that names the knob."""
        nbytes = int(self.knobs.general("ingest_bytes"))
        try:
            check_room(nbytes)
            return Segment.create(nbytes)
        except NoMemory as error:
            sentence = f"ingest_bytes = {nbytes}: {error}; or make /dev/shm larger, or lower ingest_bytes in [knobs]"
            raise InstanceFailure(Exit.RESOURCES, sentence) from error

    def _from_frontend(self, message: m.AnyMessage, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)  # the front end sends none
        match message:
            case m.FrontendReady():
                self._listening = True
                self._log.info("front end listens", generation=self.frontend_generation)
                self._look_ready()
            case m.KnobsApplied(epoch):
                self.knobs_applied(FRONTEND, epoch)
            case m.ArenaWanted():
                task = self._loop.create_task(self._make_arena(message, self.frontend_generation))
                self._making.add(task)
                task.add_done_callback(self._making.discard)
            case m.ArenaReturned(arena):
                self._arena_returned(arena)
            case m.WorkerAccused(worker, generation, reason):
                self._accused(worker, generation, reason)
            case m.CostsLearned(index, lines):
                manifest = self.catalog.manifest(index)
                self._costs.learned(f"{manifest.name}:{manifest.version}", lines)
            case m.RecordingEnded(records, complaint):
                self._recording.ended(records, complaint)
            case m.Drained():
                self._log.info("drained")
                self._stop_children()

    def _to_frontend(self, message: m.Message, fds: Sequence[int] = ()) -> None:
        if self.frontend is not None:
            self.frontend.send(message, fds)

    # ── arenas ──────────────────────────────────────────────────────────────────────────────────

    async def _make_arena(self, wanted: m.ArenaWanted, generation: int) -> None:
        """Make an arena in a thread, tell the workers, then the front end: no descriptor of it can come earlier."""
        try:
            arena = self.arenas.promise(wanted.nbytes, int(self.knobs.general("arenas_bytes_max")))
        except TensordError as error:
            self._refuse_arena(wanted, generation, error)
            return
        try:
            check_room(self._making_bytes + wanted.nbytes)
            self._making_bytes += wanted.nbytes
            try:
                fd = await asyncio.to_thread(create_arena, wanted.nbytes)
            finally:
                self._making_bytes -= wanted.nbytes
        except NoMemory as error:
            self.arenas.break_promise(wanted.nbytes)
            self._refuse_arena(wanted, generation, error)
            return
        self.arenas.made(arena, fd, wanted.nbytes)
        if generation != self.frontend_generation or self.frontend is None:
            self._forget_arena(arena)
            return
        for place in self.places.values():
            if place.child is not None and place.rings is not None:
                place.child.send(m.MapArena(arena, wanted.nbytes), [fd])
        self._to_frontend(m.ArenaMade(wanted.ticket, arena, wanted.nbytes), [fd])

    def _refuse_arena(self, wanted: m.ArenaWanted, generation: int, error: TensordError) -> None:
        """Tickets are a front end's own: its successor has others with the same numbers."""
        if generation == self.frontend_generation:
            self._to_frontend(m.ArenaRefused(wanted.ticket, error.code, error.data()))

    def _arena_returned(self, arena: int) -> None:
        """Its client is through with it: whatever it still maps, the memory is free. When the instance ends, it is
        not: a client may just be reading the last result that it was told of."""
        self._forget_arena(arena, release=not self.draining)

    def _forget_arena(self, arena: int, *, release: bool = False) -> None:
        """Without `release` its contents stay as long as somebody maps it: when the front end dies, a client may
        just be reading a result that it was told of."""
        returned = self.arenas.returned(arena)
        if returned is None:
            return
        if release:
            release_pages(returned.fd, returned.nbytes)
        os.close(returned.fd)
        for place in self.places.values():
            if place.child is not None:
                place.child.send(m.UnmapArena(arena))

    # ── workers ─────────────────────────────────────────────────────────────────────────────────

    def spawn_worker(self, place: WorkerPlace) -> Child:
        """See workers.Host."""
        device = self._devices[place.device]
        place.threads = self._threads(device)
        threads = str(place.threads)
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": device.visible_gpu,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        cores = [",".join(map(str, place.cores))] if place.cores else []
        self.knobs.store.started(place.device)
        return Child(
            self._loop,
            "tensord.daemon.worker",
            [place.device, *cores],
            environment,
            received=place.received,
            ended=lambda returncode: self._worker_ended(place, returncode),
        )

    def _worker_ended(self, place: WorkerPlace, returncode: int) -> None:
        place.ended(returncode, float(self.knobs.general("backoff_max_s")))
        if self.draining:
            self._end_if_alone()

    def call_later(self, delay_s: float, place: WorkerPlace) -> None:
        """See workers.Host."""
        self._loop.call_later(delay_s, self._respawn, place)

    def _respawn(self, place: WorkerPlace) -> None:
        if place.state is not State.BACKING_OFF:
            return
        try:
            place.spawn()
        except OSError as error:
            self._log.error("a worker cannot be started", device=place.device, reason=str(error))
            self._loop.call_later(float(self.knobs.general("backoff_max_s")), self._respawn, place)

    def worker_spoke(self, place: WorkerPlace) -> None:
        """See workers.Host."""
        assert place.child is not None
        self.acknowledgements.join(place.name, self.knobs.epoch)
        place.child.send(self.knobs.message())
        try:
            if self._ingest is not None:  # else the next front end brings one
                place.open_channel(self._ingest.fd, self._ingest.nbytes)
        except NoMemory as error:
            if not self.was_ready:
                self._fail(Exit.RESOURCES, f"no rings for {place.name}: {error}")
            self._log.error("no rings for a worker", device=place.device, reason=str(error))
            place.child.kill()
            return
        for arena in self.arenas:
            place.child.send(m.MapArena(arena.arena, arena.nbytes), [arena.fd])
        for order in self.catalog.orders():
            place.load(order)

    def channel_opened(self, place: WorkerPlace, rings: Rings) -> None:
        """See workers.Host."""
        self._to_frontend(m.WorkerJoined(place.worker, place.device, rings.generation), rings.fds)
        place.joined = self.frontend is not None
        for index in sorted(place.loaded):
            self._to_frontend(m.ReplicaReady(place.worker, index))
        self._look_ready()

    def worker_ended(self, place: WorkerPlace) -> None:
        """See workers.Host."""
        self.acknowledgements.leave(place.name)
        self._acknowledged.set()
        if place.joined:
            self._to_frontend(m.WorkerGone(place.worker))
            place.joined = False

    def model_loaded(self, place: WorkerPlace, index: int) -> None:
        """See workers.Host."""
        if place.joined:
            self._to_frontend(m.ReplicaReady(place.worker, index))
        self._look_ready()

    def model_broken(self, _place: WorkerPlace, index: int, reason: str) -> None:
        """See workers.Host. A required model that no device can serve ends the start; later it degrades."""
        self._to_frontend(self._expectation(index))
        nowhere = all(index in each.broken for each in self.places.values())
        if nowhere and not self.was_ready and self.catalog.manifest(index).required:
            self._fail(Exit.MODELS, reason)
        else:
            self._look_ready()

    def device_broken(self, place: WorkerPlace, reason: str) -> None:
        """See workers.Host."""
        if self.was_ready:
            self._log.error("device broken", device=place.device, reason=reason)
        else:
            self._fail(Exit.DEVICE, reason)

    def _expectation(self, index: int) -> m.ReplicaExpected:
        reasons = [place.broken.get(index) for place in self.places.values()]
        expected = not reasons or not all(reasons)
        return m.ReplicaExpected(index, expected, "" if expected else "it failed to load; the daemon's log says why")

    def _accused(self, worker: int, generation: int, reason: str) -> None:
        place = self.places[worker]
        if place.generation == generation and place.child is not None:
            self._log.error("worker accused", device=place.device, reason=reason)
            place.child.kill()

    # ── watching ────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        """Kill what is silent; reading heartbeats waits for nobody."""
        while True:
            await asyncio.sleep(WATCH_S)
            limit_ms = float(self.knobs.general("hang_timeout_s")) * 1000
            load_limit_ms = float(self.knobs.general("load_timeout_s")) * 1000
            for place in self.places.values():
                reason = place.hung(limit_ms, load_limit_ms)
                if reason and place.child is not None:
                    self._log.error("worker hangs", device=place.device, reason=reason)
                    place.child.kill()
            limit_ms = limit_ms if self._listening else max(limit_ms, STARTING_MS_MAX)
            if self.frontend is not None and self.page.pulse().silent_ms > limit_ms:
                self._log.error("front end hangs", silent_ms=round(self.page.pulse().silent_ms))
                self.frontend.kill()

    async def _keep_costs(self) -> None:
        while True:
            await asyncio.sleep(COSTS_WRITTEN_S)
            await self._write_costs()

    async def _write_costs(self) -> None:
        """Write down what front ends have learned, where it is news. The disk may be slow: in a thread."""
        content = self._costs.content()
        if content == self._costs_written or not self.was_ready:
            return
        self._costs_written = content
        if complaint := await asyncio.to_thread(self._costs.write, content):
            self._log.warning("costs", reason=complaint)

    def reasons(self) -> list[str]:
        """Why the instance is not ready; empty if it is."""
        reasons = []
        if not self._listening:
            reasons.append("the front end is starting")
        for served in self.catalog.served():
            name = f"{served.name}:{served.version}"
            ready = any(served.index in place.loaded and place.joined for place in self.places.values())
            broken = [place.broken[served.index] for place in self.places.values() if served.index in place.broken]
            if not ready:
                reasons.append(": ".join([f"model {name} has no replica ready", *broken[:1]]))
        reasons += [
            f"{place.name} is {place.state}"
            for place in self.places.values()
            if place.state not in (State.READY, State.LOADING)
        ]
        return reasons

    @property
    def device_names(self) -> list[str]:
        """The devices of this instance."""
        return list(self._devices)

    @property
    def ingest_bytes(self) -> int:
        """Size of the ingest arena; 0 while there is none."""
        return 0 if self._ingest is None else self._ingest.nbytes

    @property
    def state(self) -> str:
        """`starting`, `ready`, `degraded` or `draining`."""
        if self.draining:
            return "draining"
        if not self.reasons():
            return "ready"
        return "degraded" if self.was_ready else "starting"

    def _look_ready(self) -> None:
        """Ready for the first time when every required model has given its expected answer somewhere."""
        if self.was_ready or not self._listening:
            return
        for served in self.catalog.served():
            ready = any(served.index in place.loaded and place.joined for place in self.places.values())
            settled = all(served.index in place.broken for place in self.places.values())
            if not ready and (self.catalog.manifest(served.index).required or not settled):
                return
        self.was_ready = True
        self.ready.set()
        seconds = time.monotonic() - self.started_s
        self._log.info("ready", socket=str(self.config.socket), after_s=round(seconds, 1), not_ready=self.reasons())

    # ── knobs ───────────────────────────────────────────────────────────────────────────────────

    def knobs_applied(self, process: str, epoch: int) -> None:
        """See workers.Host."""
        self.acknowledgements.acknowledged(process, epoch)
        self._acknowledged.set()

    def status(self) -> control.InstanceStatus:
        """See control_server.Operations."""
        return report(self)

    def get(self, addresses: list[str]) -> control.Values | control.Refused:
        """See control_server.Operations."""
        try:
            return self.knobs.values(addresses)
        except KnobError as error:
            return control.Refused(str(error), Exit.CONFIG)

    async def set(self, request: control.Set, who: str) -> control.Applied | control.Refused:
        """See control_server.Operations. Validates all or changes nothing; waits a moment for acknowledgements."""
        try:
            transaction = self.knobs.set(request, who, time.time())
        except (KnobError, StaleEpoch) as error:
            return control.Refused(str(error), Exit.CONFIG)
        self._log.info("knobs set", epoch=transaction.epoch, who=who, why=request.why, settings=request.settings)
        configure("supervisor", str(self.knobs.general("log_level")))
        message = self.knobs.message()
        self._to_frontend(message)
        for place in self.places.values():
            if place.child is not None and place.state is not State.STARTING:
                place.child.send(message)
        deadline = time.monotonic() + SET_WAIT_S
        while self.acknowledgements.converging(transaction.epoch) and (left := deadline - time.monotonic()) > 0:
            self._acknowledged.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acknowledged.wait(), left)
        return self.knobs.applied(transaction, self.converging())

    async def record(self, request: control.Record) -> control.Recorded | control.Refused:
        """See control_server.Operations."""
        if self.frontend is None or not self._listening:
            return control.Refused("no front end serves now: try again when it does")
        return await self._recording.run(request, self.frontend.send)

    def converging(self) -> list[str]:
        """Processes that do not yet work with the newest knobs."""
        return [process for process, _ in self.acknowledgements.converging(self.knobs.epoch)]
