"""Where inline tensors live: leases of rows in the ingest arena. Pure arithmetic over offsets.

Theory
------
Requests that arrive one after the other will mostly run in one batch, so their rows should lie one behind
the other: then the batch is a view and nothing is copied. A *slab* serves one model and one set of inline
tensors. It owns *chunks*; a chunk has room for n rows of every tensor, one region per tensor:

    ┌ input 0: n rows ┬ input 1: n rows ┬ … ┬ output 0: n rows ┬ … ┐

A lease is r consecutive rows at the same place in every region. Leases are handed out by moving a cursor;
they come back in any order (a client that does not read its reply, another that runs in a later batch),
and a chunk begins anew when all of its leases are back. So leasing and releasing are a few additions, a
slow client pins one chunk and not the whole arena, and a lightly used slab keeps reusing the same few
cache-warm rows.

Requests of models with free dimensions differ in size, so that no layout makes a batch of them a view: they share
one slab whose rows are cache lines, and a lease holds a request's tensors one behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tensord.ipc.allocator import RangeAllocator
from tensord.ipc.tensors import align

CHUNK_BYTES: Final = 2 * 1024 * 1024
"""Aim for a chunk, up to a sixteenth of the arena: hundreds of small requests; small enough that a hundred models
share the default arena without giving chunks back all the time."""

CHUNK_ROWS_MIN: Final = 64
"""Rows of a chunk even if that takes more bytes, up to a sixteenth of the arena: a batch of large rows
should be contiguous, too."""


RAGGED_SLAB: Final = ("ragged",)
"""Key of the slab of cache lines."""

SLABS_MAX: Final = 1_024
"""Slabs kept; beyond it those without a chunk are forgotten. A client may ask for any mixture of lanes, and each
is a slab of its own."""


class Chunk:
    """Room for `rows_max` rows of each tensor of a slab."""

    __slots__ = ("base", "cursor", "leases", "regions", "rows_max", "slab")

    def __init__(self, slab: "Slab", base: int, rows_max: int) -> None:
        self.slab = slab
        self.base = base
        self.rows_max = rows_max
        self.cursor = 0
        self.leases = 0
        self.regions: list[int] = []
        offset = base
        for row_bytes in slab.row_bytes:
            self.regions.append(offset)
            offset += align(row_bytes * rows_max)


class Lease:
    """Rows `first` to `first + rows` of every region of a chunk."""

    __slots__ = ("chunk", "first", "rows")

    def __init__(self, chunk: Chunk, first: int, rows: int) -> None:
        self.chunk = chunk
        self.first = first
        self.rows = rows

    def offset(self, tensor: int) -> int:
        """Offset in the arena of this lease's rows of the slab's tensor number `tensor`."""
        chunk = self.chunk
        return chunk.regions[tensor] + self.first * chunk.slab.row_bytes[tensor]

    def release(self) -> None:
        """Give the rows back: nobody can read or write them any more. Once."""
        chunk = self.chunk
        chunk.leases -= 1
        if not chunk.leases:
            chunk.cursor = 0
            if chunk is not chunk.slab.current:
                chunk.slab.retire(chunk)


class Slab:
    """All chunks for one set of tensors."""

    __slots__ = ("_ingest", "_spare", "chunks", "current", "row_bytes")

    def __init__(self, ingest: "Ingest", row_bytes: Sequence[int]) -> None:
        self._ingest = ingest
        self.row_bytes = tuple(row_bytes)
        self.current: Chunk | None = None
        self.chunks = 0
        self._spare: Chunk | None = None

    def lease(self, rows: int) -> Lease | None:
        """`rows` consecutive rows, or None when the arena has no room."""
        chunk = self.current
        if chunk is None or chunk.cursor + rows > chunk.rows_max:
            chunk = self._next_chunk(rows)
            if chunk is None:
                return None
        first = chunk.cursor
        chunk.cursor = first + rows
        chunk.leases += 1
        return Lease(chunk, first, rows)

    def _next_chunk(self, rows: int) -> Chunk | None:
        chunk = self._spare
        if chunk is not None and rows <= chunk.rows_max:
            self._spare = None
        else:
            chunk = self._ingest.make_chunk(self, rows)
            if chunk is None:
                return None
        old, self.current = self.current, chunk
        if old is not None and not old.leases:
            self.retire(old)
        return chunk

    def retire(self, chunk: Chunk) -> None:
        """An empty chunk that is not the current one: keep one for soon, give the others back."""
        if self._spare is None:
            self._spare = chunk
        else:
            self._ingest.free_chunk(chunk)

    def trim(self) -> None:
        """Give back every chunk that is empty."""
        if self._spare is not None:
            self._ingest.free_chunk(self._spare)
            self._spare = None
        if self.current is not None and not self.current.leases:
            self._ingest.free_chunk(self.current)
            self.current = None


@dataclass(frozen=True, slots=True)
class IngestStatistics:
    """What the ingest arena holds."""

    nbytes: int
    """Size of the arena, in bytes."""
    chunk_bytes: int
    """Bytes in chunks, leased or kept for soon."""
    chunks: int
    slabs: int
    leases: int
    """Leases out now."""


class Ingest:
    """The ingest arena's bookkeeping."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._ranges = RangeAllocator(nbytes)
        self._slabs: dict[tuple[object, ...], Slab] = {}
        self._chunks: set[Chunk] = set()

    def slab(self, key: tuple[object, ...], row_bytes: Sequence[int]) -> Slab:
        """The slab of this key, made on first use."""
        slab = self._slabs.get(key)
        if slab is None:
            if len(self._slabs) >= SLABS_MAX:
                self._trim()
                self._slabs = {key: slab for key, slab in self._slabs.items() if slab.chunks}
            slab = self._slabs[key] = Slab(self, row_bytes)
        return slab

    def make_chunk(self, slab: Slab, rows: int) -> Chunk | None:
        """A new chunk for at least `rows` rows: of the usual size, else, when the arena is nearly full, just so."""
        row_bytes = max(1, sum(slab.row_bytes))
        share = self.nbytes // 16
        usual = max(rows, min(CHUNK_ROWS_MIN, share // row_bytes), min(CHUNK_BYTES, share) // row_bytes)
        for rows_max in (usual, rows):
            for _ in range(2):
                base = self._ranges.allocate(sum(align(each * rows_max) for each in slab.row_bytes))
                if base is not None:
                    chunk = Chunk(slab, base, rows_max)
                    self._chunks.add(chunk)
                    slab.chunks += 1
                    return chunk
                self._trim()
        return None

    def free_chunk(self, chunk: Chunk) -> None:
        """Take an empty chunk's range back."""
        assert not chunk.leases
        self._ranges.free(chunk.base)
        self._chunks.remove(chunk)
        chunk.slab.chunks -= 1

    def _trim(self) -> None:
        for slab in self._slabs.values():
            slab.trim()

    def statistics(self) -> IngestStatistics:
        """A snapshot."""
        used = self._ranges.statistics().used_bytes
        leases = sum(chunk.leases for chunk in self._chunks)
        return IngestStatistics(self.nbytes, used, len(self._chunks), len(self._slabs), leases)
