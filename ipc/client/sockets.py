"""What the blocking and the asyncio client do with a socket: receive with descriptors, send in parts, wake a poll."""

import array
import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from typing import Final

from ..errors import ConnectionLost, TensordError, UnsupportedVersion
from .request import Buffer
from .session import ClientSession

ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)
"""Room for four file descriptors per read; the daemon sends one with each ATTACHED."""

CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
TRUNCATED: Final = int(socket.MSG_CTRUNC)
NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)
"""Flags of recvmsg and sendmsg as plain integers: an enumeration's own `&` costs a microsecond."""


def receive(connected: socket.socket, session: ClientSession) -> TensordError | None:
    """Receive once and feed the session; returns why the connection has to end, if it has to."""
    reader = session.reader
    try:
        nbytes, ancillary, flags, _ = connected.recvmsg_into([reader.get_buffer()], ANCILLARY_BYTES, CLOSE_ON_EXEC)
        if ancillary:
            session.descriptors_received(descriptors_in(ancillary))
        if flags & TRUNCATED:
            return ConnectionLost("file descriptors were lost: this process may open no more")
        if not nbytes:
            return ConnectionLost("the daemon closed it")
        reader.buffer_updated(nbytes)
        if ancillary:
            session.close_stray_descriptors()
    except BlockingIOError:
        pass
    except OSError as error:
        return ConnectionLost(error.strerror or str(error))
    except UnsupportedVersion as error:
        return error
    except TensordError as error:
        return ConnectionLost(f"the daemon's answer cannot be understood: {error}")
    return None


def descriptors_in(ancillary: "list[tuple[int, int, bytes]]") -> list[int]:
    """The file descriptors among ancillary data of recvmsg."""
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def unsent(buffers: Sequence[Buffer], sent: int) -> list[memoryview]:
    """What is left of `buffers` after their first `sent` bytes."""
    rest = []
    for buffer in buffers:
        if sent < len(buffer):
            rest.append(memoryview(buffer)[sent:])
        sent = max(0, sent - len(buffer))
    return rest


class Waker:
    """An eventfd by which any thread ends another's poll, at any time, also after it was closed."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Make a poll return, the one under way or the next."""
        with self._lock:  # a number that was closed may be somebody else's by now
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """The poll has returned."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def reset_after_fork(self) -> None:
        """In a forked child: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nobody polls any more."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1
