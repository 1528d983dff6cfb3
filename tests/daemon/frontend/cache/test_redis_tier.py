"""The second tier's client, with servers that hang, lie and die: sockets of the test, on uvloop."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import uvloop

from tensord.daemon.frontend.cache import redis_tier
from tensord.daemon.frontend.cache.redis_tier import BATCH_MAX, LOOK_UPS_MAX, PREFIX, WRITES_MAX, RedisTier

WATCHDOG_S: Final = 20.0
Answer = Callable[[list[bytes]], bytes]
"""A command, and what the server says to it."""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WATCHDOG_S):
        while not condition():
            await asyncio.sleep(0.001)


class Server:
    """Speaks as much of Redis's protocol as the tier needs, as well as `answer` does."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self.answer: Answer = self.as_redis
        self.answering = asyncio.Event()
        """Cleared: it hangs."""
        self.answering.set()
        self.directory = tempfile.TemporaryDirectory(prefix="tdr", dir="/tmp")
        self.socket = Path(self.directory.name) / "s"
        self._server: asyncio.Server

    def as_redis(self, words: list[bytes]) -> bytes:
        match words:
            case [b"GETRANGE", key, _, last]:
                value = self.values.get(key, b"")[: int(last) + 1]
                return b"$%d\r\n%s\r\n" % (len(value), value)
            case [b"SET", key, value, b"PX", _]:
                self.values[key] = value
                return b"+OK\r\n"
            case [b"PING"]:
                return b"+PONG\r\n"
        return b"-ERR unknown command\r\n"

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                count = int((await reader.readline() or b"*0")[1:])
                if not count:
                    break
                words = [await self._word(reader) for _ in range(count)]
                self.commands.append(words)
                await self.answering.wait()
                writer.write(self.answer(words))
        writer.close()

    @staticmethod
    async def _word(reader: asyncio.StreamReader) -> bytes:
        nbytes = int((await reader.readline())[1:])
        return (await reader.readexactly(nbytes + 2))[:-2]

    async def close(self) -> None:
        self.answering.set()
        self._server.close()
        self.directory.cleanup()


class Asked:
    """Look-ups, and what came of them."""

    def __init__(self, tier: RedisTier) -> None:
        self.tier = tier
        self.found: dict[bytes, tuple[bytes | None, bool]] = {}

    def ask(self, key: bytes) -> bool:
        def found(value: bytes | None, well: bool) -> None:
            assert key not in self.found
            self.found[key] = value, well

        return self.tier.look_up(key, 100, found)

    async def told(self, *keys: bytes) -> None:
        await until(lambda: all(key in self.found for key in keys))


@contextlib.asynccontextmanager
async def meeting(*, listening: bool = True) -> AsyncIterator[tuple[Server, RedisTier, Asked]]:
    server = Server()
    tier = RedisTier(server.socket)
    if listening:
        await server.listen()
    tier.timeout_ns = 20_000_000
    try:
        yield server, tier, Asked(tier)
    finally:
        await tier.close()
        if listening:
            await server.close()
        else:
            server.directory.cleanup()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WATCHDOG_S):
            await body()

    uvloop.run(bounded())


def test_what_was_kept_is_found_and_the_look_ups_of_a_turn_go_together() -> None:
    async def body() -> None:
        async with meeting() as (server, tier, asked):
            tier.keep(b"a", b"an answer", 5000)
            await until(lambda: bool(server.values))
            assert server.commands == [[b"SET", PREFIX + b"a", b"an answer", b"PX", b"5000"]]
            assert all(asked.ask(key) for key in (b"a", b"b"))
            await asked.told(b"a", b"b")
            assert asked.found == {b"a": (b"an answer", True), b"b": (None, True)}
            assert server.connections == 1

    run(body)


def test_no_value_is_read_beyond_what_was_asked_for() -> None:
    async def body() -> None:
        async with meeting() as (server, _, asked):
            server.values[PREFIX + b"a"] = bytes(10_000)
            asked.ask(b"a")
            await asked.told(b"a")
            assert asked.found == {b"a": (bytes(100), True)}

    run(body)


