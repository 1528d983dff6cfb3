"""One connection of the asyncio client over a real socket, on the loops of asyncio and uvloop."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import pytest
import uvloop

from tensord.ipc.client.aio_connection import BUFFERS_MAX, AsyncConnection
from tensord.ipc.client.call import Call, RoomTicket
from tensord.ipc.client.flow import Flow, Send, ask
from tensord.ipc.errors import ClientClosed, ConnectionLost, DeadlineExceeded
from tensord.ipc.wire import HEADER, FrameType, encode_arena, frame

pytestmark = pytest.mark.timeout(30)

WATCHDOG_S = 20.0
LONG_NS = 10**15
Sockets: TypeAlias = tuple[socket.socket, socket.socket]
Scene: TypeAlias = Callable[[AsyncConnection, socket.socket], Coroutine[Any, Any, None]]
Play: TypeAlias = Callable[[Scene], None]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The client's end and the daemon's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(WATCHDOG_S)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest, sockets: Sockets) -> Play:
    """Runs a coroutine on a loop, with a connection and the daemon's end of it."""
    ours, theirs = sockets

    async def main(scene: Scene) -> None:
        connection = AsyncConnection(ours, 1 << 20)
        try:
            await scene(connection, theirs)
        finally:
            connection.close(ClientClosed())

    return lambda scene: request.param(main(scene))


def later() -> int:
    """A deadline that does not come."""
    return time.monotonic_ns() + LONG_NS


def over() -> int:
    """A deadline that passed so long ago that nobody waits for the daemon's own answer any more."""
    return time.monotonic_ns() - LONG_NS


async def turns(count: int = 3) -> None:
    """Let others run: what is ready is read and written."""
    for _ in range(count):
        await asyncio.sleep(0)


async def received(theirs: socket.socket, nbytes: int) -> bytes:
    """What the daemon receives, read while the loop runs."""
    parts = bytearray()
    while len(parts) < nbytes:
        part = await asyncio.to_thread(theirs.recv, nbytes - len(parts))
        assert part, "the stream has ended"
        parts += part
    return bytes(parts)


def kinds(data: bytes) -> list[int]:
    """Types of frames without payload."""
    found = []
    while data:
        _, frame_type, _, meta_bytes, _, _ = HEADER.unpack_from(data)
        found.append(frame_type)
        data = data[HEADER.size + meta_bytes :]
    return found


def drained(theirs: socket.socket) -> bytes:
    """What has arrived by now."""
    theirs.setblocking(False)
    try:
        return theirs.recv(1 << 20)
    except BlockingIOError:
        return b""
    finally:
        theirs.settimeout(WATCHDOG_S)


def fill(connection: AsyncConnection) -> int:
    """Write until the socket takes no more; the bytes."""
    written = 0
    try:
        while True:
            written += connection._socket.send(bytes(65_536))
    except BlockingIOError:
        return written


def infer_of(connection: AsyncConnection, *buffers: bytes) -> Send:
    """A call in the table and what is to be sent for it: any bytes."""
    call = connection.session.register(FrameType.RESULT)
    return Send(call, list(buffers), sum(map(len, buffers)))


# ── flows ───────────────────────────────────────────────────────────────────────────────────────


