"""Stream sockets on an epoll of their own, which the event loop watches as one descriptor.

A turn of the loop takes the sockets that are ready in one system call, receives straight into the readers' buffers, and
dispatches behind them. What is written is sent at once; only what a socket does not take is kept, and goes when epoll
says so. A transport of the loop for each socket would cost a callback for each read and each write.
"""

import select
import socket
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Final

EVENTS_PER_TURN: Final = 256
"""Sockets read in one turn of the loop: workers' answers and the supervisor wait as long. The others are ready again
in the next one, and the kernel hands out ready sockets in turn."""

WRITE_BUFFER_HIGH_BYTES: Final = 1024 * 1024
"""Bytes that wait for the peer before `pause_writing`."""

WRITE_BUFFER_LOW_BYTES: Final = WRITE_BUFFER_HIGH_BYTES // 4
"""Bytes that may still wait at `resume_writing`."""

ACCEPTS_PER_TURN: Final = 64
"""New connections taken in one turn of the loop."""

ACCEPT_AGAIN_S: Final = 0.1
"""When to accept again after the kernel refused: out of descriptors or memory."""

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
GONE: Final = select.EPOLLHUP | select.EPOLLERR


class Peer:
    """Who reads and writes a stream: what the stream calls."""

    __slots__ = ()

    def get_buffer(self) -> memoryview:
        """Where the next bytes belong. Never empty."""
        raise NotImplementedError

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes were received into it."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """The other end sends nothing more. True: we do; False: the stream closes when what is written is taken."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """More than WRITE_BUFFER_HIGH_BYTES wait for the other end."""
        raise NotImplementedError

    def resume_writing(self) -> None:
        """No more than WRITE_BUFFER_LOW_BYTES wait."""
        raise NotImplementedError

    def connection_lost(self) -> None:
        """The stream is over; nothing is called after this."""
        raise NotImplementedError


class Stream:
    """One socket. Nothing here calls the peer from within a call by the peer, but for `pause_writing`."""

    __slots__ = (
        "_closed",
        "_eof_wanted",
        "_paused_writing",
        "_peer",
        "_reading",
        "_receive_into",
        "_send_some",
        "_streams",
        "_unsent",
        "_unsent_bytes",
        "_watched",
        "closing",
        "sock",
    )

    def __init__(self, streams: "Streams", sock: socket.socket, peer: Peer) -> None:
        """Take the connected socket over; it is read from now on."""
        sock.setblocking(False)
        self.sock = sock
        self.closing = False
        """Nothing more is read, and nothing written but what waits; `connection_lost` is to come or has been."""
        self._receive_into, self._send_some = sock.recv_into, sock.send
        self._streams = streams
        self._peer = peer
        self._reading = True
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._paused_writing = False
        self._eof_wanted = False
        self._closed = False
        self._watched = 0
        streams.add(self, sock.fileno())
        self._watch()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────

    @property
    def is_reading(self) -> bool:
        """Whether what comes is received."""
        return self._reading

    def pause_reading(self) -> None:
        """Receive nothing more for now. Costs nothing if `resume_reading` comes before anything else does."""
        self._reading = False

    def resume_reading(self) -> None:
        """Receive again."""
        if not self.closing:
            self._reading = True
            self._watch()

    def _read(self) -> None:
        while self._reading:
            buffer = self._peer.get_buffer()
            try:
                nbytes = self._receive_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                self.abort()
                return
            if not nbytes:
                self._reading = False
                self._watch()
                if not self._peer.eof_received():
                    self.close()
                return
            self._peer.buffer_updated(nbytes)
            if nbytes < len(buffer):
                return

    # ── writing ─────────────────────────────────────────────────────────────────────────────────

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the other end."""
        return self._unsent_bytes

    def write(self, data: bytes) -> None:
        """Send this, now or as the other end takes it."""
        sent = 0
        if not self._unsent:
            try:
                sent = self._send_some(data)
            except BlockingIOError:
                pass
            except OSError:
                self.abort()
                return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._unsent_bytes += len(data) - sent
            self._watch()
            if self._unsent_bytes > WRITE_BUFFER_HIGH_BYTES and not self._paused_writing:
                self._paused_writing = True
                self._peer.pause_writing()

    def write_eof(self) -> None:
        """End our half of the stream behind what was written."""
        self._eof_wanted = True
        if not self._unsent:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def _send(self) -> None:
        """Send what waits."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self._send_some(unsent[0])
            except BlockingIOError:
                break
            except OSError:
                self.abort()
                return
            self._unsent_bytes -= sent
            if sent < len(unsent[0]):
                unsent[0] = unsent[0][sent:]
            else:
                unsent.popleft()
        if not unsent:
            self._watch()
            if self._eof_wanted:
                self._shut_down()
            if self.closing:
                self._end()
        if self._paused_writing and self._unsent_bytes <= WRITE_BUFFER_LOW_BYTES:
            self._paused_writing = False
            self._peer.resume_writing()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Read nothing more, and end the stream when what was written has been taken."""
        if not self.closing:
            self.closing = True
            self._reading = False
            self._watch()
            if not self._unsent:
                self._end()

    def abort(self) -> None:
        """End the stream at once."""
        self.closing = True
        self._reading = False
        self._unsent.clear()
        self._unsent_bytes = 0
        self._watch()
        self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._streams.loop.call_soon(self._lost)

    def _lost(self) -> None:
        self._streams.remove(self.sock.fileno())
        self._peer.connection_lost()
        self.sock.close()

    # ── epoll ───────────────────────────────────────────────────────────────────────────────────

    def ready(self, events: int) -> None:
        """Epoll has reported these."""
        if events & (IN | GONE):
            if self._reading:
                self._read()
            else:
                self._watch()
        if self._unsent and events & (OUT | GONE):
            self._send()

    def _watch(self) -> None:
        """Have epoll report what matters now. Nothing does: it would still report the end, again and again."""
        wanted = (IN if self._reading else 0) | (OUT if self._unsent else 0)
        if wanted != self._watched:
            self._streams.watch(self.sock.fileno(), self._watched, wanted)
            self._watched = wanted


