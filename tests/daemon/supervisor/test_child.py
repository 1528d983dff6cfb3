"""Children that are real processes, of a module written for the test."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensord.daemon import messages as m
from tensord.daemon.supervisor.child import Child, Page, ending
from tensord.ipc.heartbeat import Activity, Heartbeat
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block, Counter, Word

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

WATCHDOG_S = 30.0

PROLOGUE = """
import os, signal, socket, sys, time
from tensord.daemon import messages as m
link = m.Link(socket.socket(fileno=int(sys.argv[1])))
link.sock.setblocking(True)
"""


class Watched:
    """A child and what was reported of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, arguments: list[str]) -> None:
        self.messages: list[m.AnyMessage] = []
        self.fds: list[int] = []
        self.ends: list[int] = []
        self.changed = asyncio.Event()
        environment = {**os.environ, "PYTHONPATH": str(path)}
        self.child = Child(loop, "kid", arguments, environment, received=self._received, ended=self._ended)

    def _received(self, message: m.AnyMessage, fds: list[int]) -> None:
        assert not self.ends, "a message after the end"
        self.messages.append(message)
        self.fds += fds
        self.changed.set()

    def _ended(self, returncode: int) -> None:
        self.ends.append(returncode)
        self.changed.set()

    async def until(self, condition: Callable[["Watched"], bool]) -> None:
        async with asyncio.timeout(WATCHDOG_S):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    async def end(self) -> int:
        await self.until(lambda watched: bool(watched.ends))
        return self.ends[0]


