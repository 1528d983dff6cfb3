"""The asyncio client: `async with AsyncClient() as client: y = await client.infer("digits", x)`."""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Generator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from ..errors import ClientClosed, ConnectionLost, TensordError
from ..limits import CLIENT_TIMEOUT_S
from ..tensors import NO_SIZES
from ..wire import ModelEntry
from .aio_connection import AsyncConnection
from .arena import ARENA_BYTES, ArenaSlot
from .arrays import Inputs, Outputs
from .call import Call
from .connection import seconds_until
from .discovery import connect_socket, find_socket
from .flow import Flow, ask, handshake, lease, open_model, start
from .fork import reset_in_children
from .model import Model
from .reconnect import RECONNECT_TIMEOUT_S, Backoff, ConnectFailure
from .request import ATTEMPTS_MAX, InferRequest, deadline_after, deadline_exceeded, hello_deadline
from .session import ClientSession
from .slot import LeasedSlot
from .statistics import ClientCounters, ClientStatistics

T = TypeVar("T")


class AsyncClient:
    """A connection to the daemon that any number of tasks of one event loop share; any loop will do.

    Its arguments and behaviour are those of `Client`. Cancelling a task that waits for an answer
    cancels the inference.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        tenant: str = "",
        arena_bytes: int = ARENA_BYTES,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
    ) -> None:
        self._path = path
        self._tenant = tenant
        self._arena_bytes = arena_bytes
        self._reconnect_timeout = reconnect_timeout
        self._closed = False
        self._set_unconnected()
        reset_in_children(self)

    def _set_unconnected(self) -> None:
        self._counters = ClientCounters()
        self._connection: AsyncConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connect_lock = asyncio.Lock()
        self._failure = ConnectFailure()
        self._connections: list[AsyncConnection] = []
        """The present one, and earlier ones that still have requests in flight."""

    # ── inference ───────────────────────────────────────────────────────────────────────────────

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> Outputs:
        """Run a model and return its output, or a dict of its outputs by name; see `Client.infer`."""
        return await self._infer(InferRequest(model, inputs, timeout, priority, session, latest))

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> asyncio.Task[Outputs]:
        """As `infer`, in a task of its own: await it for the outputs, cancel it to give the inference up."""
        return asyncio.ensure_future(self._infer(InferRequest(model, inputs, timeout, priority, session, latest)))

    def lease(
        self,
        model: str,
        rows: int = 1,
        *,
        sizes: Mapping[str, int] = NO_SIZES,
        optional: Collection[str] = (),
        timeout: float = CLIENT_TIMEOUT_S,
    ) -> "Lease":
        """`async with client.lease("digits", rows=8) as slot`: memory shared with the daemon; see `Client.lease`."""
        return Lease(self, lambda session: lease(session, model, rows, sizes, optional), model, timeout)

    # ── the daemon ──────────────────────────────────────────────────────────────────────────────

    async def models(self, *, timeout: float = CLIENT_TIMEOUT_S) -> list[ModelEntry]:
        """Every model version that is served."""
        entries: list[ModelEntry] = await self._run(lambda session: ask(*session.list_models()), timeout)
        return entries

    async def model(self, name: str, *, timeout: float = CLIENT_TIMEOUT_S) -> Model:
        """What a model takes and gives, as the daemon says now. Raises UnknownModel."""
        opened = await self._run(lambda session: open_model(session, name), timeout)
        return Model.of(opened.spec)

    async def ping(self, *, timeout: float = CLIENT_TIMEOUT_S) -> float:
        """Seconds for a frame there and back."""
        await self._connected(deadline_after(timeout))
        started_ns = time.monotonic_ns()
        await self._run(lambda session: ask(*session.ping()), timeout)
        return (time.monotonic_ns() - started_ns) / 1e9

    def statistics(self) -> ClientStatistics:
        """Counts since the client was made."""
        connection = self._connection
        return self._counters.statistics(connection.session if connection is not None else None)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    async def close(self) -> None:
        """End the connection; what has no answer yet ends with ClientClosed. Safe to call again."""
        self._closed = True
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.close(ClientClosed())

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def reset_after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone and connect anew on next use."""
        for connection in self._connections:
            connection.close_after_fork()
        self._set_unconnected()

    # ── attempts ────────────────────────────────────────────────────────────────────────────────

    async def _infer(self, request: InferRequest) -> Outputs:
        """All attempts of a request until its outcome."""
        counters = self._counters
        counters.add("requests")
        try:
            while True:
                try:
                    call, outputs = await self._attempt(request)
                    break
                except TensordError as error:
                    if not request.may_retry(error, time.monotonic_ns()):
                        raise
                    counters.add("resent")
                finally:
                    request.end_attempt()
        except BaseException:
            counters.add("errors")
            raise
        counters.add_answer(call)
        return outputs

    async def _attempt(self, request: InferRequest) -> tuple[Call, Outputs]:
        connection = await self._connected(request.deadline_ns)
        call = await connection.run(start(connection.session, request), request.deadline_ns)
        await connection.wait_for(call, request.deadline_ns)
        return call, request.result(call)

    # ── connecting ──────────────────────────────────────────────────────────────────────────────

    async def _run(self, flow_of: Callable[[ClientSession], Flow[T]], timeout: float) -> T:
        """Run a flow that may be repeated, again where its connection ends."""
        deadline_ns = deadline_after(timeout)
        attempts = 0
        while True:
            connection = await self._connected(deadline_ns)
            attempts += 1
            try:
                return await connection.run(flow_of(connection.session), deadline_ns)
            except ConnectionLost:
                if attempts == ATTEMPTS_MAX:
                    raise

    async def _connected(self, deadline_ns: int) -> AsyncConnection:
        """The present connection, or a new one. Raises DaemonNotFound, ClientClosed, DeadlineExceeded."""
        connection = self._connection
        loop = asyncio.get_running_loop()
        if connection is not None and connection.session.usable and connection.loop is loop:
            return connection
        if loop is not self._loop:
            self._loop, self._connect_lock = loop, asyncio.Lock()
        since_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(seconds_until(deadline_ns)):
                await self._connect_lock.acquire()
        except TimeoutError:
            raise deadline_exceeded(deadline_ns) from None
        try:
            connection = self._connection
            if connection is None or not connection.session.usable or connection.loop is not loop:
                self._failure.check(since_ns)
                self._close_finished(loop)
                connection = self._connection = await self._connect(deadline_ns)
            return connection
        finally:
            self._connect_lock.release()

    async def _connect(self, deadline_ns: int) -> AsyncConnection:
        """A new connection on which HELLO was answered."""
        backoff = Backoff(self._reconnect_timeout, reconnecting=self._connection is not None)
        while not self._closed:
            try:
                connection = await self._connect_once(deadline_ns)
            except TensordError as error:
                pause_s = backoff.pause_after(self._failure.note(error), seconds_until(deadline_ns))
                await asyncio.sleep(pause_s)
            else:
                self._connections.append(connection)
                self._counters.add("reconnects")
                return connection
        raise ClientClosed

    async def _connect_once(self, deadline_ns: int) -> AsyncConnection:
        connection = AsyncConnection(connect_socket(find_socket(self._path)), self._arena_bytes)
        try:
            await connection.run(handshake(connection.session, self._tenant), hello_deadline(deadline_ns))
            if self._closed:
                raise ClientClosed
        except BaseException:
            connection.close(ConnectionLost("the daemon did not welcome it"))
            raise
        return connection

    def _close_finished(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections of earlier loops, and those that have ended, or will end, with nothing in flight."""
        for connection in list(self._connections):
            session = connection.session
            if connection.loop is not loop or (not session.usable and not session.in_flight):
                self._connections.remove(connection)
                self._counters.add("unknown_replies", session.unknown_replies)
                connection.close(ConnectionLost("the daemon is closing it"))


class AsyncSlot(LeasedSlot):
    """A slot of the asyncio client."""

    def __init__(self, client: AsyncClient, name: str, slot: ArenaSlot) -> None:
        super().__init__(name, slot)
        self._client = client

    async def infer(
        self,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> Outputs:
        """Run the model on what was written into `inputs`; returns views of the outputs; see `Slot.infer`."""
        return await self._client._infer(self._request(timeout, priority, session, latest))

    def submit(
        self,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> asyncio.Task[Outputs]:
        """As `infer`, in a task of its own; until it is done neither inputs nor outputs may be touched."""
        return asyncio.ensure_future(self._client._infer(self._request(timeout, priority, session, latest)))


class Lease:
    """What `AsyncClient.lease` returns: `async with` leases the slot and gives it back; `await` only leases it."""

    def __init__(
        self, client: AsyncClient, flow_of: Callable[[ClientSession], Flow[ArenaSlot]], name: str, timeout: float
    ) -> None:
        self._client = client
        self._flow_of = flow_of
        self._name = name
        self._timeout = timeout
        self._slot: AsyncSlot | None = None

    async def _open(self) -> AsyncSlot:
        slot = await self._client._run(self._flow_of, self._timeout)
        return AsyncSlot(self._client, self._name, slot)

    def __await__(self) -> Generator[Any, None, AsyncSlot]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSlot:
        self._slot = await self._open()
        return self._slot

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._slot is not None:
            self._slot.release()
