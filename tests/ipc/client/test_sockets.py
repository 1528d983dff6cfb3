"""Receiving with descriptors, sending in parts, and waking a poll: on real sockets."""

import array
import errno
import fcntl
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensord.ipc.client.session import ClientSession
from tensord.ipc.client.sockets import Waker, descriptors_in, receive, unsent
from tensord.ipc.errors import ConnectionLost, UnsupportedVersion
from tensord.ipc.wire import HEADER, FrameType, Welcome, encode_arena, frame

pytestmark = pytest.mark.timeout(30)

WATCHDOG_MS = 20_000


class Ends:
    """A client's socket with its session, and the daemon's end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.session = ClientSession()

    def receive(self) -> None:
        """Receive once, and find no reason to end."""
        assert receive(self.ours, self.session) is None

    def lost(self) -> str:
        """Receive once, and find the connection lost: why."""
        error = receive(self.ours, self.session)
        assert isinstance(error, ConnectionLost)
        return error.reason

    def close(self) -> None:
        self.session.end(ConnectionLost("the test is over"))
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def send_fds(sender: socket.socket, data: bytes, count: int) -> None:
    """Send `count` descriptors along and keep none."""
    fds = [os.memfd_create("sent") for _ in range(count)]
    socket.send_fds(sender, [data], fds)
    for fd in fds:
        os.close(fd)


# ── receive ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_received_answers_calls(ends: Ends) -> None:
    call, _ = ends.session.ping()
    pong = frame(FrameType.PONG, call.request_id)
    ends.theirs.sendall(pong[:7])
    ends.receive()
    assert not call.done
    ends.theirs.sendall(pong[7:])
    ends.receive()
    assert call.done


def test_a_socket_with_nothing_to_read_is_no_error(ends: Ends) -> None:
    ends.receive()


def test_the_end_of_the_stream_is_a_lost_connection(ends: Ends) -> None:
    ends.theirs.close()
    assert ends.lost() == "the daemon closed it"


def test_a_reset_is_a_lost_connection_in_the_kernels_words(ends: Ends) -> None:
    ends.ours.sendall(b"what the daemon does not read")
    ends.theirs.close()
    assert ends.lost() == os.strerror(errno.ECONNRESET)


def test_a_stream_that_makes_no_sense_is_a_lost_connection(ends: Ends) -> None:
    ends.theirs.sendall(bytes(HEADER.size))
    assert ends.lost().startswith("the daemon's answer cannot be understood: malformed frame: magic")


def test_a_daemon_of_another_version_is_said_as_such(ends: Ends) -> None:
    call, _ = ends.session.hello("")
    ends.theirs.sendall(Welcome(2, 42, 8, 1, 1).encode(call.request_id))
    error = receive(ends.ours, ends.session)
    assert isinstance(error, UnsupportedVersion)
    assert error.supported == 2


def test_a_descriptor_arrives_with_its_frame_and_is_not_inherited(ends: Ends) -> None:
    call, _ = ends.session.attach(4096)
    send_fds(ends.theirs, encode_arena(FrameType.ATTACHED, call.request_id, 3, 4096), 1)
    ends.receive()
    number, nbytes, fd = call.outcome()
    assert (number, nbytes) == (3, 4096)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)


def test_descriptors_that_nobody_takes_are_closed(ends: Ends) -> None:
    call, _ = ends.session.ping()
    before = fd_count()
    send_fds(ends.theirs, frame(FrameType.PONG, call.request_id), 4)
    ends.receive()
    assert (call.done, fd_count()) == (True, before)


def test_descriptors_that_the_kernel_dropped_end_the_connection_and_leave_none_open(ends: Ends) -> None:
    before = fd_count()
    send_fds(ends.theirs, b"x", 5)
    assert ends.lost() == "file descriptors were lost: this process may open no more"
    ends.session.end(ConnectionLost("as it was said"))
    assert fd_count() == before


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=3), st.binary(max_size=3))
def test_descriptors_are_those_of_all_messages_without_a_cut_off_one(sent: list[list[int]], rest: bytes) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes() + rest) for fds in sent]
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12))
    assert descriptors_in([credentials, *rights]) == [fd for fds in sent for fd in fds]


# ── unsent ──────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.binary(max_size=6), max_size=8), st.integers(0, 60))
def test_the_rest_is_what_was_not_sent_in_parts_that_are_not_empty(buffers: Sequence[bytes], sent: int) -> None:
    rest = unsent(buffers, sent)
    assert b"".join(rest) == b"".join(buffers)[sent:]
    assert all(len(part) for part in rest)


def test_the_rest_is_not_copied() -> None:
    buffer = memoryview(bytearray(b"abc"))
    (rest,) = unsent([buffer], 1)
    buffer[2] = ord("x")
    assert bytes(rest) == b"bx"


# ── wakers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    if made.fd >= 0:
        made.close()


def is_awake(waker: Waker, timeout_ms: int = 0) -> bool:
    """Whether a poll returns for it."""
    poll = select.poll()
    poll.register(waker.fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def test_waking_ends_the_next_poll_until_it_is_cleared(waker: Waker) -> None:
    assert not is_awake(waker)
    waker.wake()
    waker.wake()
    assert is_awake(waker)
    waker.clear()
    assert not is_awake(waker)
    waker.clear()  # a poll may have returned for another reason


def test_another_thread_ends_a_poll(waker: Waker) -> None:
    thread = threading.Thread(target=waker.wake)
    thread.start()
    assert is_awake(waker, WATCHDOG_MS)
    thread.join()


def test_a_closed_waker_does_not_touch_who_has_its_number_now(waker: Waker) -> None:
    number = waker.fd
    waker.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert other == number
        waker.wake()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        os.close(other)


def test_a_forked_child_can_wake_though_a_thread_that_it_has_not_held_the_lock(waker: Waker) -> None:
    held = waker._lock
    with held:
        waker.reset_after_fork()
        waker.wake()
    assert is_awake(waker)
