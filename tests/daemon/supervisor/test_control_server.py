"""Operators on real sockets, and a supervisor that only says that it was asked."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import pytest

from tensord.daemon import control
from tensord.daemon.exits import Exit
from tensord.daemon.supervisor import control_server as module
from tensord.daemon.supervisor.control_server import ControlServer

pytestmark = pytest.mark.timeout(60)

WATCHDOG_S: Final = 30.0
STRANGER: Final = 65_534
"""A user who is neither root nor runs the daemon."""

VALUES: Final = control.Values(3, [control.KnobState("max_batch", 32, "32", "default", "live", "Help.")])
APPLIED: Final = control.Applied(4, [], ["frontend"])
STATUS: Final = control.InstanceStatus(
    version="1",
    pid=1,
    uptime_s=0.5,
    state="ready",
    reasons=[],
    epoch=3,
    converging=[],
    pending_restart=[],
    socket="tensord.sock",
    arenas=0,
    arena_bytes=0,
    frontend=control.FrontendStatus(None, 1, 0, 0, 0, 0, 0, 0, 0),
    workers=[],
    models=[],
)


NASTY: Final = (
    b'{"type":"Status","x":' + b"[" * 60_000,
    b'{"type":"Get","addresses":["\xff"]}',
)
"""Deeper than the parser goes, and no UTF-8."""


class Supervisor:
    """Notes what it is asked; a change waits until it may be applied."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.values: control.Values | control.Refused = VALUES
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.setting = asyncio.Event()

    def status(self) -> control.InstanceStatus:
        self.asked.append("status")
        return STATUS

    def get(self, addresses: list[str]) -> control.Values | control.Refused:
        self.asked.append(addresses)
        return self.values

    async def set(self, request: control.Set, who: str) -> control.Applied | control.Refused:
        self.setting.set()
        await self.may_apply.wait()
        self.asked.append((request.settings, who))
        return APPLIED

    async def record(self, request: control.Record) -> control.Recorded | control.Refused:
        self.asked.append(request)
        return control.Recorded(7, "")


class Operator:
    """One connection."""

    def __init__(self, address: bytes, uid: int | None) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        with connecting_as(uid):
            self._socket.connect(address)
        self._socket.setblocking(False)
        self._read = bytearray()

    async def send(self, *lines: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, b"".join(lines))

    async def receive(self) -> control.Answer | None:
        """The next answer; None where the connection ends before one."""
        while b"\n" not in self._read:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20)
            except ConnectionResetError:  # it was closed on something that we said
                return None
            if not data:
                assert not self._read, "a part of an answer"
                return None
            self._read += data
        line, _, rest = self._read.partition(b"\n")
        self._read = rest
        answer: control.Answer = control.decode_answer(line)
        return answer

    async def ask(self, request: control.Request) -> control.Answer | None:
        await self.send(control.encode(request), b"\n")
        return await self.receive()

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def connecting_as(uid: int | None) -> Iterator[None]:
    """The kernel tells the server who somebody was when he connected."""
    if uid is None or uid == os.geteuid():
        yield
        return
    own = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(own)


class Served:
    """A control server and those who connect to it."""

    def __init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract address: every user may connect
        self.listener.listen()
        self.address: bytes = self.listener.getsockname()
        self.supervisor = Supervisor()
        self.server = ControlServer(self.supervisor)
        self._operators: list[Operator] = []

    def connect(self, uid: int | None = None) -> Operator:
        self._operators.append(Operator(self.address, uid))
        return self._operators[-1]

    def close(self) -> None:
        self.server.close()
        for operator in self._operators:
            operator.close()


Body = Callable[[Served], Awaitable[None]]
Run = Callable[[Body], None]


@pytest.fixture
def run() -> Run:
    """Runs a test body beside a server. Nothing goes wrong there that nobody handles."""

    def run_body(body: Body) -> None:
        unhandled: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            served = Served()
            await served.server.start(served.listener)
            try:
                async with asyncio.timeout(WATCHDOG_S):
                    await body(served)
            finally:
                served.close()

        asyncio.run(main())
        assert unhandled == []

    return run_body


# ── requests ────────────────────────────────────────────────────────────────────────────────────


def test_each_request_is_answered_by_the_supervisor(run: Run) -> None:
    async def body(served: Served) -> None:
        operator = served.connect()
        assert await operator.ask(control.Status()) == STATUS
        assert await operator.ask(control.Get(["max_batch"])) == VALUES
        assert await operator.ask(control.Set({"max_batch": 16}, "why", 3)) == APPLIED
        wish = control.Record("/tmp/trace", 1.0, 1 << 20)
        assert await operator.ask(wish) == control.Recorded(7, "")
        assert served.supervisor.asked == ["status", ["max_batch"], ({"max_batch": 16}, f"uid {os.geteuid()}"), wish]

    run(body)


def test_requests_that_come_at_once_are_answered_in_order(run: Run) -> None:
    async def body(served: Served) -> None:
        operator = served.connect()
        requests = [control.Get(["a"]), control.Status(), control.Get(["b"])]
        await operator.send(*(control.encode(request) + b"\n" for request in requests))
        assert [await operator.receive() for _ in requests] == [VALUES, STATUS, VALUES]
        assert served.supervisor.asked == [["a"], "status", ["b"]]

    run(body)


