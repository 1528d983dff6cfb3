"""Futures of the blocking client, and the thread that waits for them."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .arrays import Outputs
from .call import Call, Ticket
from .connection import Connection
from .request import GRACE_NS, InferRequest, deadline_exceeded

LINGER_S: Final = 1.0
"""How long the thread waits for another future before it ends; the next one starts it again."""


class InferFuture(concurrent.futures.Future[Outputs]):
    """The outputs of an inference under way."""

    def __init__(self, request: InferRequest) -> None:
        super().__init__()
        self.request = request
        self._attempt: tuple[Connection, Call] | None = None

    def cancel(self) -> bool:
        """Give up an inference that has no answer yet; the daemon is told. False if it has one."""
        if not super().cancel():
            return False
        if self._attempt is not None:
            self._abandon(*self._attempt)
        return True

    def attempted(self, connection: Connection, call: Call) -> None:
        """The request was sent (again)."""
        self._attempt = (connection, call)
        if self.cancelled():  # between two attempts, or while this one was sent
            self._abandon(connection, call)

    def settle(self, outcome: Outputs | Exception) -> bool:
        """Set the result or exception; False if the future was cancelled before."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if isinstance(outcome, Exception):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
            return True
        return False

    def _abandon(self, connection: Connection, call: Call) -> None:
        connection.abandon(call)
        self.request.end_attempt()


class WatchedConnection(Connection):
    """A connection that completes futures, too."""

    def __init__(
        self, connected: socket.socket, arena_bytes: int, complete: Callable[[InferFuture, Call], None]
    ) -> None:
        super().__init__(connected, arena_bytes)
        self.watcher = FutureWatcher(self, complete)


class FutureWatcher:
    """Waits, in a thread of its own while there are any, for the answers of one connection's futures.

    `complete` is called in that thread, without any lock, and so are the callbacks of the futures: a
    callback may use the client, except that waiting for another future in it waits for ever.
    """

    def __init__(self, connection: Connection, complete: Callable[[InferFuture, Call], None]) -> None:
        self._connection = connection
        self._complete = complete
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._outstanding: dict[Call, InferFuture] = {}
        self._finished: deque[tuple[InferFuture, Call]] = deque()
        self._ticket = Ticket()

    def watch(self, future: InferFuture, call: Call) -> None:
        """Complete this future when its call is done, also if it is done already."""
        with self._lock:
            self._outstanding[call] = future
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tensord-futures", daemon=True)
                self._thread.start()
        call.hook = lambda: self._answered(call)
        if call.done:
            self._answered(call)
        self._idle.set()

    def join(self) -> None:
        """After the connection's end: wait until every future is complete."""
        thread = self._thread
        self._idle.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _answered(self, call: Call) -> None:
        future = self._outstanding.pop(call, None)
        if future is not None:
            self._finished.append((future, call))
            self._ticket.finish()

    def _run(self) -> None:
        while True:
            self._ticket = Ticket()
            self._idle.clear()
            while self._finished:
                self._complete(*self._finished.popleft())
            if self._outstanding:
                self._wait()
            elif not self._idle.wait(self._linger_s()) and self._ended():
                return

    def _linger_s(self) -> float:
        return LINGER_S if self._connection.session.usable else 0.0

    def _ended(self) -> bool:
        """Whether the thread ends now; the next `watch` will then start another."""
        with self._lock:
            if self._outstanding or self._finished:
                return False
            self._thread = None
            return True

    def _wait(self) -> None:
        """Read, or wait for who reads, until a future is finished; now and then look at the deadlines."""
        self._connection.wait(self._ticket, time.monotonic_ns() + GRACE_NS)
        now_ns = time.monotonic_ns()
        # A copy, no list of items: each new tuple may start the garbage collector, and that lets other threads in.
        for call, future in self._outstanding.copy().items():
            deadline_ns = future.request.deadline_ns
            if now_ns > deadline_ns + GRACE_NS and not call.abandoned:
                self._connection.abandon(call)  # and stay until its final frame, which gives the slot back
                future.request.end_attempt()
                future.settle(deadline_exceeded(deadline_ns))
