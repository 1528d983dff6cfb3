"""Client arenas: made, counted against the limit, handed to workers, and forgotten."""

from collections.abc import Iterator
from dataclasses import dataclass

from tensord.ipc.errors import ArenaQuotaExceeded, NoMemory
from tensord.ipc.limits import ARENA_PAGE_BYTES, ARENAS_MAX
from tensord.ipc.tensors import align


@dataclass(frozen=True, slots=True)
class MadeArena:
    """An arena that a client may use; the supervisor keeps the descriptor for workers that start later."""

    arena: int
    fd: int
    nbytes: int


class ArenaAccounts:
    """Bytes promised to clients, made or being made, never exceed the limit."""

    def __init__(self) -> None:
        self._made: dict[int, MadeArena] = {}
        self._promised_bytes = 0
        self._promised = 0
        self._next = 1

    @property
    def promised_bytes(self) -> int:
        """Bytes of all arenas, made and being made."""
        return self._promised_bytes

    def promise(self, nbytes: int, limit_bytes: int) -> int:
        """The number of the arena to be made. Raises ArenaQuotaExceeded or NoMemory."""
        nbytes = align(nbytes, ARENA_PAGE_BYTES)
        if self._promised >= ARENAS_MAX:
            raise NoMemory(f"one arena more: all clients together have {ARENAS_MAX}")
        if self._promised_bytes + nbytes > limit_bytes:
            raise ArenaQuotaExceeded(self._promised_bytes + nbytes, limit_bytes, "arenas_bytes_max")
        self._promised_bytes += nbytes
        self._promised += 1
        self._next += 1
        return self._next - 1

    def break_promise(self, nbytes: int) -> None:
        """It could not be made."""
        self._promised_bytes -= align(nbytes, ARENA_PAGE_BYTES)
        self._promised -= 1

    def made(self, arena: int, fd: int, nbytes: int) -> MadeArena:
        """It is made; `fd` is the supervisor's to close when it is returned."""
        self._made[arena] = MadeArena(arena, fd, nbytes)
        return self._made[arena]

    def returned(self, arena: int) -> MadeArena | None:
        """Forget it; the caller closes its descriptor. None if it is unknown."""
        made = self._made.pop(arena, None)
        if made is not None:
            self.break_promise(made.nbytes)
        return made

    def __iter__(self) -> Iterator[MadeArena]:
        return iter(list(self._made.values()))

    def __len__(self) -> int:
        return len(self._made)
