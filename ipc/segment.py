"""Shared memory that the daemon's own processes map: POSIX segments, unlinked the moment they exist.

The only user of posix_ipc. A segment has a name for the 10 to 35 µs between create and unlink; a process
killed just then leaves a file, so the name carries its maker's pid and `sweep` removes what dead makers left.
"""

import contextlib
import mmap
import os
import re
from pathlib import Path
from typing import Final

import posix_ipc

from .errors import NoMemory

_NAME: Final = re.compile(r"^tensord-(\d+)-[0-9a-f]+$")
_SHM: Final = Path("/dev/shm")  # noqa: S108 - where Linux shows POSIX shared memory; only our own names are touched


class Segment:
    """A mapped range of shared memory. Its bytes are zero when it is made, and are gone with the last process."""

    def __init__(self, fd: int, nbytes: int) -> None:
        """Map an inherited or received file descriptor, which stays open and belongs to the segment."""
        self.fd = fd
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, nbytes: int) -> "Segment":
        """Make, reserve and map a segment that no other process can open by name.

        The memory is reserved at once: writing to it later can't fail for lack of room.
        Raises NoMemory when /dev/shm or the cgroup has none.
        """
        name = f"/tensord-{os.getpid()}-{os.urandom(6).hex()}"
        try:
            made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=nbytes)
            made.unlink()
        except (OSError, posix_ipc.Error) as error:
            raise NoMemory(f"a shared-memory segment of {nbytes} bytes ({error})") from error
        try:
            os.posix_fallocate(made.fd, 0, nbytes)
            return cls(made.fd, nbytes)
        except OSError as error:
            os.close(made.fd)
            raise NoMemory(f"{nbytes} bytes in /dev/shm ({error.strerror})") from error

    def close(self) -> None:
        """Unmap and close. Views of it must be gone; a view that is still held keeps the mapping until it goes."""
        self.view.release()
        with contextlib.suppress(BufferError):  # somebody still holds a view or tensor: the mapping goes with that
            self._map.close()
        os.close(self.fd)


def sweep() -> list[str]:
    """Remove segments whose maker died between create and unlink; return their names."""
    removed = []
    for path in _SHM.glob("tensord-*"):
        match = _NAME.match(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed
