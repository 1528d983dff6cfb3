"""One suite for the ring, on plain memory and on shared memory that is mapped twice."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.ipc.doorbell import Doorbell
from tensord.ipc.ring import CELL_BYTES, HEAD, PADDING, Consumer, Producer, RingBroken, RingFull, cells_for
from tensord.ipc.segment import Segment

Views = tuple[memoryview, memoryview]
Memory = Callable[[int], AbstractContextManager[Views]]


@contextmanager
def plain_memory(cells: int) -> Iterator[Views]:
    view = memoryview(bytearray(cells * CELL_BYTES))
    yield view, view


@contextmanager
def shared_memory(cells: int) -> Iterator[Views]:
    producers = Segment.create(cells * CELL_BYTES)
    consumers = Segment(os.dup(producers.fd), producers.nbytes)
    yield producers.view, consumers.view
    producers.close()
    consumers.close()


MEMORIES = pytest.mark.parametrize("memory", [plain_memory, shared_memory])


class Ring:
    """Both ends and the doorbell between them."""

    def __init__(self, views: Views, generation: int = 7) -> None:
        self.producer = Producer(views[0], generation)
        self.consumer = Consumer(views[1], generation)
        self.bell = Doorbell()

    def send(self, *bodies: bytes) -> list[int]:
        taken = [self.producer.publish(1, body) for body in bodies]
        self.bell.ring(self.producer.take_unannounced())
        self.consumer.announce(self.bell.answer())
        return taken

    def take(self) -> tuple[int, bytes, int]:
        message = self.consumer.take()
        assert message is not None
        self.producer.reclaim(message[2])
        return message

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()
        self.bell.close()


@pytest.fixture(params=[plain_memory, shared_memory])
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    """Eight cells."""
    with request.param(8) as views:
        made = Ring(views)
        yield made
        made.close()


def body(cells: int, fill: bytes = b"x") -> bytes:
    """A body that fills this many cells to the last byte."""
    return fill * (cells * CELL_BYTES - HEAD.size)


# ── any sequence of publishing and taking ───────────────────────────────────────────────────────


class Passing(RuleBasedStateMachine):
    """Messages through a small ring, against three queues: written, announced, taken but not reclaimed."""

    memory: Memory

    @initialize(cells=st.integers(2, 12), generation=st.integers(0, 2**32 - 1))
    def make(self, cells: int, generation: int) -> None:
        self.context = self.memory(cells)
        self.ring = Ring(self.context.__enter__(), generation)
        self.cells = cells
        self.written: deque[tuple[int, bytes, int]] = deque()
        self.announced: deque[tuple[int, bytes, int]] = deque()
        self.taken: deque[int] = deque()

    def used(self) -> int:
        return sum(each[2] for each in (*self.written, *self.announced)) + sum(self.taken)

    @rule(kind=st.integers(0, PADDING - 1), data=st.data())
    def publish(self, kind: int, data: st.DataObject) -> None:
        sent = data.draw(st.binary(max_size=self.cells * CELL_BYTES))
        free = self.ring.producer.free_cells
        try:
            cells = self.ring.producer.publish(kind, sent)
        except RingFull:
            assert self.ring.producer.free_cells == free
            worst = 2 * cells_for(len(sent)) - 1
            assert worst > free or cells_for(len(sent)) > self.cells
        else:
            assert free - cells == self.ring.producer.free_cells
            assert cells_for(len(sent)) <= cells < 2 * cells_for(len(sent))
            self.written.append((kind, sent, cells))

    @rule()
    def announce(self) -> None:
        cells = self.ring.producer.take_unannounced()
        assert cells == sum(each[2] for each in self.written)
        self.announced += self.written
        self.written.clear()
        if cells:
            self.ring.bell.ring(cells)
            self.ring.consumer.announce(self.ring.bell.answer())

    @rule()
    def take(self) -> None:
        expected = self.announced.popleft() if self.announced else None
        assert self.ring.consumer.take() == expected
        if expected:
            self.taken.append(expected[2])

    @precondition(lambda self: self.taken)
    @rule()
    def reclaim(self) -> None:
        self.ring.producer.reclaim(self.taken.popleft())

    @invariant()
    def every_cell_is_accounted_for(self) -> None:
        assert self.ring.producer.free_cells + self.used() == self.cells

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close()
            self.context.__exit__(None, None, None)


class PassingPlain(Passing):
    memory = staticmethod(plain_memory)


class PassingShared(Passing):
    memory = staticmethod(shared_memory)


TestPassingPlain = PassingPlain.TestCase
TestPassingShared = PassingShared.TestCase
TestPassingShared.settings = settings(max_examples=50)


# ── what is published ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("nbytes", "cells"), [(0, 1), (48, 1), (49, 2), (112, 2), (113, 3)])
def test_a_message_takes_its_head_and_body_in_whole_cells(nbytes: int, cells: int) -> None:
    assert cells_for(nbytes) == cells


def test_messages_come_in_order_with_kind_and_body(ring: Ring) -> None:
    ring.producer.publish(3, b"abc")
    ring.producer.publish(4, memoryview(b"de"))
    ring.bell.ring(ring.producer.take_unannounced())
    ring.consumer.announce(ring.bell.answer())
    assert [ring.consumer.take(), ring.consumer.take(), ring.consumer.take()] == [(3, b"abc", 1), (4, b"de", 1), None]


def test_nothing_is_seen_before_the_doorbell(ring: Ring) -> None:
    ring.producer.publish(1, b"abc")
    assert ring.consumer.take() is None
    ring.consumer.announce(ring.bell.answer())
    assert ring.consumer.take() is None


def test_one_doorbell_serves_all_that_was_published(ring: Ring) -> None:
    assert ring.send(b"a", body(2), b"c") == [1, 2, 1]
    assert [ring.take()[1][:1] for _ in range(3)] == [b"a", b"x", b"c"]
    assert ring.producer.take_unannounced() == 0


def test_a_full_ring_refuses_and_stays_as_it_was(ring: Ring) -> None:
    ring.send(body(5), body(3))
    with pytest.raises(RingFull, match="1 cells needed, 0 of 8 free"):
        ring.producer.publish(1, b"")
    assert ring.producer.take_unannounced() == 0
    assert [ring.take()[2], ring.take()[2]] == [5, 3]
    assert ring.send(body(8)) == [8]


def test_taken_cells_are_free_only_when_they_are_reclaimed(ring: Ring) -> None:
    ring.send(body(8))
    assert ring.consumer.take() is not None
    with pytest.raises(RingFull):
        ring.producer.publish(1, b"")
    ring.producer.reclaim(8)
    assert ring.send(b"") == [1]


def test_a_message_that_does_not_fit_before_the_end_starts_over(ring: Ring) -> None:
    ring.send(body(6))
    ring.take()
    assert ring.send(body(3, b"w")) == [2 + 3]
    assert ring.take() == (1, body(3, b"w"), 5)
    assert ring.producer.free_cells == 8


def test_padding_needs_room_too(ring: Ring) -> None:
    ring.send(body(3), body(3))
    ring.take()
    with pytest.raises(RingFull, match="6 cells needed, 5 of 8 free"):
        ring.producer.publish(1, body(4))
    assert ring.send(body(3, b"w")) == [5]


def test_reclaiming_more_than_was_published_is_a_bug(ring: Ring) -> None:
    with pytest.raises(AssertionError):
        ring.producer.reclaim(1)


@MEMORIES
def test_sequence_numbers_wrap(memory: Memory) -> None:
    with memory(4) as views:
        ring = Ring(views)
        ring.producer._sequence = ring.consumer._sequence = 2**32 - 2
        for _ in range(3):
            ring.send(body(3))  # with a padding each: two numbers
            ring.take()
        assert ring.consumer._sequence == 3
        ring.close()


# ── what no correct producer writes ─────────────────────────────────────────────────────────────


def write(ring: Ring, cell: int, **changed: int) -> None:
    """Announce a message of one cell whose head is a correct one but for what is changed."""
    head = {"generation": 7, "sequence": 0, "kind": 1, "cells": 1, "nbytes": 0, **changed}
    HEAD.pack_into(ring.producer._view, cell * CELL_BYTES, *head.values())
    ring.consumer.announce(1)


@pytest.mark.parametrize("generation", [0, 6, 8, 2**32 - 1])
def test_another_generation_is_not_believed(ring: Ring, generation: int) -> None:
    write(ring, 0, generation=generation)
    with pytest.raises(RingBroken, match=f"message 0 of generation {generation}; expected 0 of 7"):
        ring.consumer.take()


def test_what_a_dead_generation_left_is_not_believed() -> None:
    with shared_memory(8) as views:
        dead = Ring(views, generation=1)
        dead.producer.publish(1, b"from the dead")
        heir = Consumer(views[1], 2)
        heir.announce(dead.producer.take_unannounced())
        with pytest.raises(RingBroken):
            heir.take()
        dead.close()
        heir.close()


@pytest.mark.parametrize("sequence", [1, 2**32 - 1])
def test_another_number_than_the_next_is_not_believed(ring: Ring, sequence: int) -> None:
    write(ring, 0, sequence=sequence)
    with pytest.raises(RingBroken, match="expected 0 of 7"):
        ring.consumer.take()


def test_a_message_is_not_believed_twice(ring: Ring) -> None:
    ring.send(body(8))
    ring.take()
    ring.consumer.announce(8)
    with pytest.raises(RingBroken, match="message 0"):
        ring.consumer.take()


def test_an_unwritten_cell_is_not_believed(ring: Ring) -> None:
    ring.consumer.announce(1)
    with pytest.raises(RingBroken):
        ring.consumer.take()


@pytest.mark.parametrize("cells", [0, 2, 0xFFFF])
def test_more_cells_than_announced_are_not_believed(ring: Ring, cells: int) -> None:
    write(ring, 0, cells=cells)
    with pytest.raises(RingBroken, match="1 announced"):
        ring.consumer.take()


@pytest.mark.parametrize("nbytes", [49, CELL_BYTES, 2**32 - 1])
def test_a_body_beyond_its_cells_is_not_believed(ring: Ring, nbytes: int) -> None:
    write(ring, 0, nbytes=nbytes)
    with pytest.raises(RingBroken, match=f"message of {nbytes} bytes in 1 cells"):
        ring.consumer.take()


def test_a_message_across_the_end_is_not_believed(ring: Ring) -> None:
    ring.send(body(7))
    ring.take()
    ring.consumer.announce(1)
    write(ring, 7, sequence=1, cells=2)
    with pytest.raises(RingBroken, match="in 2 cells, 2 announced"):
        ring.consumer.take()


def test_endless_padding_is_not_followed(ring: Ring) -> None:
    for cell in range(8):
        write(ring, cell, sequence=cell, kind=PADDING)
    assert ring.consumer.take() is None


@pytest.mark.parametrize("counts", [[9], [8, 1], [2**63]])
def test_more_cells_announced_than_there_are_break_the_ring(ring: Ring, counts: list[int]) -> None:
    *before, last = counts
    for count in before:
        ring.consumer.announce(count)
    with pytest.raises(RingBroken, match=f"{sum(counts)} cells announced in a ring of 8"):
        ring.consumer.announce(last)


def test_a_body_taken_is_a_copy(ring: Ring) -> None:
    ring.send(b"before")
    _, taken, _ = ring.take()
    ring.producer._view[HEAD.size : HEAD.size + 6] = b"after!"
    assert taken == b"before"
