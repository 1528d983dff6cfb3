"""A worker's place: its process, what it has loaded, its rings, and its restarts."""

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, Protocol

from tensord.ipc.heartbeat import Activity
from tensord.ipc.statistics import Word

from .. import messages as m
from ..log import get_logger
from .backoff import Backoff
from .child import Child, Page, ending
from .lifecycle import Event, Lifecycle, State
from .rings import Rings

STARTING_MS_MAX: Final = 60_000
"""A process that imports cannot beat; torch takes a second, on a busy host or a cold disk many."""

LOAD_DEATHS_MAX: Final = 3
"""Processes that may die while they load a model before its place gives the model up."""


class Host(Protocol):
    """What a place needs of the supervisor."""

    def spawn_worker(self, place: "WorkerPlace") -> Child: ...
    def call_later(self, delay_s: float, place: "WorkerPlace") -> None: ...
    def worker_spoke(self, place: "WorkerPlace") -> None: ...
    def worker_ended(self, place: "WorkerPlace") -> None: ...
    def channel_opened(self, place: "WorkerPlace", rings: Rings) -> None: ...
    def model_loaded(self, place: "WorkerPlace", index: int) -> None: ...
    def model_broken(self, place: "WorkerPlace", index: int, reason: str) -> None: ...
    def device_broken(self, place: "WorkerPlace", reason: str) -> None: ...
    def knobs_applied(self, process: str, epoch: int) -> None: ...


