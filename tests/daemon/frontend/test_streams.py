"""Sockets on an epoll of their own. What connections see of them is tested there: a stream's peer is one."""

import errno
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tensord.daemon.frontend.models import Model
from tensord.daemon.frontend.requests import InferRequest
from tensord.daemon.frontend.streams import EVENTS_PER_TURN
from tensord.ipc.wire import HEADER, MAGIC, FrameType, frame

from .fake_host import LONG_BYTES, Client, FakeHost, Meeting, request_frame

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def client(meeting: Meeting) -> Client:
    return meeting.client()


def numbered(request_id: int, nbytes: int) -> bytes:
    """An answer of so many bytes, each of which is its number."""
    return HEADER.pack(MAGIC, FrameType.RESULT, 0, 0, request_id, nbytes) + bytes([request_id]) * nbytes


def test_what_the_socket_does_not_take_follows_in_order(meeting: Meeting, client: Client) -> None:
    sizes = {1: LONG_BYTES, 2: 10, 3: LONG_BYTES, 4: 0}
    for request_id, nbytes in sizes.items():
        meeting.within(partial(client.connection.send, numbered(request_id, nbytes)))
    assert client.connection.stream.unsent_bytes > 0
    answers = client.receive_all(4)
    assert [(each.request_id, each.payload) for each in answers] == [
        (request_id, bytes([request_id]) * nbytes) for request_id, nbytes in sizes.items()
    ]
    assert client.connection.stream.unsent_bytes == 0


def test_a_client_that_takes_nothing_is_not_read_until_it_does(meeting: Meeting, client: Client) -> None:
    client.long_answer(LONG_BYTES)
    assert not client.connection.stream.is_reading
    client.send(frame(FrameType.PING, 5))
    meeting.settle()
    assert [answer.request_id for answer in client.receive_all(2)] == [77, 5]
    assert client.connection.stream.is_reading


def test_what_was_written_comes_before_the_end(meeting: Meeting, client: Client) -> None:
    client.long_answer(LONG_BYTES)
    meeting.within(client.connection.stream.close)
    assert [answer.request_id for answer in client.expect_end()] == [77]
    meeting.until(lambda: client.connection.closed)


def test_abort_does_not_wait_for_the_client(meeting: Meeting, client: Client) -> None:
    client.long_answer(LONG_BYTES)
    meeting.within(client.connection.stream.abort)
    meeting.until(lambda: client.connection.closed)


def test_a_connection_is_lost_once(meeting: Meeting, host: FakeHost, client: Client) -> None:
    def end_thrice() -> None:
        client.connection.stream.close()
        client.connection.stream.abort()
        client.connection.stream.abort()

    meeting.within(end_thrice)
    meeting.settle()
    assert host.closed == [client.connection]


def test_a_bug_ends_one_connection_and_is_told(
    meeting: Meeting, host: FakeHost, client: Client, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_now: int, _request: InferRequest) -> None:
        raise ZeroDivisionError("a bug")

    other = meeting.client()
    client.open("pair")
    monkeypatch.setattr(host, "submit", fail)
    client.send(request_frame(model))
    while not client.connection.closed:
        meeting.turn()
    (told,) = meeting.errors
    assert isinstance(told["exception"], ZeroDivisionError)
    meeting.errors.clear()
    other.assert_in_step()


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda client: client.socket.close(), id="gone"),
        pytest.param(lambda client: client.socket.shutdown(socket.SHUT_WR), id="has said all"),
        pytest.param(lambda client: client.send(frame(FrameType.PING, 5)), id="goes on"),
    ],
)
def test_what_is_not_read_does_not_keep_the_loop_busy(
    meeting: Meeting, client: Client, leave: Callable[[Client], None]
) -> None:
    meeting.within(client.connection.stream.pause_reading)
    leave(client)
    meeting.settle()
    before = meeting.turns
    meeting.settle()
    assert meeting.turns == before


def test_more_sockets_than_a_turn_takes_are_all_read(meeting: Meeting) -> None:
    clients = [meeting.client() for _ in range(EVENTS_PER_TURN + 10)]
    for each in clients:
        each.send(frame(FrameType.PING, 5))
    for each in clients:
        assert each.receive().request_id == 5


class Refusing(socket.socket):
    """A listener that the kernel refuses a descriptor once."""

    refusals = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.mark.parametrize("kind", [socket.socket, Refusing])
def test_who_connects_is_accepted_soon(meeting: Meeting, tmp_path: Path, kind: type[socket.socket]) -> None:
    came: list[socket.socket] = []
    with kind(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        meeting.within(lambda: meeting.streams.listen(listener, came.append))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in clients:
            each.connect(str(tmp_path / "s"))
        meeting.until(lambda: len(came) == 3)
        meeting.within(lambda: meeting.streams.ignore(listener))
    for each in (*clients, *came):
        each.close()
