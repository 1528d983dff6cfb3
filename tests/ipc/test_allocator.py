import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tensord.ipc.allocator import AllocatorStatistics, RangeAllocator, RangeSet
from tensord.ipc.tensors import align


class Allocating(RuleBasedStateMachine):
    """A RangeAllocator against a plain dictionary of the ranges that are out."""

    @initialize(nbytes=st.integers(0, 2_000), alignment=st.sampled_from([1, 16, 64]))
    def make(self, nbytes: int, alignment: int) -> None:
        self.nbytes = nbytes
        self.alignment = alignment
        self.allocator = RangeAllocator(nbytes, alignment)
        self.out: dict[int, int] = {}

    def gaps(self) -> list[tuple[int, int]]:
        """The free ranges as start and size, merged."""
        gaps, position = [], 0
        usable = self.nbytes // self.alignment * self.alignment
        for start, size in [*sorted(self.out.items()), (usable, 0)]:
            if start > position:
                gaps.append((position, start - position))
            position = start + size
        return gaps

    @rule(nbytes=st.integers(0, 500))
    def allocate(self, nbytes: int) -> None:
        size = align(max(nbytes, 1), self.alignment)
        fitting = [start for start, free in self.gaps() if free >= size]
        offset = self.allocator.allocate(nbytes)
        assert offset == (fitting[0] if fitting else None)
        if offset is not None:
            self.out[offset] = size

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.out)))
        self.allocator.free(offset)
        del self.out[offset]

    @rule(offset=st.integers(-64, 2_064))
    def free_what_is_not_out(self, offset: int) -> None:
        if offset not in self.out:
            with pytest.raises(KeyError):
                self.allocator.free(offset)

    @invariant()
    def ranges_are_aligned_disjoint_and_inside(self) -> None:
        end = 0
        for start, size in sorted(self.out.items()):
            assert start % self.alignment == 0
            assert start >= end
            end = start + size
        assert end <= self.nbytes

    @invariant()
    def statistics_are_the_models(self) -> None:
        largest = max((size for _, size in self.gaps()), default=0)
        assert self.allocator.statistics() == AllocatorStatistics(
            self.nbytes, sum(self.out.values()), len(self.out), largest
        )

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            for offset in list(self.out):
                self.allocator.free(offset)
            whole = self.nbytes // self.alignment * self.alignment
            assert self.allocator.statistics() == AllocatorStatistics(self.nbytes, 0, 0, whole)


class Reserving(RuleBasedStateMachine):
    """A RangeSet against a set of intervals."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeSet()
        self.model: set[tuple[int, int]] = set()

    @rule(start=st.integers(0, 200), nbytes=st.integers(1, 40))
    def add(self, start: int, nbytes: int) -> None:
        stop = start + nbytes
        free = all(stop <= low or high <= start for low, high in self.model)
        assert self.ranges.add(start, stop) is free
        if free:
            self.model.add((start, stop))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        start, stop = data.draw(st.sampled_from(sorted(self.model)))
        self.ranges.remove(start)
        self.model.remove((start, stop))

    @rule(start=st.integers(0, 240))
    def remove_what_is_not_there(self, start: int) -> None:
        if all(low != start for low, _ in self.model):
            with pytest.raises(KeyError):
                self.ranges.remove(start)

    @invariant()
    def counts_the_same(self) -> None:
        assert len(self.ranges) == len(self.model)


TestAllocating = Allocating.TestCase
TestReserving = Reserving.TestCase


def test_ranges_that_touch_do_not_overlap() -> None:
    ranges = RangeSet()
    assert [ranges.add(64, 128), ranges.add(0, 64), ranges.add(128, 192)] == [True, True, True]
    assert not ranges.add(127, 129)
    assert not ranges.add(0, 1)


def test_the_first_gap_that_is_long_enough_is_taken() -> None:
    allocator = RangeAllocator(1024)
    offsets = [allocator.allocate(64 * size) or 0 for size in (1, 2, 1, 3, 1)]
    assert offsets == [0, 64, 192, 256, 448]
    allocator.free(64)
    allocator.free(256)
    assert allocator.allocate(150) == 256
    assert allocator.allocate(128) == 64


def test_a_range_of_no_bytes_can_be_freed_too() -> None:
    allocator = RangeAllocator(128)
    assert [allocator.allocate(0), allocator.allocate(0), allocator.allocate(0)] == [0, 64, None]
    allocator.free(0)
    assert allocator.allocate(0) == 0


@given(st.permutations(range(8)))
def test_whatever_the_order_of_return_neighbours_merge(order: list[int]) -> None:
    allocator = RangeAllocator(512)
    offsets = [allocator.allocate(64) for _ in range(8)]
    for index in order:
        offset = offsets[index]
        assert offset is not None
        allocator.free(offset)
    assert allocator.allocate(512) == 0
