"""One connection of the asyncio client: a session on a socket of its own, read and written by loop callbacks.

Not a transport of the loop: those read with plain recv, which loses the file descriptors of arenas.
"""

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar

from ..errors import ConnectionLost, TensordError
from ..wire import FrameType, frame
from .call import Call, Ticket
from .flow import Flow, Send
from .request import GRACE_NS, Buffer, deadline_exceeded
from .session import ClientSession
from .sockets import NO_SIGNAL, receive, unsent

BUFFERS_MAX: Final = 512
"""Buffers in one sendmsg; the kernel takes 1,024 (IOV_MAX)."""

T = TypeVar("T")


class AsyncConnection:
    """A connected, non-blocking socket and its session. Belongs to one event loop."""

    def __init__(self, connected: socket.socket, arena_bytes: int) -> None:
        self.session = ClientSession(arena_bytes)
        self.loop = asyncio.get_running_loop()
        self._socket = connected
        self._fd = connected.fileno()
        self._outgoing: deque[memoryview] = deque()
        """What the socket did not take yet, oldest first."""
        self.loop.add_reader(self._fd, self._read)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────

    async def run(self, flow: Flow[T], deadline_ns: int) -> T:
        """Do what a flow asks for until it returns. Raises DeadlineExceeded, ConnectionLost, the flow's errors."""
        error: BaseException | None = None
        try:
            while True:
                step = next(flow) if error is None else flow.throw(error)
                error = None
                try:
                    if type(step) is Send:
                        self._send(step)
                    else:
                        assert isinstance(step, Ticket)
                        await self.wait_for(step, deadline_ns)
                except BaseException as raised:
                    error = raised
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def wait_for(self, ticket: Ticket, deadline_ns: int) -> None:
        """Wait until the ticket is done. Raises DeadlineExceeded shortly after the deadline.

        A call that is not waited for until its end, for whatever reason, is abandoned.
        """
        try:
            if not ticket.done:
                await self._wait(ticket, deadline_ns + GRACE_NS)
            if not ticket.done:
                raise deadline_exceeded(deadline_ns)
        except BaseException:
            if isinstance(ticket, Call):
                self._abandon(ticket)
            raise

    async def _wait(self, ticket: Ticket, until_ns: int) -> None:
        told = self.loop.create_future()

        def tell() -> None:
            if not told.done():
                told.set_result(None)

        ticket.hook = tell
        timer = self.loop.call_later(max(0, until_ns - time.monotonic_ns()) / 1e9, tell)
        try:
            await told
        finally:
            timer.cancel()

    def _abandon(self, call: Call) -> None:
        """Nobody waits for this call any more: tell the daemon."""
        cancel = self.session.abandon(call)
        if cancel and call.expects is FrameType.RESULT and self.session.end_error is None:
            self._write([cancel])

    # ── reading and writing ─────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        """The socket is readable."""
        error = receive(self._socket, self.session)
        if error is not None:
            self.close(error)

    def _send(self, step: Send) -> None:
        """Send a call's frame, now or when the socket takes more. Raises ConnectionLost."""
        try:
            if self.session.end_error is not None:
                raise ConnectionLost("it ended before the request was sent")
            self._write(step.buffers)
        except BaseException:
            self.session.forget(step.call)
            raise

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if self._outgoing:
            self._outgoing.extend(unsent(buffers, 0))
            return
        rest = unsent(buffers, self._send_some(buffers))
        if rest:
            self._outgoing.extend(rest)
            self.loop.add_writer(self._fd, self._flush)

    def _flush(self) -> None:
        """The socket is writable again."""
        try:
            batch = list(self._outgoing)[:BUFFERS_MAX]
            rest = unsent(batch, self._send_some(batch))
        except ConnectionLost:
            self._outgoing.clear()
            self.loop.remove_writer(self._fd)  # the reader will come to the end
            return
        for _ in batch:
            self._outgoing.popleft()
        self._outgoing.extendleft(reversed(rest))
        if not self._outgoing:
            self.loop.remove_writer(self._fd)

    def _send_some(self, buffers: Sequence[Buffer]) -> int:
        """Bytes that the socket took. Raises ConnectionLost; what was answered before can then still be read."""
        try:
            return self._socket.sendmsg(buffers, (), NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.session.closing = True
            raise ConnectionLost(f"it cannot be written to: {error.strerror}") from error

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def close(self, error: TensordError) -> None:
        """End: every call without an answer gets `error`. Safe to call again, and after the loop was closed."""
        if self._socket.fileno() < 0:
            return
        if self.session.end_error is None and not self._outgoing:
            with contextlib.suppress(OSError):
                self._socket.sendmsg([frame(FrameType.CLOSE, 0)], (), NO_SIGNAL)
        if not self.loop.is_closed():
            self.loop.remove_reader(self._fd)
            self.loop.remove_writer(self._fd)
            self.session.end(error)
        else:
            self.session.forget_all(error)
        self._outgoing.clear()
        self._socket.close()

    def close_after_fork(self) -> None:
        """In a child process: close the descriptor and nothing else; connection and loop are the parent's."""
        self._socket.close()
        self.session.forget_all(ConnectionLost("it belongs to the parent process"))