def test_a_server_that_is_not_there_opens_the_circuit_until_it_is() -> None:
    async def body() -> None:
        async with meeting(listening=False) as (server, _, asked):
            assert asked.ask(b"a")
            await asked.told(b"a")
            assert asked.found == {b"a": (None, False)}
            assert not asked.ask(b"b")
            await server.listen()
            await until(lambda: asked.ask(b"b"))
            await asked.told(b"b")
            assert asked.found[b"b"] == (None, True)
            await server.close()

    run(body)


def test_a_hung_server_costs_one_timeout_and_is_asked_again_by_nobodys_request() -> None:
    async def body() -> None:
        async with meeting() as (server, _, asked):
            server.answering.clear()
            started_s = asyncio.get_running_loop().time()
            assert asked.ask(b"a")
            await asyncio.sleep(0)
            assert asked.ask(b"b"), "another turn, before the first has failed"
            await asked.told(b"a", b"b")
            assert asyncio.get_running_loop().time() - started_s < redis_tier.BACKOFF_MIN_S
            assert set(asked.found.values()) == {(None, False)}
            assert not asked.ask(b"c")
            server.commands.clear()
            await until(lambda: bool(server.commands))
            assert server.commands == [[b"PING"]]
            assert not asked.ask(b"c")
            server.answering.set()
            await until(lambda: asked.ask(b"c"))
            await asked.told(b"c")
            assert asked.found[b"c"] == (None, True)

    run(body)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"\0\0\0\0\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b":7\r\n",
        b"$-5\r\n",
        b"-WRONGTYPE no\r\n",
        b"*1\r\n:1\r\n",
    ],
)
def test_nonsense_is_no_value_and_raises_nothing(nonsense: bytes) -> None:
    async def body() -> None:
        async with meeting() as (server, _, asked):
            server.answer = lambda _words: nonsense
            asked.ask(b"a")
            await asked.told(b"a")
            assert asked.found[b"a"][0] is None

    run(body)


def test_more_look_ups_than_may_be_under_way_are_not_asked() -> None:
    async def body() -> None:
        async with meeting() as (server, tier, asked):
            tier.timeout_ns = 10**10
            server.answering.clear()
            assert [asked.ask(b"%d" % number) for number in range(BATCH_MAX + 1)] == [True] * BATCH_MAX + [False]
            for turn in range(LOOK_UPS_MAX - 1):
                await asyncio.sleep(0)
                assert asked.ask(b"turn %d" % turn)
            await asyncio.sleep(0)
            assert not asked.ask(b"one more")
            server.answering.set()
            await until(lambda: len(asked.found) == BATCH_MAX + LOOK_UPS_MAX - 1)
            assert asked.ask(b"one more")
            await asked.told(b"one more")

    run(body)


def test_what_finds_no_room_in_the_queue_is_not_kept() -> None:
    async def body() -> None:
        async with meeting() as (server, tier, _):
            for number in range(WRITES_MAX + 50):
                tier.keep(b"%d" % number, b"x", 1000)
            tier.keep(b"large", bytes(redis_tier.WRITES_BYTES_MAX), 1000)
            await until(lambda: len(server.values) == WRITES_MAX)
            tier.keep(b"last", b"x", 1000)
            await until(lambda: PREFIX + b"last" in server.values)
            assert len(server.values) == WRITES_MAX + 1

    run(body)


def test_what_waits_to_be_written_is_dropped_when_the_server_fails() -> None:
    async def body() -> None:
        async with meeting(listening=False) as (_, tier, _asked):
            for number in range(500):
                tier.keep(b"%d" % number, b"x", 1000)
            await until(lambda: not tier.look_up(b"", 1, lambda _value, _well: None))
            assert (len(tier._writes), tier._writes_bytes) == (0, 0)
            tier.keep(b"a", b"x", 1000)
            assert len(tier._writes) == 0

    run(body)
