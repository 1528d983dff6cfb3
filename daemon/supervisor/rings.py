"""The rings between one generation of the front end and one generation of a worker."""

import os
from dataclasses import dataclass

from tensord.ipc.doorbell import Doorbell
from tensord.ipc.errors import NoMemory
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
        segments: list[Segment] = []
        fds: list[int] = []
        try:
            for nbytes in (RING_BYTES, DONE_RING_BYTES):
                segments.append(Segment.create(nbytes))
                fds.append(os.dup(segments[-1].fd))
            fds += [Doorbell().fd]
            fds += [Doorbell().fd]
        except (NoMemory, OSError) as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise NoMemory(f"descriptors for a worker's rings ({error.strerror})") from error
            raise
        finally:
            for segment in segments:
                segment.close()
        work, done, work_bell, done_bell = fds
        return cls(generation, (work, done, work_bell, done_bell))

    def close(self) -> None:
        """Close the supervisor's descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = (-1, -1, -1, -1)
