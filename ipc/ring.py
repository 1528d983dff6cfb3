"""Descriptor rings: a single producer hands small messages to a single consumer through shared memory.

Theory
------
A ring is an array of cells of 64 bytes. A message takes one or more consecutive cells (it never wraps:
a message that does not fit before the end is preceded by padding cells) and begins with

    ┌ generation u32 │ sequence u32 │ kind u16 │ cells u16 │ nbytes u32 ┐  16 bytes, then the body

Which cells the consumer may read is *not* in this memory. The producer writes the cells, then adds their
number to an eventfd; the consumer believes only the sum that reading the eventfd returns. So the tail is a
counter in the kernel, the system call is the memory barrier on every CPU, and no flag can be seen before
its data (a flaw known of shared-memory queues written in Python). The cells that are free again are not in
this memory either: the producer learns it from the protocol (a batch's answer means that its descriptor
has been consumed) and calls `reclaim`.

    who                      may read           may write
    producer                 nothing            cells it has reclaimed, until it rings
    consumer                 cells announced    nothing
    a dead generation        -                  anything, and is not believed: see below

Every message carries its producer's generation and a sequence number. The consumer accepts exactly the
generation that it was told of and exactly the next number; anything else is RingBroken: the other side is
broken or dead, and is restarted with new rings. Nothing in a ring is trusted for memory safety: lengths
are checked against the cells announced, bodies are copied out before they are looked at.

Rules of this file
1. No system call, no clock: doorbells are rung by the caller, once for all that was published in one turn.
2. Positions only grow, and are taken modulo the number of cells at the moment of access.
"""

import struct
from typing import Final

CELL_BYTES: Final = 64
HEAD: Final = struct.Struct("<IIHHI")
assert HEAD.size == 16
PADDING: Final = 0xFFFF
"""Kind of the cells before the ring's end that a message did not fit into."""


class RingFull(Exception):
    """The message needs more free cells than there are. The caller waits for answers, or sized the ring wrongly."""


class RingBroken(Exception):
    """The producer announced something that a correct producer of this generation never writes."""


def cells_for(nbytes: int) -> int:
    """Cells that a body of `nbytes` bytes takes."""
    return -(-(HEAD.size + nbytes) // CELL_BYTES)


class Producer:
    """The writing end."""

    __slots__ = ("_cells", "_free", "_generation", "_position", "_sequence", "_unannounced", "_view")

    def __init__(self, view: memoryview, generation: int) -> None:
        self._view = view
        self._cells = len(view) // CELL_BYTES
        self._free = self._cells
        self._generation = generation
        self._position = 0
        self._sequence = 0
        self._unannounced = 0

    def publish(self, kind: int, body: bytes | memoryview) -> int:
        """Write one message and return the cells it took, padding included. Raises RingFull.

        The consumer does not see it before the caller rings the doorbell with `take_unannounced()`.
        """
        nbytes = len(body)
        cells = cells_for(nbytes)
        start = self._position % self._cells
        padding = self._cells - start if start + cells > self._cells else 0
        if cells + padding > self._free:
            raise RingFull(f"{cells + padding} cells needed, {self._free} of {self._cells} free")
        if padding:
            HEAD.pack_into(self._view, start * CELL_BYTES, self._generation, self._sequence, PADDING, padding, 0)
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            start = 0
        offset = start * CELL_BYTES
        HEAD.pack_into(self._view, offset, self._generation, self._sequence, kind, cells, nbytes)
        self._view[offset + HEAD.size : offset + HEAD.size + nbytes] = body
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        taken = cells + padding
        self._position += taken
        self._free -= taken
        self._unannounced += taken
        return taken

    def take_unannounced(self) -> int:
        """Cells published since the last call: what to ring the doorbell with."""
        count, self._unannounced = self._unannounced, 0
        return count

    def reclaim(self, cells: int) -> None:
        """The consumer is through with the oldest `cells` cells."""
        self._free += cells
        assert self._free <= self._cells

    def close(self) -> None:
        """Let go of the memory."""
        self._view = memoryview(b"")

    @property
    def free_cells(self) -> int:
        """Cells that can be written now."""
        return self._free


class Consumer:
    """The reading end."""

    __slots__ = ("_available", "_cells", "_generation", "_position", "_sequence", "_view")

    def __init__(self, view: memoryview, generation: int) -> None:
        self._view = view
        self._cells = len(view) // CELL_BYTES
        self._generation = generation
        self._position = 0
        self._sequence = 0
        self._available = 0

    def announce(self, cells: int) -> None:
        """The doorbell said that `cells` more cells are written. Raises RingBroken if there can't be as many."""
        self._available += cells
        if self._available > self._cells:
            raise RingBroken(f"{self._available} cells announced in a ring of {self._cells}")

    def take(self) -> tuple[int, bytes, int] | None:
        """The next message as kind, body and cells consumed (padding included); None if there is none.

        Raises RingBroken.
        """
        consumed = 0
        while self._available:
            offset = self._position % self._cells * CELL_BYTES
            generation, sequence, kind, cells, nbytes = HEAD.unpack_from(self._view, offset)
            if generation != self._generation or sequence != self._sequence:
                raise RingBroken(
                    f"message {sequence} of generation {generation}; expected {self._sequence} of {self._generation}"
                )
            room = self._cells - self._position % self._cells
            if not 0 < cells <= min(self._available, room) or HEAD.size + nbytes > cells * CELL_BYTES:
                raise RingBroken(f"message of {nbytes} bytes in {cells} cells, {self._available} announced")
            body = bytes(self._view[offset + HEAD.size : offset + HEAD.size + nbytes])
            self._position += cells
            self._available -= cells
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            consumed += cells
            if kind != PADDING:
                return kind, body, consumed
        return None

    def close(self) -> None:
        """Let go of the memory."""
        self._view = memoryview(b"")