def test_what_the_supervisor_refuses_is_passed_on(run: Run) -> None:
    async def body(served: Served) -> None:
        served.supervisor.values = control.Refused("zz: no such knob", Exit.CONFIG)
        assert await served.connect().ask(control.Get(["zz"])) == control.Refused("zz: no such knob", Exit.CONFIG)

    run(body)


@pytest.mark.parametrize("line", [b"", b"{}", b"GET / HTTP/1.1\r", b'{"type": "Stop"}', b"x" * 100_000, *NASTY])
def test_a_malformed_request_is_said_and_the_next_one_is_answered(run: Run, line: bytes) -> None:
    async def body(served: Served) -> None:
        operator = served.connect()
        await operator.send(line, b"\n")
        refused = await operator.receive()
        assert isinstance(refused, control.Refused)
        assert refused.sentence.startswith("the request is malformed: ")
        assert refused.exit == Exit.USAGE
        assert await operator.ask(control.Status()) == STATUS

    run(body)


# ── who may ask ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> int:
    """Another user's id, to connect as."""
    if os.geteuid() == 0:
        return STRANGER
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    return own


def test_another_user_may_read_and_not_set(run: Run, stranger: int) -> None:
    async def body(served: Served) -> None:
        operator = served.connect(stranger)
        assert await operator.ask(control.Status()) == STATUS
        assert await operator.ask(control.Get()) == VALUES
        sentence = f"uid {stranger} may read knobs, not set them: use the daemon's user, or root"
        assert await operator.ask(control.Set({"max_batch": 16})) == control.Refused(sentence)
        assert served.supervisor.asked == ["status", []]

    run(body)


def test_the_daemons_own_user_may_set(run: Run, stranger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: stranger)

    async def body(served: Served) -> None:
        assert await served.connect(stranger).ask(control.Set({"max_batch": 16})) == APPLIED
        assert served.supervisor.asked == [({"max_batch": 16}, f"uid {stranger}")]

    run(body)


# ── who costs others nothing ────────────────────────────────────────────────────────────────────


def test_others_are_answered_while_a_change_waits(run: Run) -> None:
    async def body(served: Served) -> None:
        served.supervisor.may_apply.clear()
        waiting = served.connect()
        await waiting.send(control.encode(control.Set({"a": 1})), b"\n")
        await served.supervisor.setting.wait()
        assert await served.connect().ask(control.Status()) == STATUS
        served.supervisor.may_apply.set()
        assert await waiting.receive() == APPLIED

    run(body)


def test_who_is_gone_before_the_answer_is_no_trouble(run: Run) -> None:
    async def body(served: Served) -> None:
        served.supervisor.may_apply.clear()
        gone = served.connect()
        await gone.send(control.encode(control.Set({"a": 1})), b"\n", control.encode(control.Status()), b"\n")
        await served.supervisor.setting.wait()
        gone.close()
        served.supervisor.may_apply.set()
        assert await served.connect().ask(control.Status()) == STATUS

    run(body)


def test_who_is_silent_is_disconnected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.05)

    async def body(served: Served) -> None:
        silent, half = served.connect(), served.connect()
        await half.send(b'{"type": ')
        assert [await silent.receive(), await half.receive()] == [None, None]
        assert served.supervisor.asked == []

    run(body)


def test_a_line_without_end_is_cut_off(run: Run) -> None:
    async def body(served: Served) -> None:
        operator = served.connect()
        await operator.send(b"x" * (module.REQUEST_BYTES_MAX + 1))
        assert await operator.receive() is None
        assert await served.connect().ask(control.Status()) == STATUS

    run(body)


def test_one_more_than_there_are_places_is_told_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)

    async def body(served: Served) -> None:
        connected = [served.connect() for _ in range(2)]
        for operator in connected:
            assert await operator.ask(control.Status()) == STATUS
        late = served.connect()
        assert await late.receive() == control.Refused("2 others are connected: try again")
        assert await late.receive() is None
        connected[0].close()
        await place_free(served)

    run(body)


def test_who_does_not_read_loses_the_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.05)

    async def body(served: Served) -> None:
        knob = control.KnobState("max_batch", 32, "32", "default", "live", "x" * 10_000_000)
        served.supervisor.values = control.Values(3, [knob])
        await served.connect().send(*[control.encode(control.Get()), b"\n"] * 3)
        await place_free(served)
        assert served.supervisor.asked.count([]) == 1, "the next is answered when this one was taken"

    run(body)


async def place_free(served: Served) -> None:
    """Until somebody who connects is served; ask again as long as there is no place."""
    while await served.connect().ask(control.Status()) != STATUS:
        pass


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_closing_cuts_off_who_is_connected_and_who_waits(run: Run) -> None:
    async def body(served: Served) -> None:
        served.supervisor.may_apply.clear()
        idle, waiting = served.connect(), served.connect()
        assert await idle.ask(control.Status()) == STATUS
        await waiting.send(control.encode(control.Set({"a": 1})), b"\n")
        await served.supervisor.setting.wait()
        served.server.close()
        assert [await idle.receive(), await waiting.receive()] == [None, None]
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(served.address)
        assert served.supervisor.asked == ["status"]

    run(body)
