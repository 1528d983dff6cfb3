"""Leaders, followers and senders on one socket."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tensord.ipc.client.connection import Connection
from tensord.ipc.client.sockets import Waker, descriptors_in, unsent
from tensord.ipc.errors import ConnectionLost
from tensord.ipc.wire import FrameType, frame

WATCHDOG_S = 20.0
LONG_NS = 10**15


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(ours, 1 << 20)
    yield connection, theirs
    connection.close(ConnectionLost("the test is over"))
    theirs.close()


def start_waiting(connection: Connection, *tickets: object) -> list[threading.Thread]:
    """One thread per ticket; the first one leads."""
    threads = []
    for ticket in tickets:
        thread = threading.Thread(target=connection.wait, args=(ticket, time.monotonic_ns() + LONG_NS), daemon=True)
        thread.start()
        threads.append(thread)
        while not connection._role.locked():
            pass
    return threads


def ended(threads: list[threading.Thread]) -> list[bool]:
    for thread in threads:
        thread.join(WATCHDOG_S)
    return [not thread.is_alive() for thread in threads]


def test_a_leader_reads_for_its_followers(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    calls = [connection.session.ping()[0] for _ in range(5)]
    threads = start_waiting(connection, *calls)
    theirs.sendall(b"".join(frame(FrameType.PONG, call.request_id) for call in reversed(calls)))
    assert ended(threads) == [True] * 5


def test_the_role_goes_on_to_a_follower(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    calls = [connection.session.ping()[0] for _ in range(5)]
    threads = start_waiting(connection, *calls)
    for call, thread in zip(calls, threads, strict=True):
        theirs.sendall(frame(FrameType.PONG, call.request_id))
        assert ended([thread]) == [True]


def test_a_leader_hears_of_room_that_another_thread_makes(ends: tuple[Connection, socket.socket]) -> None:
    connection, _ = ends
    for _ in range(3):
        threads = start_waiting(connection, connection.session.room_ticket())
        connection.session.tell_room()
        assert ended(threads) == [True]


def test_a_follower_hears_of_room_too(ends: tuple[Connection, socket.socket]) -> None:
    connection, theirs = ends
    call, _ = connection.session.ping()
    leader, follower = start_waiting(connection, call, connection.session.room_ticket())
    connection.session.tell_room()
    assert ended([follower]) == [True]
    assert leader.is_alive()
    theirs.sendall(frame(FrameType.PONG, call.request_id))
    assert ended([leader]) == [True]


def test_the_end_wakes_everybody(ends: tuple[Connection, socket.socket]) -> None:
    connection, _ = ends
    calls = [connection.session.ping()[0] for _ in range(3)]
    threads = start_waiting(connection, *calls, connection.session.room_ticket())
    connection.end(ConnectionLost("test"))
    assert ended(threads) == [True] * 4
    assert all(call.done for call in calls)


def test_a_waker_may_be_used_after_it_was_closed() -> None:
    waker = Waker()
    fd = waker.fd
    waker.clear()
    waker.wake()
    waker.wake()
    assert os.eventfd_read(fd) == 2
    waker.close()
    waker.wake()


@pytest.mark.parametrize("sent", range(9))
def test_unsent_is_the_rest(sent: int) -> None:
    buffers: list[bytes | memoryview] = [b"abc", memoryview(b""), memoryview(b"defgh")]
    assert b"".join(unsent(buffers, sent)) == b"abcdefgh"[sent:]


def test_descriptors_are_found_among_other_ancillary_data() -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\x05\0\0\0\x06\0\0\0\x07")
    other = (socket.SOL_SOCKET, 99, b"\x01\0\0\0")
    assert descriptors_in([other, rights]) == [5, 6]
