"""Doorbells: eventfds that carry how many cells a ring's producer has published since the last look."""

import os


class Doorbell:
    """One eventfd, shared by one ringer and one listener.

    Its counter *is* the ring's tail: `ring(n)` adds n, `answer()` takes all. Both are system calls, and so
    the memory barrier between the ring's cells and their reader on every CPU.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int | None = None) -> None:
        """Make a doorbell, or take over one that was inherited or received."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd

    def ring(self, count: int) -> None:
        """Announce `count` more cells."""
        os.eventfd_write(self.fd, count)  # SYNC POINT D: pairs with answer()

    def answer(self) -> int:
        """Cells announced since the last answer; 0 if none. Never waits."""
        try:
            return os.eventfd_read(self.fd)  # SYNC POINT D: pairs with ring()
        except BlockingIOError:
            return 0

    def fileno(self) -> int:
        """For poll and add_reader."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