Start = Callable[..., Watched]
RunWith = Callable[[Callable[[Start], Awaitable[Any]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunWith]:
    """Runs a test body in a loop; whatever it started is ended afterwards."""
    before = len(os.listdir("/proc/self/fd"))

    def run_body(body: Callable[[Start], Awaitable[Any]]) -> None:
        async def main() -> None:
            started: list[Watched] = []

            def start(code: str, *arguments: str) -> Watched:
                (tmp_path / "kid.py").write_text(PROLOGUE + code)
                started.append(Watched(asyncio.get_running_loop(), tmp_path, list(arguments)))
                return started[-1]

            try:
                await body(start)
            finally:
                for watched in started:
                    if not watched.ends:
                        watched.child.kill()
                        await watched.end()

        asyncio.run(main())

    yield run_body
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("", 0), ("sys.exit(3)", 3), ("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6)],
)
def test_an_end_is_reported_once_as_it_was(run: RunWith, code: str, returncode: int) -> None:
    async def body(start: Start) -> None:
        watched = start(code)
        assert await watched.end() == returncode
        await asyncio.sleep(0)
        assert watched.ends == [returncode]

    run(body)


def test_its_last_words_come_before_its_end(run: RunWith) -> None:
    async def body(start: Start) -> None:
        watched = start("for epoch in range(50): link.send(m.KnobsApplied(epoch))\nos._exit(1)")
        assert await watched.end() == 1
        assert watched.messages == [m.KnobsApplied(epoch) for epoch in range(50)]

    run(body)


def test_it_gets_link_parent_and_arguments(run: RunWith) -> None:
    async def body(start: Start) -> None:
        watched = start("link.send(m.DeviceBroken(' '.join(sys.argv[2:])))", "cpu:0", "0,1")
        await watched.end()
        assert watched.messages == [m.DeviceBroken(f"{os.getpid()} cpu:0 0,1")]

    run(body)


def test_messages_and_descriptors_reach_it(run: RunWith) -> None:
    code = """
message, fds = link.receive()
os.write(fds[0], message.reason.encode())
"""

    async def body(start: Start) -> None:
        watched = start(code)
        reading, writing = os.pipe()
        watched.child.send(m.DeviceBroken("hello"), [writing])
        os.close(writing)
        assert await watched.end() == 0
        assert os.read(reading, 100) == b"hello"
        os.close(reading)

    run(body)


def test_a_child_that_does_not_read_gets_everything_when_it_does(run: RunWith) -> None:
    code = """
message, fds = link.receive()
os.read(fds[0], 1)
count = 0
while not isinstance(message, m.Stop):
    message, _ = link.receive()
    count += 1
link.send(m.KnobsApplied(count))
"""

    async def body(start: Start) -> None:
        watched = start(code)
        reading, writing = os.pipe()
        watched.child.send(m.Drain(), [reading])
        for _ in range(500):
            watched.child.send(m.DeviceBroken("x" * 10_000))
        watched.child.send(m.Stop())
        assert watched.child.link.backlog > 0
        os.write(writing, b"!")
        await watched.end()
        assert watched.messages == [m.KnobsApplied(501)]
        assert watched.child.link.backlog == 0
        os.close(reading)
        os.close(writing)

    run(body)


def test_sending_to_the_dead_is_nothing(run: RunWith) -> None:
    async def body(start: Start) -> None:
        watched = start("link.send(m.Drained())\nlink.close()\ntime.sleep(60)")
        await watched.until(lambda seen: bool(seen.messages))
        for _ in range(100):
            watched.child.send(m.Stop())
            await asyncio.sleep(0)
        watched.child.kill()
        assert await watched.end() == -signal.SIGKILL
        watched.child.send(m.Stop())

    run(body)


def test_kill_ends_one_that_ignores_everything(run: RunWith) -> None:
    code = """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
link.send(m.FrontendReady())
while True: time.sleep(60)
"""

    async def body(start: Start) -> None:
        watched = start(code)
        await watched.until(lambda seen: bool(seen.messages))
        watched.child.kill()
        assert await watched.end() == -signal.SIGKILL
        assert ending(watched.ends[0]) == "killed by SIGKILL"

    run(body)


def test_it_has_a_session_of_its_own_and_no_standard_input(run: RunWith) -> None:
    async def body(start: Start) -> None:
        watched = start("link.send(m.DeviceBroken(f'{os.getsid(0)} {os.getpid()} {sys.stdin.read()!r}'))")
        await watched.end()
        assert watched.messages == [m.DeviceBroken(f"{watched.child.pid} {watched.child.pid} ''")]

    run(body)


def test_it_inherits_its_link_and_nothing_else(run: RunWith) -> None:
    async def body(start: Start) -> None:
        leaked = os.open("/dev/null", os.O_RDONLY)
        watched = start("link.send(m.DeviceBroken(' '.join(sorted(os.listdir('/proc/self/fd'), key=int))))")
        await watched.end()
        (message,) = watched.messages
        assert isinstance(message, m.DeviceBroken)
        inherited = [int(fd) for fd in message.reason.split()]
        assert len(inherited) == 5, "standard streams, the link, and the directory being listed"
        os.close(leaked)

    run(body)


def test_a_module_in_the_working_directory_is_not_imported(
    run: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "json.py").write_text("raise SystemExit(66)")
    monkeypatch.chdir(tmp_path / "there")

    async def body(start: Start) -> None:
        assert await start("import json\njson.dumps(1)").end() == 0

    run(body)


def test_a_process_that_cannot_be_started_is_an_os_error(run: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    async def body(start: Start) -> None:
        with pytest.raises(FileNotFoundError):
            start("")

    run(body)


# ── what is said of it ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("returncode", "said"),
    [
        (0, "exit code 0"),
        (2, "exit code 2"),
        (-11, "killed by SIGSEGV"),
        (-64, "killed by SIGRTMAX"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_ending_in_words(returncode: int, said: str) -> None:
    assert ending(returncode) == said


def test_a_page_outlives_the_process_that_writes_it() -> None:
    page = Page(2)
    process = Segment(os.dup(page.segment.fd), page.segment.nbytes)
    block = Block(process.view)
    block.count(1, Counter.ROWS, 5)
    Heartbeat(block).enter(Activity.RUNNING, 0)
    block.words.release()
    process.close()
    assert page.block.counters(1)[Counter.ROWS] == 5
    assert page.pulse().activity is Activity.RUNNING
    page.block.words.release()
    page.segment.close()


def test_a_new_process_is_not_judged_by_the_silence_of_the_old_one() -> None:
    page = Page(1)
    before = time.monotonic_ns()
    page.block.words[Word.HEARTBEAT_NS] = 1
    page.started()
    assert before <= page.block.words[Word.HEARTBEAT_NS] <= time.monotonic_ns()
    page.block.words.release()
    page.segment.close()
