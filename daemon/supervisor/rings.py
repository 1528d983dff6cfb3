"""The rings between one generation of the front end and one generation of a worker."""

import os
from dataclasses import dataclass

from tensord.ipc.doorbell import Doorbell
from tensord.ipc.limits import DONE_RING_BYTES, RING_BYTES
from tensord.ipc.segment import Segment


@dataclass(slots=True)
class Rings:
    """Made by the supervisor, used by the other two; closed here when the next generation replaces them."""

    generation: int
    fds: tuple[int, int, int, int]
    """Work ring, done ring, work doorbell, done doorbell."""

    @classmethod
    def create(cls, generation: int) -> "Rings":
        """Raises NoMemory."""
        work = Segment.create(RING_BYTES)
        done = Segment.create(DONE_RING_BYTES)
        fds = (os.dup(work.fd), os.dup(done.fd), Doorbell().fd, Doorbell().fd)
        work.close()
        done.close()
        return cls(generation, fds)

    def close(self) -> None:
        """Close the supervisor's descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = (-1, -1, -1, -1)
