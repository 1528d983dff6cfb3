import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tensord.daemon.frontend.worker_port import WorkerPort
from tensord.daemon.supervisor.rings import Rings
from tensord.daemon.worker.channel import Channel
from tensord.ipc.descriptors import Kind, encode_done
from tensord.ipc.limits import BATCH_REQUESTS_MAX, DATA_DIMENSIONS_MAX, PIPELINE_DEPTH_MAX, RING_BYTES
from tensord.ipc.ring import CELL_BYTES, HEAD, RingBroken

LARGE = RING_BYTES // 4 - HEAD.size
"""Bytes of a body of which four fill the work ring."""


@dataclass
class Pair:
    """A front end's port and its worker's channel."""

    port: WorkerPort
    channel: Channel

    def batches(self) -> list[bytes]:
        """What the worker finds."""
        self.channel.listen()
        found = []
        while (message := self.channel.take()) is not None:
            assert message[0] == Kind.BATCH
            found.append(message[1])
        return found


def open_pair(generation: int = 5, channel_generation: int = 5) -> Pair:
    rings = Rings.create(generation)
    port = WorkerPort(1, "cpu:0", generation, [os.dup(fd) for fd in rings.fds])
    channel = Channel(channel_generation, [os.dup(fd) for fd in rings.fds])
    rings.close()
    return Pair(port, channel)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = open_pair()
    yield made
    made.port.close()
    made.channel.close()


def test_batches_arrive_in_order_after_one_ring(pair: Pair) -> None:
    pair.port.send(Kind.BATCH, b"first")
    pair.port.send(Kind.BATCH, b"second")
    assert pair.batches() == []
    pair.port.ring()
    assert pair.batches() == [b"first", b"second"]


def test_answers_come_back_in_order(pair: Pair) -> None:
    pair.port.send(Kind.BATCH, b"x")
    pair.port.send(Kind.BATCH, b"y")
    pair.port.ring()
    pair.batches()
    pair.channel.answer(Kind.DONE, b"one")
    assert pair.port.answers() == [(Kind.DONE, b"one")]
    pair.channel.answer(Kind.FAILED, b"two")
    assert pair.port.answers() == [(Kind.FAILED, b"two")]
    assert pair.port.answers() == []


def test_a_batch_keeps_its_kind_also_when_it_finds_no_room(pair: Pair) -> None:
    kinds = [Kind.BATCH, Kind.RAGGED, Kind.RAGGED, Kind.BATCH, Kind.RAGGED, Kind.BATCH]
    for kind in kinds:
        pair.port.send(kind, bytes(LARGE))
    pair.port.ring()
    found = []
    for _ in kinds:
        pair.channel.listen()
        message = pair.channel.take()
        assert message is not None
        found.append(message[0])
        pair.channel.answer(Kind.DONE, b"")
        pair.port.answers()
    assert found == kinds


def test_what_finds_no_room_follows_when_there_is_room(pair: Pair) -> None:
    sent = [bytes([index]) * LARGE for index in range(6)]
    for body in sent:
        pair.port.send(Kind.BATCH, body)
    pair.port.ring()
    assert pair.batches() == sent[:4]
    assert pair.batches() == []
    pair.channel.answer(Kind.DONE, b"")
    assert len(pair.port.answers()) == 1
    assert pair.batches() == sent[4:5], "rung by the port itself"
    pair.channel.answer(Kind.DONE, b"")
    assert len(pair.port.answers()) == 1
    assert pair.batches() == sent[5:]


def test_a_small_batch_does_not_overtake_a_large_one_that_waits(pair: Pair) -> None:
    for body in [b"1" * LARGE, b"2" * LARGE, b"3" * LARGE, b"4" * (LARGE - 10 * CELL_BYTES), b"5" * LARGE, b"6"]:
        pair.port.send(Kind.BATCH, body)
    pair.port.ring()
    assert [body[:1] for body in pair.batches()] == [b"1", b"2", b"3", b"4"]
    for _ in range(4):
        pair.channel.answer(Kind.DONE, b"")
    pair.port.answers()
    assert [body[:1] for body in pair.batches()] == [b"5", b"6"]


def test_rings_go_around_many_times(pair: Pair) -> None:
    for turn in range(500):
        bodies = [bytes([turn % 256]) * (1 + 10_007 * turn % (LARGE - 1)) for _ in range(2)]
        for body in bodies:
            pair.port.send(Kind.BATCH, body)
        pair.port.ring()
        assert pair.batches() == bodies
        for _ in bodies:
            pair.channel.answer(Kind.DONE, b"a" * (turn % 2_000))
        assert len(pair.port.answers()) == 2


def test_the_most_that_can_be_outstanding_is_answered_without_a_look_in_between(pair: Pair) -> None:
    longest = encode_done(1, 2, [0] * BATCH_REQUESTS_MAX * DATA_DIMENSIONS_MAX)
    for _ in range(40):
        for _ in range(PIPELINE_DEPTH_MAX):
            pair.port.send(Kind.BATCH, b"x")
        pair.port.ring()
        assert len(pair.batches()) == PIPELINE_DEPTH_MAX
        for _ in range(PIPELINE_DEPTH_MAX):
            pair.channel.answer(Kind.DONE, longest)
        assert len(pair.port.answers()) == PIPELINE_DEPTH_MAX


def test_an_answer_to_nothing_breaks_the_ring(pair: Pair) -> None:
    pair.channel.answer(Kind.DONE, b"")
    with pytest.raises(RingBroken, match="never sent"):
        pair.port.answers()


def test_answers_of_another_generation_break_the_ring() -> None:
    pair = open_pair(generation=5, channel_generation=4)
    pair.port.send(Kind.BATCH, b"x")
    pair.channel.answer(Kind.DONE, b"")
    with pytest.raises(RingBroken, match="generation 4"):
        pair.port.answers()
    pair.port.close()
    pair.channel.close()


def test_batches_of_another_generation_break_the_ring() -> None:
    pair = open_pair(generation=5, channel_generation=6)
    pair.port.send(Kind.BATCH, b"x")
    pair.port.ring()
    with pytest.raises(RingBroken, match="generation 5"):
        pair.batches()
    pair.port.close()
    pair.channel.close()


def test_ringing_without_a_batch_wakes_nobody(pair: Pair) -> None:
    pair.port.ring()
    assert pair.channel.bell.answer() == 0


def test_closing_gives_every_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pair = open_pair()
    pair.port.close()
    pair.channel.close()
    assert len(os.listdir("/proc/self/fd")) == before