class Streams:
    """All streams of an event loop, and the sockets on which new ones are accepted."""

    def __init__(self, loop: AbstractEventLoop, after_turn: Callable[[], None]) -> None:
        """`after_turn` is called when all that had come was read."""
        self.loop = loop
        self._after_turn = after_turn
        self._epoll = select.epoll()
        self._by_fd: dict[int, Stream] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Watch nothing any more; the streams are over."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _turn(self) -> None:
        by_fd = self._by_fd
        for fd, events in self._epoll.poll(0, EVENTS_PER_TURN):
            stream = by_fd[fd]
            try:
                stream.ready(events)
            except Exception as error:  # a bug, and the end of one connection
                stream.abort()
                self.loop.call_exception_handler({"message": "a connection failed", "exception": error})
        self._after_turn()

    def add(self, stream: Stream, fd: int) -> None:
        """A stream begins. Its descriptor stays open until `remove`, which is never called within a turn."""
        self._by_fd[fd] = stream

    def remove(self, fd: int) -> None:
        """A stream is over."""
        del self._by_fd[fd]

    def watch(self, fd: int, before: int, wanted: int) -> None:
        """Report these events of a stream, where `before` were reported; 0 for none."""
        if not before:
            self._epoll.register(fd, wanted)
        elif wanted:
            self._epoll.modify(fd, wanted)
        else:
            self._epoll.unregister(fd)

    def listen(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        """Hand over every connection that comes."""
        listener.setblocking(False)
        self.loop.add_reader(listener.fileno(), self._accept, listener, accepted)

    def ignore(self, listener: socket.socket) -> None:
        """Accept no more of its connections."""
        self.loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # full of descriptors: whoever waits here is not the one to lose its connection
                self.ignore(listener)
                self.loop.call_later(ACCEPT_AGAIN_S, self.listen, listener, accepted)
                return
            accepted(sock)
