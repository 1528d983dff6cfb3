"""One connection of the blocking client: a session on a socket that many threads share.

Theory
------
There is no thread that reads: whoever waits for an answer reads the socket while nobody else does
(the *leader*), for everybody; the others wait to be told (the *followers*). So a lone caller pays one
send, one poll and one receive, and no change of threads.

    leader     holds `_role`; polls, receives, feeds the session, which finishes calls and wakes their
               followers; with its own answer it releases `_role` and wakes any one follower
    follower   has entered its event in `_followers`, *then* found `_role` held; waits for the event

That order makes the hand-over safe: a leader releases first and looks for followers afterwards, so
either it sees the follower or the follower gets the role. A follower that leaves for another reason
(answered, out of time) passes the baton on if nobody holds the role.

A sender that finds the socket full reads while it waits, unless somebody else reads: the daemon may be
waiting for us to do so. Bytes that were received must be fed and a frame that was begun must be
finished; an exception in between (Ctrl-C) therefore ends the connection, one while waiting does not.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final, TypeVar

from ..errors import ConnectionLost, TensordError
from ..wire import FrameType, frame
from .call import Call, RoomTicket, Ticket
from .flow import Flow, Send
from .request import GRACE_NS, Buffer, deadline_exceeded
from .session import ClientSession
from .sockets import NO_SIGNAL, Waker, receive, unsent

FULL_POLL_MS: Final = 20
"""How often a sender that found the socket full looks whether the one who read has stopped reading."""

T = TypeVar("T")


class Connection:
    """A connected, non-blocking socket and its session. Safe in threads."""

    def __init__(self, connected: socket.socket, arena_bytes: int) -> None:
        self.session = ClientSession(arena_bytes)
        self._socket = connected
        self._fd = connected.fileno()
        self._waker: Waker | None = None
        """For a leader whose ticket was finished by another thread; made when there is one."""
        self._role = threading.Lock()
        self._send_lock = threading.Lock()
        self._followers: dict[Ticket, threading.Event] = {}
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(connected, select.POLLOUT)
        self._either = select.poll()
        self._either.register(connected, select.POLLIN | select.POLLOUT)

    # ── waiting and reading ─────────────────────────────────────────────────────────────────────

    def run(self, flow: Flow[T], deadline_ns: int) -> T:
        """Do what a flow asks for until it returns. Raises DeadlineExceeded, ConnectionLost, the flow's errors."""
        error: BaseException | None = None
        try:
            while True:
                step = next(flow) if error is None else flow.throw(error)
                error = None
                try:
                    if type(step) is Send:
                        self.send(step, deadline_ns)
                    else:
                        assert isinstance(step, Ticket)
                        self.wait_for(step, deadline_ns)
                except BaseException as raised:
                    error = raised
        except StopIteration as stop:
            result: T = stop.value
            return result

    def wait_for(self, ticket: Ticket, deadline_ns: int) -> None:
        """Wait until the ticket is done. Raises DeadlineExceeded shortly after the deadline.

        A call that is not waited for until its end, for whatever reason, is abandoned.
        """
        try:
            self.wait(ticket, deadline_ns + GRACE_NS)
            if not ticket.done:
                raise self.session.error_of_end() if self.session.end_error else deadline_exceeded(deadline_ns)
        except BaseException:
            if isinstance(ticket, Call):
                self.abandon(ticket)
            raise

    def wait(self, ticket: Ticket, until_ns: int) -> None:
        """Lead or follow until the ticket is done, CLOCK_MONOTONIC is `until_ns`, or the connection has ended."""
        while not ticket.done and self.session.end_error is None:
            if self._role.acquire(blocking=False):
                self._lead(ticket, until_ns)
            else:
                self._follow(ticket, until_ns)
            if time.monotonic_ns() >= until_ns:
                return

    def _lead(self, ticket: Ticket, until_ns: int) -> None:
        """Read for everybody. The caller has acquired the role; it is released here."""
        try:
            if type(ticket) is RoomTicket:
                ticket.hook = self._leaders_waker().wake
            while not ticket.done and self.session.end_error is None:
                left_ns = until_ns - time.monotonic_ns()
                if left_ns <= 0:
                    return
                for fd, _ in self._readable.poll(left_ns / 1e6):
                    if fd == self._fd:
                        self._read()
                    elif self._waker is not None:
                        self._waker.clear()
        finally:
            self._release_role()

    def _leaders_waker(self) -> "Waker":
        if self._waker is None:
            self._waker = Waker()
            self._readable.register(self._waker.fd, select.POLLIN)
        return self._waker

    def _follow(self, ticket: Ticket, until_ns: int) -> None:
        """Wait for the ticket, or for the role to be free."""
        told = threading.Event()
        self._followers[ticket] = told
        ticket.hook = told.set
        try:
            if not ticket.done and self._role.locked():
                told.wait(max(0, until_ns - time.monotonic_ns()) / 1e9)
        finally:
            self._followers.pop(ticket, None)
            if not self._role.locked():
                self._wake_follower()

    def _release_role(self) -> None:
        self._role.release()
        if self._followers:
            self._wake_follower()

    def _wake_follower(self) -> None:
        """Have somebody look whether the role is free."""
        for told in list(self._followers.values()):
            told.set()
            return

    def _read(self) -> None:
        """Receive once. The caller has the role, and the socket is readable."""
        try:
            error = receive(self._socket, self.session)
        except BaseException:
            self.end(ConnectionLost("interrupted while an answer was being read"))
            raise
        if error is not None:
            self.end(error)

    # ── sending ─────────────────────────────────────────────────────────────────────────────────

    def send(self, step: Send, deadline_ns: int) -> None:
        """Send a call's frame. Raises ConnectionLost or DeadlineExceeded: then the daemon has not seen all of it."""
        try:
            if not self._send_lock.acquire(timeout=seconds_until(deadline_ns + GRACE_NS)):
                raise deadline_exceeded(deadline_ns)
            try:
                self._send_whole(step.buffers, step.nbytes, deadline_ns)
            except TensordError:
                raise
            except BaseException:
                self.end(ConnectionLost("interrupted while a request was being sent"))
                raise
            finally:
                self._send_lock.release()
        except BaseException:
            self.session.forget(step.call)
            raise

    def abandon(self, call: Call) -> None:
        """Nobody waits for this call any more: tell the daemon, if it can be told at once."""
        cancel = self.session.abandon(call)
        if cancel and call.expects is FrameType.RESULT:
            self._send_courtesy(cancel)

    def _send_courtesy(self, head: bytes) -> None:
        """Send a short frame that nothing depends on."""
        if self._send_lock.acquire(timeout=GRACE_NS / 1e9):
            try:
                if self.session.end_error is None:
                    with contextlib.suppress(ConnectionLost):
                        self._send_some([head])
            finally:
                self._send_lock.release()

    def _send_whole(self, buffers: Sequence[Buffer], nbytes: int, deadline_ns: int) -> None:
        """One frame, whole; otherwise, if it was begun, the connection has ended."""
        if self.session.end_error is not None:
            raise ConnectionLost("it ended before the request was sent")
        sent = self._send_some(buffers)
        while sent < nbytes:
            if time.monotonic_ns() > deadline_ns + GRACE_NS:
                if sent:
                    self.end(ConnectionLost("the daemon stopped reading in the middle of a request"))
                raise deadline_exceeded(deadline_ns)
            self._wait_writable()
            if self.session.end_error is not None:
                raise ConnectionLost("it ended while the request was being sent")
            sent += self._send_some(unsent(buffers, sent))

    def _send_some(self, buffers: Sequence[Buffer]) -> int:
        """Bytes that the socket took. Raises ConnectionLost; what was answered before can then still be read."""
        try:
            return self._socket.sendmsg(buffers, (), NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.session.closing = True
            raise ConnectionLost(f"it cannot be written to: {error.strerror}") from error

    def _wait_writable(self) -> None:
        """Wait a moment for the socket to take more; read meanwhile, unless somebody else does."""
        if not self._role.acquire(blocking=False):
            self._writable.poll(FULL_POLL_MS)
            return
        try:
            for _, events in self._either.poll(FULL_POLL_MS):
                if events & ~select.POLLOUT:
                    self._read()
        finally:
            self._release_role()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def end(self, error: TensordError) -> None:
        """Every call without an answer gets `error`; whoever polls the socket returns. Safe to call again."""
        self.session.end(error)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, error: TensordError) -> None:
        """End, say so to the daemon, and close the socket when no thread uses it any more."""
        self._send_courtesy(frame(FrameType.CLOSE, 0))
        self.end(error)
        with self._role, self._send_lock:
            self._close_descriptors()

    def close_after_fork(self) -> None:
        """In a child process: close the descriptors and nothing else; the connection is the parent's."""
        if self._waker is not None:
            self._waker.reset_after_fork()
        self._close_descriptors()
        self.session.forget_all(ConnectionLost("it belongs to the parent process"))

    def _close_descriptors(self) -> None:
        self._socket.close()
        if self._waker is not None:
            self._waker.close()


def seconds_until(deadline_ns: int) -> float:
    """From now to a deadline, not negative."""
    return max(0, deadline_ns - time.monotonic_ns()) / 1e9
