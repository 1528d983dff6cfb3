"""The arenas of one connection, as the client uses them: mapped memory, and slots leased from it.

A slot is one range of an arena that holds all inputs and outputs of one request. It goes back when its
holder has released it *and* the daemon has sent the final answer of what ran in it: until then a worker
may still write there. All arenas end with their connection; arrays that still view one keep its memory,
and nothing else, alive.
"""

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ..allocator import RangeAllocator
from ..arena import map_arena
from ..errors import ArenaQuotaExceeded, BadRequest, InternalError, SlotInUse, TooManyArenas
from ..limits import ARENAS_PER_CONNECTION_MAX
from ..tensors import align
from .arrays import Array
from .model import RequestPlan

ARENA_BYTES: Final = 64 * 1024 * 1024
"""Size of a client's first arena unless one request needs more: a hundred images of 588 KiB."""


class ClientArena:
    """One arena: its number on the wire and its memory."""

    def __init__(self, number: int, nbytes: int, fd: int) -> None:
        """Map the arena and close `fd`. Raises InternalError if it is not sealed at its size."""
        self.number = number
        self.nbytes = nbytes
        try:
            self._mapping = map_arena(fd, nbytes)
        except (BadRequest, OSError, ValueError) as error:
            raise InternalError(f"arena {number} cannot be used: {error}") from error
        finally:
            os.close(fd)
        self.memory: Array = np.frombuffer(self._mapping, np.uint8)
        self.allocator = RangeAllocator(nbytes)


class ArenaSlot:
    """A leased range of an arena. Its inputs are arrays to write, its outputs arrays to read after an answer."""

    def __init__(self, pool: "ArenaPool", arena: ClientArena, base: int, plan: RequestPlan) -> None:
        self.pool = pool
        self.arena = arena
        self.base = base
        self.plan = plan
        self.inputs = plan.input_views(arena.memory, base)
        """The inputs that it holds, by name."""
        self.outputs = plan.output_views(arena.memory, base)
        """The outputs by name, as large as they may be."""
        self.in_flight = False
        self.released = False

    def results(self, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """The outputs in the model's order; of these shapes, where their sizes came from the data."""
        outputs = self.plan.output_views(self.arena.memory, self.base, shapes) if shapes else self.outputs
        return list(outputs.values())

    def begin(self) -> None:
        """A request will run in the slot. Raises SlotInUse while another one does."""
        with self.pool.lock:
            if self.released:
                raise BadRequest("slot", "released", "lease another one")
            if self.in_flight:
                raise SlotInUse(self.base, self.plan.slot_bytes)
            self.in_flight = True

    def answered(self) -> None:
        """The final answer is here: nobody else writes into the slot any more."""
        with self.pool.lock:
            self.in_flight = False
            if self.released:
                self.arena.allocator.free(self.base)

    def release(self) -> None:
        """Give the slot back, now or when what is in flight has been answered. Again: no effect."""
        with self.pool.lock:
            if self.released:
                return
            self.released = True
            if not self.in_flight:
                self.arena.allocator.free(self.base)
        self.pool.on_release()


class ArenaPool:
    """All arenas of one connection. Safe in threads."""

    def __init__(self, arena_bytes: int, on_release: Callable[[], object]) -> None:
        self.lock = threading.Lock()
        self.on_release = on_release
        """Called outside the lock when a slot or the right to attach came back."""
        self._arena_bytes = arena_bytes
        self._arenas: list[ClientArena] = []
        self._attaching = False

    def lease(self, plan: RequestPlan) -> ArenaSlot | None:
        """A slot in the first arena that has room for it, or None."""
        with self.lock:
            for arena in self._arenas:
                base = arena.allocator.allocate(plan.slot_bytes)
                if base is not None:
                    return ArenaSlot(self, arena, base, plan)
        return None

    def begin_attach(self) -> bool:
        """Whether the caller may attach an arena now: one at a time, or a burst would attach one each."""
        with self.lock:
            may, self._attaching = not self._attaching, True
        return may

    def end_attach(self) -> None:
        """What `begin_attach` allowed is over, with or without a new arena."""
        self._attaching = False
        self.on_release()

    def sizes_to_attach(self, slot_bytes: int, arena_bytes_max: int) -> list[int]:
        """Sizes of a further arena to ask for, the best first. Raises ArenaQuotaExceeded or TooManyArenas."""
        smallest = align(slot_bytes, mmap.PAGESIZE)
        if smallest > arena_bytes_max:
            raise ArenaQuotaExceeded(slot_bytes, arena_bytes_max, "arena_bytes_max")
        if len(self._arenas) >= ARENAS_PER_CONNECTION_MAX:
            raise TooManyArenas(ARENAS_PER_CONNECTION_MAX)
        usual = min(align(self._arena_bytes, mmap.PAGESIZE), arena_bytes_max)
        return [usual, smallest] if usual > smallest else [smallest]

    def add(self, number: int, nbytes: int, fd: int) -> None:
        """Use an arena that the daemon has attached. Raises InternalError; `fd` is closed in any case."""
        arena = ClientArena(number, nbytes, fd)
        with self.lock:
            self._arenas.append(arena)

    def could_hold(self, slot_bytes: int) -> bool:
        """Whether a slot of this size will fit when others have come back."""
        return any(arena.nbytes >= slot_bytes for arena in self._arenas)

    @property
    def leased(self) -> int:
        """Slots that have not come back."""
        with self.lock:
            return sum(arena.allocator.statistics().ranges for arena in self._arenas)

    @property
    def attached_bytes(self) -> int:
        """Bytes of all arenas."""
        return sum(arena.nbytes for arena in self._arenas)
