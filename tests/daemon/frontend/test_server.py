"""What the front end makes of a worker whose answers are nonsense; all else of it is tested with real processes."""

import asyncio
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tensord.daemon import messages as m
from tensord.daemon.frontend.server import FrontEnd
from tensord.daemon.frontend.worker_port import WorkerPort
from tensord.daemon.messages import Link
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker.channel import Channel
from tensord.ipc.descriptors import DONE, Kind, encode_failed
from tensord.ipc.errors import InternalError


class Meeting:
    """A front end that has sent one batch to a worker, and the ends of supervisor and worker."""

    def __init__(self) -> None:
        self.supervisor, link = Link.pair()
        self.front_end = FrontEnd(link)
        self.loop = asyncio.new_event_loop()
        self.front_end._loop = self.loop
        rings = Rings.create(4)
        self.port = WorkerPort(2, "cpu:0", 4, [os.dup(fd) for fd in rings.fds])
        self.channel = Channel(4, [os.dup(fd) for fd in rings.fds])
        rings.close()
        self.loop.add_reader(self.port.bell.fileno(), self.front_end._answered, self.port)
        self.front_end._ports[2] = self.port
        batch: Any = SimpleNamespace(worker=3)
        self.front_end._running[8] = batch  # which another worker has
        self.port.send(b"a batch")

    def close(self) -> None:
        if 2 in self.front_end._ports:
            self.loop.remove_reader(self.port.bell.fileno())
            self.port.close()
        self.channel.close()
        self.front_end.link.close()
        self.front_end._timer.close()
        self.supervisor.close()
        self.loop.close()


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    made = Meeting()
    yield made
    made.close()


NONSENSE = pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(Kind.DONE, DONE.pack(7, 1), id="a batch that nobody has"),
        pytest.param(Kind.DONE, DONE.pack(8, 1), id="another worker's batch"),
        pytest.param(Kind.DONE, b"", id="no batch"),
        pytest.param(Kind.DONE, DONE.pack(8, 1) + b"x", id="too long"),
        pytest.param(Kind.FAILED, b"short", id="cut off"),
        pytest.param(Kind.FAILED, DONE.pack(7, 1), id="no error"),
        pytest.param(Kind.FAILED, encode_failed(7, 1, InternalError("x")), id="the failure of a batch that nobody has"),
        pytest.param(99, b"", id="another kind"),
    ],
)


@NONSENSE
def test_a_worker_whose_answer_makes_no_sense_is_accused(meeting: Meeting, kind: int, body: bytes) -> None:
    meeting.channel.answer(kind, body)
    meeting.front_end._answered(meeting.port)
    received = meeting.supervisor.receive()
    assert received is not None
    accused, _ = received
    assert isinstance(accused, m.WorkerAccused)
    assert (accused.worker, accused.generation) == (2, 4)
    assert not meeting.loop.remove_reader(meeting.port.bell.fileno()), "it is listened to no more"
    assert 8 in meeting.front_end._running


@NONSENSE
def test_the_last_words_of_a_dead_worker_may_be_nonsense(meeting: Meeting, kind: int, body: bytes) -> None:
    meeting.channel.answer(kind, body)
    meeting.front_end.scheduler.add_worker(2, "cpu:0")
    meeting.front_end._remove_worker(1, 2)
    assert 2 not in meeting.front_end._ports
    assert list(meeting.front_end._running) == [8]
