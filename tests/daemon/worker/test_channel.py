import os
from collections.abc import Iterator

import pytest

from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker.channel import Channel
from tensord.ipc.doorbell import Doorbell
from tensord.ipc.limits import DONE_RING_BYTES, PIPELINE_DEPTH_MAX, RING_BYTES
from tensord.ipc.ring import Consumer, Producer, RingBroken, RingFull
from tensord.ipc.segment import Segment


class FrontEnd:
    """The other ends of the rings, without any sense."""

    def __init__(self, rings: Rings) -> None:
        work, done, work_bell, done_bell = (os.dup(fd) for fd in rings.fds)
        self.segments = Segment(work, RING_BYTES), Segment(done, DONE_RING_BYTES)
        self.bells = Doorbell(work_bell), Doorbell(done_bell)
        self.producer = Producer(self.segments[0].view, rings.generation)
        self.consumer = Consumer(self.segments[1].view, rings.generation)

    def send(self, *bodies: bytes) -> None:
        for body in bodies:
            self.producer.publish(1, body)
        self.bells[0].ring(self.producer.take_unannounced())

    def answers(self) -> list[tuple[int, bytes]]:
        if count := self.bells[1].answer():
            self.consumer.announce(count)
        found = []
        while (message := self.consumer.take()) is not None:
            found.append(message[:2])
        return found

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()
        for each in (*self.segments, *self.bells):
            each.close()


Ends = tuple[FrontEnd, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    before = len(os.listdir("/proc/self/fd"))
    rings = Rings.create(3)
    front_end = FrontEnd(rings)
    channel = Channel(3, [os.dup(fd) for fd in rings.fds])
    rings.close()
    yield front_end, channel
    front_end.close()
    channel.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_batches_are_taken_only_after_listening(ends: Ends) -> None:
    front_end, channel = ends
    front_end.send(b"a", b"b")
    assert channel.take() is None
    channel.listen()
    assert [channel.take(), channel.take(), channel.take()] == [(1, b"a"), (1, b"b"), None]


def test_listening_never_waits(ends: Ends) -> None:
    ends[1].listen()
    assert ends[1].take() is None


def test_an_answer_rings_at_once(ends: Ends) -> None:
    front_end, channel = ends
    channel.answer(2, b"done")
    assert front_end.answers() == [(2, b"done")]
    channel.answer(3, b"failed")
    assert front_end.answers() == [(3, b"failed")]


def test_answers_use_no_room_beyond_the_pipeline(ends: Ends) -> None:
    """The front end need not say that it has taken an answer: it says so by what it sends."""
    front_end, channel = ends
    for _ in range(500):
        channel.answer(3, bytes(2_066))
        assert len(front_end.answers()) == 1
    used = DONE_RING_BYTES // 64 - channel._producer.free_cells
    assert used <= 2 * PIPELINE_DEPTH_MAX * 33


def test_rings_of_which_too_much_is_announced_break(ends: Ends) -> None:
    front_end, channel = ends
    front_end.bells[0].ring(RING_BYTES // 64 + 1)
    with pytest.raises(RingBroken):
        channel.listen()


def test_an_answer_longer_than_the_ring_is_refused(ends: Ends) -> None:
    with pytest.raises(RingFull):
        ends[1].answer(3, bytes(DONE_RING_BYTES))


def test_closing_rings_twice_is_a_bug_that_shows() -> None:
    rings = Rings.create(1)
    rings.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        rings.close()