class WorkerPlace:
    """One device's worker, over all of its processes."""

    def __init__(
        self, host: Host, worker: int, device: str, cores: Sequence[int], page: Page, *, threads: int, spin: bool
    ) -> None:
        self.worker = worker
        self.device = device
        self.cores = tuple(cores)
        self.page = page
        self.threads = threads
        self.spin = spin
        self.restarts = 0
        self.child: Child | None = None
        self.loaded: set[int] = set()
        self.broken: dict[int, str] = {}
        self.model_bytes: dict[int, int] = {}
        """What the process held more when it had loaded a model."""
        self.notes: dict[str, str] = {}
        """What the process says that an operator should know, by subject."""
        self.rings: Rings | None = None
        self.generation = 0
        """Counts this place's rings; with a new front end or a new process there are new ones."""
        self.joined = False
        """Whether the present front end knows the present process."""
        self._host = host
        self._backoff = Backoff()
        self._pending: deque[m.LoadModel] = deque()
        self._loading: m.LoadModel | None = None
        self._overdue = False
        """The process was found hung in loading `_loading`."""
        self._load_deaths: Counter[int] = Counter()
        self._given_up: dict[int, str] = {}
        """Models that this place loads no more, since they ended or hung its processes, and why."""
        self._log = get_logger().bind(device=device)
        self.lifecycle = Lifecycle(self._moved)

    @property
    def name(self) -> str:
        """How operators read of it."""
        return f"worker {self.device}"

    @property
    def state(self) -> State:
        """See lifecycle."""
        return self.lifecycle.state

    def _moved(self, old: State, new: State) -> None:
        self._log.info("worker", state=str(new), before=str(old))

    # ── process ─────────────────────────────────────────────────────────────────────────────────

    def spawn(self) -> None:
        """Start a process. Raises OSError."""
        self.page.started()
        self.child = self._host.spawn_worker(self)
        self.lifecycle.on(Event.SPAWNED)
        setup = m.WorkerSetup(self.worker, self.device, self.threads, self.spin, self.page.segment.nbytes)
        self.child.send(setup, [self.page.segment.fd])

    def ended(self, returncode: int, backoff_max_s: float) -> None:
        """The process has ended; unless the instance stops, another follows."""
        assert self.child is not None
        lived_s = self.child.lived_s
        self.child = None
        culprit, self._loading = self._loading, None
        self.loaded.clear()
        self.notes.clear()
        self.broken = dict(self._given_up)
        self._pending.clear()
        if self.rings is not None:
            self.rings.close()
            self.rings = None
        if self.state is State.STOPPED:
            return
        self.lifecycle.on(Event.DIED)
        delay_s = self._backoff.died(lived_s, backoff_max_s)
        self.restarts += 1
        how = ending(returncode)
        self._log.warning("worker ended", how=how, lived_s=round(lived_s, 1), again_in_s=round(delay_s, 2))
        self._host.worker_ended(self)
        self._host.call_later(delay_s, self)
        if culprit is not None:
            self._blame(culprit, how)

    def _blame(self, order: m.LoadModel, how: str) -> None:
        """The process ended while it loaded this model. One that always does so must not take the device with it."""
        self._load_deaths[order.index] += 1
        overdue, self._overdue = self._overdue, False
        if overdue:
            reason = "it did not load within load_timeout_s: mend it, or allow more"
        elif self._load_deaths[order.index] >= LOAD_DEATHS_MAX:
            reason = f"its loading ended the worker {LOAD_DEATHS_MAX} times ({how}): mend its code"
        else:
            return
        reason = f"model {order.name}:{order.version} on {self.device}: {reason}"
        self._given_up[order.index] = self.broken[order.index] = reason
        self._log.error("model given up", reason=reason)
        self._host.model_broken(self, order.index, reason)

    def stop(self) -> None:
        """Finish the batch and end; a process that still imports has nothing to finish."""
        starting = self.state is State.STARTING
        if self.state is not State.STOPPED:
            self.lifecycle.on(Event.STOPPING)
        if self.child is not None:
            self.child.send(m.Stop())
            if starting:
                self.child.kill()

    def hung(self, limit_ms: float, load_limit_ms: float) -> str | None:
        """Why the process counts as hung; None if it does not."""
        if self.child is None:
            return None
        if self.state is State.STARTING:
            limit_ms = max(limit_ms, STARTING_MS_MAX)
        pulse = self.page.pulse()
        if pulse.activity is Activity.LOADING and self._loading is not None:
            self._overdue = pulse.activity_ms > load_limit_ms
            return f"loading {self._loading.name} for {pulse.activity_ms / 1000:.0f} s" if self._overdue else None
        if pulse.silent_ms > limit_ms:
            return f"silent for {pulse.silent_ms / 1000:.1f} s while {pulse.activity.name.lower()}"
        return None

    # ── rings ───────────────────────────────────────────────────────────────────────────────────

    def open_channel(self, ingest_fd: int, ingest_bytes: int) -> None:
        """Give the process new rings; it answers when it has left the old ones. Raises NoMemory."""
        assert self.child is not None
        if self.rings is not None:
            self.rings.close()
            self.rings = None
        self.generation += 1
        self.joined = False
        self.rings = Rings.create(self.generation)
        self.page.block.words[Word.GENERATION] = self.generation
        self.child.send(m.OpenChannel(self.generation, ingest_bytes), [*self.rings.fds, ingest_fd])

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def load(self, order: m.LoadModel) -> None:
        """Load a model when those asked for before are loaded: in between, the worker serves."""
        if order.index in self._given_up:
            return
        self._pending.append(order)
        if self.state is State.READY:
            self.lifecycle.on(Event.LOADING_MORE)
        self._load_next()

    def _load_next(self) -> None:
        assert self.child is not None
        if self._loading is not None:
            return
        if self._pending:
            self._loading = self._pending.popleft()
            self.child.send(self._loading)
        elif self.state is State.LOADING:
            self.lifecycle.on(Event.LOADED)

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def received(self, message: m.AnyMessage, fds: list[int]) -> None:
        """What the process says."""
        for fd in fds:
            os.close(fd)  # workers send none
        if self.state is State.STOPPED:
            return  # said before it read that it is to stop
        match message:
            case m.WorkerStarted():
                self.lifecycle.on(Event.SPOKE)
                self._host.worker_spoke(self)
                self._load_next()
            case m.ChannelOpened(generation):
                if self.rings is not None and generation == self.rings.generation:
                    self._host.channel_opened(self, self.rings)
            case m.ModelLoaded(index, load_ms, memory_bytes):
                self._log.info("model ready", index=index, load_ms=round(load_ms), memory_bytes=memory_bytes)
                self._loading = None
                self.loaded.add(index)
                self.model_bytes[index] = memory_bytes
                self._host.model_loaded(self, index)
                self._load_next()
            case m.ModelBroken(index, reason):
                self._log.error("model broken", reason=reason)
                self._loading = None
                self.broken[index] = reason
                self._host.model_broken(self, index, reason)
                self._load_next()
            case m.WorkerNoted(subject, sentence):
                self._note(subject, sentence)
            case m.DeviceBroken(reason):
                self._host.device_broken(self, reason)
            case m.KnobsApplied(epoch):
                self._host.knobs_applied(self.name, epoch)

    def _note(self, subject: str, sentence: str) -> None:
        if sentence:
            self._log.warning("worker noted", subject=subject, note=sentence)
            self.notes[subject] = sentence
        else:
            self.notes.pop(subject, None)

    @property
    def uptime_s(self) -> float:
        """Seconds since the present process started; 0 if there is none."""
        return 0.0 if self.child is None else time.monotonic() - self.child.started_s
