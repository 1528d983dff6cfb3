"""A supervisor in a real loop, on a real runtime directory and real shared memory, whose children are the test itself.

No process starts: in the place of a Child stands one whose link is a real socket pair, of which the test holds the
process's end. It says what a process would say, hears what one would hear, and ends when it is told to.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from tensord.daemon import messages as m
from tensord.daemon.config import Config
from tensord.daemon.exits import Exit
from tensord.daemon.knob import Setting
from tensord.daemon.models.repository import scan
from tensord.daemon.supervisor import supervisor as supervisor_module
from tensord.daemon.supervisor.catalog import Catalog
from tensord.daemon.supervisor.child import Page
from tensord.daemon.supervisor.knobs import Knobs
from tensord.daemon.supervisor.supervisor import STOP_SIGNALS, DevicePlan, Supervisor
from tensord.daemon.supervisor.workers import WorkerPlace
from tensord.ipc.heartbeat import Activity, Heartbeat

WATCHDOG_S: Final = 20.0
INGEST_BYTES: Final = 2**20
FRONTEND: Final = "tensord.daemon.frontend"
WORKER: Final = "tensord.daemon.worker"

_pids = itertools.count(2**22 + 1)  # more than the kernel gives
_moments = itertools.count()


class FakeChild:
    """Has the contract of a Child: it sends without waiting, and its end is reported once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        received: Callable[[m.AnyMessage, list[int]], None],
        ended: Callable[[int], None],
    ) -> None:
        self.module = module
        self.arguments = list(arguments)
        self.environment = dict(environment)
        self.pid = next(_pids)
        self.started_s = time.monotonic()
        self.heard: list[m.AnyMessage] = []
        """What the process was sent."""
        self.files: list[list[os.stat_result]] = []
        """For each of these, the files that came with it."""
        self.moments: list[int] = []
        """For each of these, a number that grows over all children."""
        self.alive = True
        self.killed = False
        self.obeys = True
        """Whether it ends when it is told to stop."""
        self.mortal = True
        """Whether it ends when it is killed; one that a driver holds does not."""
        self._loop = loop
        self._received = received
        self._ended = ended
        self._ours, self._theirs = m.Link.pair()

    # ── as the supervisor has it ────────────────────────────────────────────────────────────────

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started_s

    def send(self, message: m.Message, fds: Sequence[int] = ()) -> None:
        if not self.alive:
            return
        self._ours.send(message, fds)
        while (heard := self._theirs.receive()) is not None:
            self.heard.append(heard[0])
            self.files.append([os.fstat(fd) for fd in heard[1]])
            self.moments.append(next(_moments))
            for fd in heard[1]:
                os.close(fd)
        if isinstance(message, m.Stop) and self.obeys:
            self._loop.call_soon(self.end, 0)

    def kill(self) -> None:
        if not self.alive:
            raise ProcessLookupError
        self.killed = True
        if self.mortal and not self._loop.is_closed():
            self._loop.call_soon(self.end, -signal.SIGKILL)

    # ── as the process ──────────────────────────────────────────────────────────────────────────

    def say(self, message: m.Message, fds: Sequence[int] = ()) -> None:
        """Send this; it arrives at once."""
        self._theirs.send(message, fds)
        while self.alive and (received := self._ours.receive()) is not None:
            self._received(*received)

    def end(self, returncode: int = 1) -> None:
        """End, if it has not yet."""
        if self.alive:
            self.vanish()
            self._ended(returncode)

    def vanish(self) -> None:
        """End with nobody left to whom it could be reported."""
        self.alive = False
        self._ours.close()
        self._theirs.close()

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    def of(self, kind: type[m.Message]) -> list[Any]:
        """What it was sent of this kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    def files_of(self, kind: type[m.Message]) -> list[os.stat_result]:
        """What came with the last message of this kind."""
        return self.files[self._last(kind)]

    def moment_of(self, kind: type[m.Message]) -> int:
        """When it was sent the last message of this kind."""
        return self.moments[self._last(kind)]

    def _last(self, kind: type[m.Message]) -> int:
        return max(place for place, message in enumerate(self.heard) if isinstance(message, kind))


class Rig:
    """One supervisor and all the children that it had; `run` runs it beside a test body."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        devices: Sequence[DevicePlan],
        knobs: Mapping[str, Setting],
    ) -> None:
        """`root` is a repository of models. `knobs` may have values that nobody could set."""
        names = [device.name for device in devices]
        self.config = Config(
            path=None,
            runtime_dir=directory / "rt",
            models=root,
            state_dir=directory / "state",
            devices=tuple(names),
            knobs={"ingest_bytes": INGEST_BYTES} | dict(knobs),
            model_knobs={},
            device_knobs={},
        )
        catalog = Catalog(root, scan(root))
        self.supervisor = Supervisor(self.config, catalog, Knobs(self.config.configured, names, catalog), devices)
        self.children: list[FakeChild] = []
        self.refuses: set[str] = set()
        """Modules of which the kernel starts no process."""
        self.refused = 0
        """How often it has refused."""
        self.ignored: set[signal.Signals] = set()
        """Signals that do nothing after the end."""
        self._body: Callable[[], Awaitable[None]]
        self._task: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None
        self._unhandled: list[dict[str, Any]] = []
        self._listeners: list[socket.socket] = []
        self._listen = self.supervisor._runtime.listen
        monkeypatch.setattr(self.supervisor._runtime, "listen", self._note_listener)
        monkeypatch.setattr(supervisor_module, "Child", self._spawn)

    # ── running ─────────────────────────────────────────────────────────────────────────────────

    def run(self, body: Callable[[], Awaitable[None]]) -> Exit:
        """What the supervisor's `run` returns or raises; `body` begins when everything is spawned.

        When the body is through, the supervisor is drained and every child ends. Then nothing went wrong that nobody
        handled, and no descriptor is left but those that a supervisor leaves to the end of its process.
        """
        self._body = body
        before = len(os.listdir("/proc/self/fd"))
        try:
            with _restored():
                try:
                    return self.supervisor.run()
                finally:
                    self.ignored = {number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
                    self._close()
        finally:
            if self._failed is not None:
                raise self._failed
            assert self._unhandled == []
            assert len(os.listdir("/proc/self/fd")) == before

    def _spawn(self, loop: asyncio.AbstractEventLoop, module: str, *arguments: Any, **callbacks: Any) -> FakeChild:
        if self._task is None:
            loop.set_exception_handler(lambda _, context: self._unhandled.append(context))
            self._task = loop.create_task(self._play())
        if module in self.refuses:
            self.refused += 1
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.children.append(FakeChild(loop, module, *arguments, **callbacks))
        return self.children[-1]

    def _note_listener(self, path: Path) -> socket.socket:
        self._listeners.append(self._listen(path))
        return self._listeners[-1]

    async def _play(self) -> None:
        try:
            async with asyncio.timeout(WATCHDOG_S):
                await self._body()
        except asyncio.CancelledError:  # the instance is over
            raise
        except BaseException as failed:
            self._failed = failed
        self.supervisor.drain()
        for child in self.children:
            child.end(0)

    def _close(self) -> None:
        supervisor = self.supervisor
        for child in self.children:
            if child.alive:
                child.vanish()
        for place in supervisor.places.values():
            if place.rings is not None:
                place.rings.close()
        pages = [place.page for place in supervisor.places.values()]
        for page in [*pages, supervisor.page] if hasattr(supervisor, "page") else []:
            page.block.words.release()
            page.segment.close()
        for arena in supervisor.arenas:
            os.close(arena.fd)
        if supervisor._ingest is not None:
            supervisor._ingest.close()
        for listener in self._listeners:
            listener.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until the condition holds."""
        while not condition():
            await asyncio.sleep(0.001)

    async def wait_over(self) -> None:
        """Until the instance is over; nothing behind this is run."""
        await asyncio.Event().wait()

    # ── children ────────────────────────────────────────────────────────────────────────────────

    @property
    def frontends(self) -> list[FakeChild]:
        """Every generation."""
        return [child for child in self.children if child.module == FRONTEND]

    @property
    def frontend(self) -> FakeChild:
        """The last one."""
        return self.frontends[-1]

    def workers(self, device: str = "cpu:0") -> list[FakeChild]:
        """Every process that this device had."""
        return [child for child in self.children if child.module == WORKER and child.arguments[0] == device]

    def worker(self, device: str = "cpu:0") -> FakeChild:
        """The last one."""
        return self.workers(device)[-1]

    def place(self, device: str = "cpu:0") -> WorkerPlace:
        """Where it stands."""
        (place,) = [place for place in self.supervisor.places.values() if place.device == device]
        return place

    # ── what processes do when all goes well ────────────────────────────────────────────────────

    def open_channel(self, device: str = "cpu:0") -> None:
        """The worker has taken its newest rings."""
        self.worker(device).say(m.ChannelOpened(self.worker(device).of(m.OpenChannel)[-1].generation))

    def load(self, device: str = "cpu:0") -> None:
        """The worker starts, and loads what it is told to load."""
        worker = self.worker(device)
        worker.say(m.WorkerStarted(2**30))
        self.open_channel(device)
        for place in itertools.count():
            if place == len(worker.of(m.LoadModel)):
                return
            worker.say(m.ModelLoaded(worker.of(m.LoadModel)[place].index, 1.0))

    def get_ready(self) -> None:
        """The front end listens, and every worker has loaded everything."""
        self.frontend.say(m.FrontendReady())
        for place in self.supervisor.places.values():
            self.load(place.device)


def fall_silent(page: Page, silent_s: int, activity: Activity = Activity.RUNNING) -> None:
    """The process that writes this page has done nothing else for so long."""
    Heartbeat(page.block).enter(activity, time.monotonic_ns() - silent_s * 1_000_000_000)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """A supervisor has its process for itself: signals, limits and the log are as before afterwards."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()
