"""First-fit allocation of ranges in a region: who may use which bytes of an arena. Pure arithmetic."""

from bisect import bisect_left
from dataclasses import dataclass

from .limits import TENSOR_ALIGNMENT_BYTES
from .tensors import align


@dataclass(frozen=True, slots=True)
class AllocatorStatistics:
    """What a RangeAllocator holds."""

    nbytes: int
    """Size of the region, in bytes."""
    used_bytes: int
    """Bytes in ranges handed out, rounded up to the alignment."""
    ranges: int
    """Ranges handed out now."""
    largest_free_bytes: int
    """The largest range that could be handed out now."""


class RangeAllocator:
    """Hands out disjoint, aligned ranges of `nbytes` bytes and takes them back in any order.

    Free neighbours are merged at once, so after all ranges came back the region is one range again.
    Not safe in threads: the caller locks.
    """

    __slots__ = ("_alignment", "_free_sizes", "_free_starts", "_nbytes", "_used")

    def __init__(self, nbytes: int, alignment: int = TENSOR_ALIGNMENT_BYTES) -> None:
        self._nbytes = nbytes
        self._alignment = alignment
        usable = nbytes // alignment * alignment
        self._free_starts = [0] if usable else []
        self._free_sizes = [usable] if usable else []
        self._used: dict[int, int] = {}

    def allocate(self, nbytes: int) -> int | None:
        """Offset of a range of at least `nbytes` bytes, or None when no free range is long enough.

        A range of zero bytes still gets an offset of its own, so that every range can be freed.
        """
        size = align(max(nbytes, 1), self._alignment)
        for index, free in enumerate(self._free_sizes):
            if free >= size:
                start = self._free_starts[index]
                if free == size:
                    del self._free_starts[index], self._free_sizes[index]
                else:
                    self._free_starts[index] = start + size
                    self._free_sizes[index] = free - size
                self._used[start] = size
                return start
        return None

    def free(self, offset: int) -> None:
        """Take a range back. Raises KeyError for an offset that is not handed out."""
        size = self._used.pop(offset)
        starts, sizes = self._free_starts, self._free_sizes
        index = bisect_left(starts, offset)
        joins_next = index < len(starts) and starts[index] == offset + size
        joins_previous = index > 0 and starts[index - 1] + sizes[index - 1] == offset
        if joins_previous and joins_next:
            sizes[index - 1] += size + sizes[index]
            del starts[index], sizes[index]
        elif joins_previous:
            sizes[index - 1] += size
        elif joins_next:
            starts[index] = offset
            sizes[index] += size
        else:
            starts.insert(index, offset)
            sizes.insert(index, size)

    def statistics(self) -> AllocatorStatistics:
        """A snapshot."""
        return AllocatorStatistics(
            self._nbytes, sum(self._used.values()), len(self._used), max(self._free_sizes, default=0)
        )


class RangeSet:
    """Disjoint ranges `[start, stop)` in use, to find an overlap in O(log n)."""

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, stop: int) -> bool:
        """Add a range that is not empty; False, and nothing added, if it overlaps with another."""
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] < stop:
            return False
        if index and self._stops[index - 1] > start:
            return False
        self._starts.insert(index, start)
        self._stops.insert(index, stop)
        return True

    def remove(self, start: int) -> None:
        """Remove the range that begins at `start`. Raises KeyError if there is none."""
        index = bisect_left(self._starts, start)
        if index == len(self._starts) or self._starts[index] != start:
            raise KeyError(start)
        del self._starts[index], self._stops[index]
