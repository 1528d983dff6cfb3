"""Large requests: cut into parts that fit a batch, and put together again.

A request of more rows than a batch has becomes several *parts*, each a Request of its own to the scheduler, with the
arrival, deadline, bucket and tenant of the whole. Parts are taken in order, may share batches with other requests,
and run on several workers at once.

    cut()  → one Request per part → submit() each
    Assembly.end(part, error?)      once for each part, however it ended: True once, when the whole is to be answered

A part that a dead worker gives back runs again and has not ended. The whole is answered when all its parts have ended:
one that runs while another fails still writes its rows, and an answer promises that nobody does.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

from tensord.ipc.errors import TensordError

PartT = TypeVar("PartT")


def cut(rows: int, rows_max: int, preferred: Sequence[int] = ()) -> list[int]:
    """The rows of the parts of a request, each at most `rows_max`, together `rows`.

    Where a preferred size (ascending) is not beyond `rows_max`, all parts have the largest such size, and the rest
    comes last. Otherwise their number is the least possible and they differ by at most one row, the larger first:
    130 rows at 64 are 44 + 43 + 43, since a last batch of 2 would take nearly as long as a whole one.
    """
    if rows <= rows_max:
        return [rows]
    size = max((each for each in preferred if each <= rows_max), default=0)
    if size:
        whole, rest = divmod(rows, size)
        return [size] * whole + [rest] * (rest > 0)
    parts = -(-rows // rows_max)
    small, larger = divmod(rows, parts)
    return [small + 1] * larger + [small] * (parts - larger)


class Assembly(Generic[PartT]):
    """The parts of one request, and its one outcome: complete when all parts are, or else the first error.

    In whatever order parts end, end() returns True exactly once: with the last of them, those included that were
    never submitted because the whole had failed.
    """

    __slots__ = ("_open", "error", "parts")

    def __init__(self, parts: Sequence[PartT]) -> None:
        self.parts = tuple(parts)
        """In the order of their rows."""
        self._open = dict.fromkeys(self.parts)
        self.error: TensordError | None = None
        """What decides the outcome, where it is not success."""

    def end(self, part: PartT, error: TensordError | None = None) -> bool:
        """A part is done, or failed, expired, was refused or cancelled: `error`. It has not ended before.

        True: answer the request now, with `self.error` where there is one, else with the results of all parts. After
        the first error the parts in open() that wait should be cancelled; those that run are waited for.
        """
        del self._open[part]
        if error is not None:
            self.fail(error)
        return not self._open

    def fail(self, error: TensordError) -> None:
        """The request fails as a whole: a part did, or it is cancelled, or its client is gone. The first one counts."""
        if self.error is None:
            self.error = error

    def open(self) -> tuple[PartT, ...]:
        """The parts that have not ended, in order."""
        return tuple(self._open)
