"""The second tier: a Redis server on a Unix socket, shared by daemons and older than any of them.

It is never trusted with a request. All look-ups of a turn go out together and are given up after `timeout_ns`; the
first failure opens the circuit: nothing is asked or kept until the server has answered a PING, so that a hung server
costs one time-out and not one per request. Writing waits for nobody, and what finds no room in its queue is dropped.

This module imports redis, so only a front end that was given a socket imports this module.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...log import get_logger
from .response_cache import Found

PREFIX: Final = b"tensord:answer:"

LOOK_UPS_MAX: Final = 8
"""Round trips with look-ups at once; who comes then is computed."""
BATCH_MAX: Final = 128
"""Keys of one round trip."""
WRITES_MAX: Final = 1024
WRITES_BYTES_MAX: Final = 8 * 1024**2
"""What waits to be written; more is dropped."""
WRITE_TIMEOUT_S: Final = 1.0
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
"""From a failure to the next PING; the pause doubles while failures follow one another."""
STEADY_S: Final = 30.0
"""After so long without a failure the pause is short again."""

LookUp = tuple[bytes, int, Found]


class RedisTier:
    """A SecondTier. To be made and used on a running event loop."""

    def __init__(self, socket: Path) -> None:
        self.timeout_ns = 5_000_000
        """How long a look-up may take."""
        self._socket = socket
        self._redis = Redis(
            unix_socket_path=str(socket),
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,  # nothing is said before the first command
        )
        self._loop = asyncio.get_running_loop()
        self._wanted: list[LookUp] = []
        """Look-ups of this turn."""
        self._look_ups = 0
        self._writes: deque[tuple[bytes, bytes, int]] = deque()
        self._writes_bytes = 0
        self._writing = False
        self.failing = False
        """The circuit is open: the server failed, and has not answered since."""
        self._backoff_s = BACKOFF_MIN_S
        self._recovered_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger()

    # ── SecondTier ──────────────────────────────────────────────────────────────────────────────

    def look_up(self, key: bytes, bytes_max: int, found: Found) -> bool:
        """See SecondTier."""
        if self.failing or self._look_ups >= LOOK_UPS_MAX or len(self._wanted) >= BATCH_MAX:
            return False
        if not self._wanted:
            self._loop.call_soon(self._ask)
        self._wanted.append((key, bytes_max, found))
        return True

    def keep(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        """See SecondTier."""
        too_much = len(self._writes) >= WRITES_MAX or self._writes_bytes + len(value) > WRITES_BYTES_MAX
        if self.failing or too_much:
            return
        self._writes.append((key, value, ttl_ms))
        self._writes_bytes += len(value)
        if not self._writing:
            self._writing = True
            self._start(self._write())

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    # ── the server ──────────────────────────────────────────────────────────────────────────────

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ask(self) -> None:
        wanted, self._wanted = self._wanted, []
        self._look_ups += 1
        self._start(self._look_up(wanted))

    async def _look_up(self, wanted: Sequence[LookUp]) -> None:
        """Whatever happens, each is told."""
        values: Sequence[Any] = ()
        try:
            async with asyncio.timeout(self.timeout_ns / 1e9):
                pipeline = self._redis.pipeline(transaction=False)
                for key, bytes_max, _ in wanted:  # GETRANGE and not GET: nobody can make us read a gigabyte
                    pipeline.getrange(PREFIX + key, 0, bytes_max - 1)
                values = await pipeline.execute(raise_on_error=False)
        except Exception as error:
            self._failed(error)
        finally:
            self._look_ups -= 1
            well = len(values) == len(wanted)
            for (_, _, found), value in zip(wanted, values if well else [None] * len(wanted), strict=True):
                found(value if isinstance(value, bytes) and value else None, well)

    async def _write(self) -> None:
        try:
            while self._writes:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    pipeline = self._redis.pipeline(transaction=False)
                    for _ in range(min(BATCH_MAX, len(self._writes))):
                        key, value, ttl_ms = self._writes.popleft()
                        self._writes_bytes -= len(value)
                        pipeline.set(PREFIX + key, value, px=ttl_ms)
                    await pipeline.execute()
        except Exception as error:
            self._failed(error)
        finally:
            self._writing = False

    def _failed(self, error: Exception) -> None:
        """Open the circuit, whatever the library made of what the server did."""
        self._writes.clear()
        self._writes_bytes = 0
        if self.failing:
            return
        self.failing = True
        steady = self._loop.time() - self._recovered_s > STEADY_S
        self._backoff_s = BACKOFF_MIN_S if steady else min(2 * self._backoff_s, BACKOFF_MAX_S)
        reason = str(error) or type(error).__name__
        self._log.warning("the cache's second tier failed", socket=str(self._socket), reason=reason)
        self._start(self._recover())

    async def _recover(self) -> None:
        """Ask until it answers; no request waits for this."""
        while self.failing:
            await asyncio.sleep(self._backoff_s)
            try:
                async with asyncio.timeout(self.timeout_ns / 1e9):
                    await self._redis.ping()
                self.failing = False
            except Exception:
                self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
        self._recovered_s = self._loop.time()
        self._log.info("the cache's second tier answers again", socket=str(self._socket))