def test_a_flow_is_run_to_its_result(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        task = asyncio.ensure_future(connection.run(ask(*connection.session.attach(4096)), later()))
        assert kinds(await received(theirs, HEADER.size + 16)) == [FrameType.ATTACH]
        fd = os.memfd_create("arena")
        socket.send_fds(theirs, [encode_arena(FrameType.ATTACHED, 1, 3, 4096)], [fd])
        os.close(fd)
        number, nbytes, descriptor = await task
        os.close(descriptor)
        assert (number, nbytes) == (3, 4096)

    play(scene)


def test_what_goes_wrong_on_the_way_is_the_flows_to_handle(play: Play) -> None:
    def stubborn(connection: AsyncConnection, errors: list[BaseException]) -> Flow[str]:
        for step in (infer_of(connection, b"x"), connection.session.room_ticket()):
            try:
                yield step
            except (ConnectionLost, DeadlineExceeded) as error:
                errors.append(error)
        return "its result"

    async def scene(connection: AsyncConnection, _: socket.socket) -> None:
        connection.session.end_error = ConnectionLost("gone")
        errors: list[BaseException] = []
        assert await connection.run(stubborn(connection, errors), over()) == "its result"
        assert [type(error) for error in errors] == [ConnectionLost, DeadlineExceeded]

    play(scene)


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("before", [True, False])
def test_a_ticket_may_be_done_before_it_is_waited_for(play: Play, before: bool) -> None:
    async def scene(connection: AsyncConnection, _: socket.socket) -> None:
        ticket = connection.session.room_ticket()
        if before:
            ticket.finish()
        else:
            asyncio.get_running_loop().call_soon(ticket.finish)
        await connection.wait_for(ticket, later())
        ticket.finish()  # once more, when nobody waits

    play(scene)


def test_an_inference_out_of_time_is_cancelled_at_the_daemon(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call = connection.session.register(FrameType.RESULT)
        with pytest.raises(DeadlineExceeded):
            await connection.wait_for(call, over())
        assert call.abandoned
        assert drained(theirs) == frame(FrameType.CANCEL, call.request_id)
        assert connection.session.in_flight == 1, "its answer is still to come"

    play(scene)


def test_other_calls_out_of_time_are_not(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call, _ = connection.session.ping()
        for ticket in (call, RoomTicket()):
            with pytest.raises(DeadlineExceeded):
                await connection.wait_for(ticket, over())
        assert call.abandoned
        assert drained(theirs) == b""

    play(scene)


def test_who_is_cancelled_cancels(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call = connection.session.register(FrameType.RESULT)
        task = asyncio.ensure_future(connection.wait_for(call, later()))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert drained(theirs) == frame(FrameType.CANCEL, call.request_id)

    play(scene)


def test_an_ended_connection_is_told_of_no_cancellation(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call = Call(1, FrameType.RESULT)  # in no table: nobody will finish it
        connection.session.end(ConnectionLost("gone"))
        with pytest.raises(DeadlineExceeded):
            await connection.wait_for(call, over())
        assert drained(theirs) == b""

    play(scene)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def test_one_reader_answers_all_who_wait(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        calls = [connection.session.ping()[0] for _ in range(5)]
        waiting = asyncio.gather(*(connection.wait_for(call, later()) for call in calls))
        theirs.sendall(b"".join(frame(FrameType.PONG, call.request_id) for call in reversed(calls)))
        await waiting

    play(scene)


def test_the_end_of_the_stream_ends_all_who_wait(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call, ticket = connection.session.ping()[0], connection.session.room_ticket()
        waiting = asyncio.gather(*(connection.wait_for(each, later()) for each in (call, ticket)))
        theirs.close()
        await waiting
        with pytest.raises(ConnectionLost, match="the daemon closed it"):
            call.outcome()
        assert connection._socket.fileno() == -1

    play(scene)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def test_frames_that_find_the_socket_full_follow_whole_and_in_order(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        filled = fill(connection)
        frames = [bytes([number]) * 300_000 for number in range(4)]
        for data in frames:
            connection._send(infer_of(connection, data[:7], data[7:]))
        assert await received(theirs, filled + 1_200_000) == bytes(filled) + b"".join(frames)
        connection._send(infer_of(connection, b"and goes on"))
        assert await received(theirs, 11) == b"and goes on"

    play(scene)


def test_a_frame_that_the_socket_takes_in_part_is_finished_first(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        large = os.urandom(3_000_000)
        connection._send(infer_of(connection, large))
        part = drained(theirs)  # what went at once
        connection._send(infer_of(connection, b"behind it"))
        assert part + await received(theirs, len(large) + 9 - len(part)) == large + b"behind it"

    play(scene)


def test_more_buffers_may_wait_than_the_kernel_takes_at_once(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        filled = fill(connection)
        buffers = [number.to_bytes(2, "little") * 500 for number in range(3 * BUFFERS_MAX)]
        for buffer in buffers:
            connection._send(infer_of(connection, buffer))
        assert (await received(theirs, filled + 1_000 * len(buffers)))[filled:] == b"".join(buffers)

    play(scene)


def test_what_cannot_be_sent_is_lost_and_what_was_answered_is_still_read(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        answered, _ = connection.session.ping()
        theirs.sendall(frame(FrameType.PONG, answered.request_id))
        theirs.close()
        sent = infer_of(connection, b"x")
        with pytest.raises(ConnectionLost, match="cannot be written to: Broken pipe"):
            connection._send(sent)
        assert (sent.call.done, connection.session.usable) == (True, False)
        await connection.wait_for(answered, later())
        assert answered.outcome() is None

    play(scene)


def test_what_waits_to_be_sent_is_dropped_when_the_daemon_is_gone(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        fill(connection)
        sent = infer_of(connection, b"x")
        connection._send(sent)
        theirs.close()
        await connection.wait_for(sent.call, later())
        assert isinstance(sent.call.error, ConnectionLost)

    play(scene)


def test_a_daemon_that_reads_no_more_may_still_answer(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        fill(connection)
        sent, ping = infer_of(connection, b"x"), connection.session.ping()[0]
        connection._send(sent)
        theirs.shutdown(socket.SHUT_RD)
        drained(theirs)  # which makes room
        while connection.session.usable:
            await turns()
        assert not sent.call.done
        theirs.sendall(frame(FrameType.PONG, ping.request_id))
        await connection.wait_for(ping, later())

    play(scene)


def test_after_the_end_nothing_is_sent(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        step = infer_of(connection, b"x")
        connection.session.end_error = ConnectionLost("gone")
        with pytest.raises(ConnectionLost, match="before the request was sent"):
            connection._send(step)
        assert step.call.done
        assert drained(theirs) == b""

    play(scene)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_closing_says_so_to_both_sides_once(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call, _ = connection.session.ping()
        connection.close(ClientClosed())
        connection.close(ConnectionLost("later"))
        with pytest.raises(ClientClosed):
            call.outcome()
        assert theirs.recv(1000) == frame(FrameType.CLOSE, 0)
        assert theirs.recv(1000) == b""

    play(scene)


def test_a_frame_that_was_begun_is_not_followed_by_another(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        left = fill(connection)
        connection._send(infer_of(connection, b"the rest of a frame"))
        while left:
            left -= len(theirs.recv(left))  # which makes room
        connection.close(ClientClosed())
        assert theirs.recv(1000) == b""

    play(scene)


def test_a_daemon_that_is_gone_needs_no_goodbye(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        theirs.close()
        connection.close(ClientClosed())
        assert connection._socket.fileno() == -1

    play(scene)


def test_it_can_be_closed_when_its_loop_is_gone(sockets: Sockets) -> None:
    async def main() -> AsyncConnection:
        return AsyncConnection(sockets[0], 1 << 20)

    connection = asyncio.run(main())
    call, _ = connection.session.ping()
    told: list[bool] = []
    call.hook = lambda: told.append(True)
    connection.close(ClientClosed())
    assert (connection.session.in_flight, told) == (0, []), "who waited is gone with the loop"
    assert sockets[1].recv(1000) == frame(FrameType.CLOSE, 0)


def test_a_forked_child_leaves_its_parents_connection_as_it_is(play: Play) -> None:
    async def scene(connection: AsyncConnection, theirs: socket.socket) -> None:
        call, _ = connection.session.ping()
        pid = os.fork()
        if not pid:
            connection.close_after_fork()
            is_left = connection._socket.fileno() < 0 and connection.session.in_flight == 0
            os._exit(0 if is_left and not connection.session.usable else 1)
        assert os.waitpid(pid, 0) == (pid, 0)
        assert drained(theirs) == b""
        theirs.sendall(frame(FrameType.PONG, call.request_id))
        await connection.wait_for(call, later())
        assert call.outcome() is None

    play(scene)
