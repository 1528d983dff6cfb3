"""The blocking client: `with Client() as client: y = client.infer("digits", x)`."""

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TypeVar

from ..errors import ClientClosed, ConnectionLost, TensordError
from ..limits import CLIENT_TIMEOUT_S
from ..tensors import NO_SIZES
from ..wire import ModelEntry
from .arena import ARENA_BYTES, ArenaSlot
from .arrays import Inputs, Outputs
from .call import Call
from .connection import seconds_until
from .discovery import connect_socket, find_socket
from .flow import Flow, ask, handshake, lease, open_model, start
from .fork import reset_in_children
from .futures import InferFuture, WatchedConnection
from .model import Model
from .reconnect import RECONNECT_TIMEOUT_S, Backoff, ConnectFailure
from .request import ATTEMPTS_MAX, InferRequest, deadline_after, deadline_exceeded, hello_deadline
from .session import ClientSession
from .slot import LeasedSlot
from .statistics import ClientCounters, ClientStatistics

T = TypeVar("T")


class Client:
    """A connection to the daemon that any number of threads may share.

    It connects on first use, and again after the daemon was restarted; an inference whose answer was lost
    that way is sent again if its model is idempotent. A forked child gets a connection of its own.

    `path` is the daemon's socket; None looks at $TENSORD_SOCKET, then where services put it. `tenant`
    names whom quotas and shares are counted for. `arena_bytes` is the size of the shared memory that is
    asked for when a tensor is too large for the socket. `reconnect_timeout` is how many seconds a
    request waits for a daemon that was there before and is gone.
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
        self._connect_lock = threading.Lock()
        self._failure = ConnectFailure()
        self._connection: WatchedConnection | None = None
        self._connections: list[WatchedConnection] = []
        """The present one, and earlier ones that still have requests in flight."""

    # ── inference ───────────────────────────────────────────────────────────────────────────────

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> Outputs:
        """Run a model and return its output, or a dict of its outputs by name if there are several.

        `model` is a name, `name:version` or `name:label`. `inputs` is an array whose first dimension counts
        rows, or a dict of such arrays by name; a torch tensor gives torch tensors back. `timeout` is in
        seconds. `priority` is "high", "normal" or "low". Requests with the same `session` go to the
        same replica where the model's balance policy heeds it. With `latest` a request takes the place of the one of
        its session that still waits, which ends with Superseded: a camera wants no frame but the newest. Raises
        TensordError.
        """
        return self._infer(InferRequest(model, inputs, timeout, priority, session, latest))

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> InferFuture:
        """As `infer`, but return a future once the request is sent; any number share the connection.

        Errors of the inputs are raised here, those of the answer by `result()`. The inputs must stay as
        they are until then: after a lost connection they are sent again. Waits while the
        daemon takes no further request on this connection.
        """
        return self._submit(InferRequest(model, inputs, timeout, priority, session, latest))

    def lease(
        self,
        model: str,
        rows: int = 1,
        *,
        sizes: Mapping[str, int] = NO_SIZES,
        optional: Collection[str] = (),
        timeout: float = CLIENT_TIMEOUT_S,
    ) -> "Slot":
        """Memory shared with the daemon for one request of `rows` rows: written and read in place, never copied.

        `sizes` has the model's free dimensions by name; of its optional inputs the slot holds those that are named.
        Raises ArenaQuotaExceeded when all arenas are leased and the daemon allows no further one.
        """
        return Slot(self, model, self._run(lambda session: lease(session, model, rows, sizes, optional), timeout))

    # ── the daemon ──────────────────────────────────────────────────────────────────────────────

    def models(self, *, timeout: float = CLIENT_TIMEOUT_S) -> list[ModelEntry]:
        """Every model version that is served."""
        entries: list[ModelEntry] = self._run(lambda session: ask(*session.list_models()), timeout)
        return entries

    def model(self, name: str, *, timeout: float = CLIENT_TIMEOUT_S) -> Model:
        """What a model takes and gives, as the daemon says now. Raises UnknownModel."""
        return Model.of(self._run(lambda session: open_model(session, name), timeout).spec)

    def ping(self, *, timeout: float = CLIENT_TIMEOUT_S) -> float:
        """Seconds for a frame there and back."""
        self._connected(deadline_after(timeout))
        started_ns = time.monotonic_ns()
        self._run(lambda session: ask(*session.ping()), timeout)
        return (time.monotonic_ns() - started_ns) / 1e9

    def statistics(self) -> ClientStatistics:
        """Counts since the client was made."""
        connection = self._connection
        return self._counters.statistics(connection.session if connection is not None else None)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """End the connection; what has no answer yet ends with ClientClosed. Safe to call again."""
        self._closed = True
        with self._connect_lock:
            connections, self._connections = self._connections, []
            for connection in connections:
                connection.close(ClientClosed())
        for connection in connections:
            connection.watcher.join()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def reset_after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone and connect anew on next use."""
        for connection in self._connections:
            connection.close_after_fork()
        self._set_unconnected()

    # ── attempts ────────────────────────────────────────────────────────────────────────────────

    def _infer(self, request: InferRequest) -> Outputs:
        """All attempts of a request until its outcome."""
        counters = self._counters
        counters.add("requests")
        try:
            while True:
                try:
                    connection, call = self._start(request)
                    connection.wait_for(call, request.deadline_ns)
                    outputs = request.result(call)
                    break
                except TensordError as error:
                    self._check_retry(request, error)
                finally:
                    request.end_attempt()
        except BaseException:
            counters.add("errors")
            raise
        counters.add_answer(call)
        return outputs

    def _start(self, request: InferRequest) -> tuple[WatchedConnection, Call]:
        connection = self._connected(request.deadline_ns)
        return connection, connection.run(start(connection.session, request), request.deadline_ns)

    def _check_retry(self, request: InferRequest, error: TensordError) -> None:
        """Raises `error` unless the request is to be tried again."""
        if not request.may_retry(error, time.monotonic_ns()):
            raise error
        self._counters.add("resent")

    def _submit(self, request: InferRequest) -> InferFuture:
        self._counters.add("requests")
        future = InferFuture(request)
        try:
            self._launch(future)
        except BaseException:
            self._counters.add("errors")
            raise
        return future

    def _launch(self, future: InferFuture) -> None:
        """Send a future's request, on a new connection if need be, and have its answer watched for."""
        request = future.request
        while True:
            try:
                connection, call = self._start(request)
                break
            except TensordError as error:
                request.end_attempt()
                self._check_retry(request, error)
            except BaseException:
                request.end_attempt()
                raise
        future.attempted(connection, call)
        connection.watcher.watch(future, call)

    def _complete(self, future: InferFuture, call: Call) -> None:
        """A future's call is done: settle the future, or try again. Called by a connection's watcher."""
        if call.abandoned:  # cancelled or out of time, and settled then
            self._counters.add("errors")
            return
        request = future.request
        outcome: Outputs | Exception
        try:
            outcome = request.result(call)
            self._counters.add_answer(call)
        except TensordError as error:
            outcome = error
        request.end_attempt()
        if isinstance(outcome, TensordError):
            try:
                self._check_retry(request, outcome)
                self._launch(future)
                return
            except TensordError as error:
                outcome = error
            self._counters.add("errors")
        future.settle(outcome)

    # ── connecting ──────────────────────────────────────────────────────────────────────────────

    def _run(self, flow_of: Callable[[ClientSession], Flow[T]], timeout: float) -> T:
        """Run a flow that may be repeated, again where its connection ends."""
        deadline_ns = deadline_after(timeout)
        attempts = 0
        while True:
            connection = self._connected(deadline_ns)
            attempts += 1
            try:
                return connection.run(flow_of(connection.session), deadline_ns)
            except ConnectionLost:
                if attempts == ATTEMPTS_MAX:
                    raise

    def _connected(self, deadline_ns: int) -> WatchedConnection:
        """The present connection, or a new one. Raises DaemonNotFound, ClientClosed, DeadlineExceeded."""
        connection = self._connection
        if connection is not None and connection.session.usable:
            return connection
        since_ns = time.monotonic_ns()
        if not self._connect_lock.acquire(timeout=seconds_until(deadline_ns)):
            raise deadline_exceeded(deadline_ns)
        try:
            connection = self._connection
            if connection is None or not connection.session.usable:
                self._failure.check(since_ns)
                self._close_finished()
                connection = self._connection = self._connect(deadline_ns)
            return connection
        finally:
            self._connect_lock.release()

    def _connect(self, deadline_ns: int) -> WatchedConnection:
        """A new connection on which HELLO was answered."""
        backoff = Backoff(self._reconnect_timeout, reconnecting=self._connection is not None)
        while not self._closed:
            try:
                connection = self._connect_once(deadline_ns)
            except TensordError as error:
                time.sleep(backoff.pause_after(self._failure.note(error), seconds_until(deadline_ns)))
            else:
                self._connections.append(connection)
                self._counters.add("reconnects")
                return connection
        raise ClientClosed

    def _connect_once(self, deadline_ns: int) -> WatchedConnection:
        connection = WatchedConnection(connect_socket(find_socket(self._path)), self._arena_bytes, self._complete)
        try:
            connection.run(handshake(connection.session, self._tenant), hello_deadline(deadline_ns))
        except BaseException:
            connection.close(ConnectionLost("the daemon did not welcome it"))
            raise
        return connection

    def _close_finished(self) -> None:
        """Close connections that have ended, or will end, with nothing in flight."""
        for connection in list(self._connections):
            session = connection.session
            if not session.usable and not session.in_flight:
                self._connections.remove(connection)
                self._counters.add("unknown_replies", session.unknown_replies)
                connection.close(ConnectionLost("the daemon is closing it"))


class Slot(LeasedSlot):
    """A slot of the blocking client."""

    def __init__(self, client: Client, name: str, slot: ArenaSlot) -> None:
        super().__init__(name, slot)
        self._client = client

    def infer(
        self,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> Outputs:
        """Run the model on what was written into `inputs`; returns views of the outputs, an array or a dict by name.

        Raises ConnectionLost when the slot's connection has ended, and SlotInUse while an earlier request
        in the slot has no answer.
        """
        return self._client._infer(self._request(timeout, priority, session, latest))

    def submit(
        self,
        *,
        timeout: float = CLIENT_TIMEOUT_S,
        priority: str | int = "normal",
        session: int | str | bytes | None = None,
        latest: bool = False,
    ) -> InferFuture:
        """As `infer`, but return a future; until it is done neither inputs nor outputs may be touched."""
        return self._client._submit(self._request(timeout, priority, session, latest))

    def __enter__(self) -> "Slot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
