"""Client arenas: sealed memfds, made by the daemon and handed to a client by SCM_RIGHTS.

The seals keep the size fixed: a client cannot truncate it under a worker that reads it (which would
be a SIGBUS). It can punch holes into it, and then reads zeros: its own data, its own loss.
"""

import ctypes
import fcntl
import mmap
import os
from typing import Final

from .errors import BadRequest, NoMemory

MFD_NOEXEC_SEAL: Final = 0x0008
"""memfd_create(2), since Linux 6.3: never executable."""

F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x0001
F_SEAL_SHRINK: Final = 0x0002
F_SEAL_GROW: Final = 0x0004
SEALS: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
"""fcntl(2): the size is final, and so are the seals."""

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
"""fallocate(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


def create_arena(nbytes: int) -> int:
    """File descriptor of a sealed memfd of `nbytes` bytes, its pages reserved. Raises NoMemory.

    Takes about 0.4 ms per MiB, without the GIL: call it in a thread where a loop must go on.
    """
    try:
        try:
            fd = os.memfd_create("tensord", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL)
        except OSError:  # a kernel before 6.3
            fd = os.memfd_create("tensord", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise NoMemory(f"a memfd ({error.strerror})") from error
    try:
        os.fchmod(fd, 0o600)
        os.posix_fallocate(fd, 0, nbytes)
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(fd)
        raise NoMemory(f"an arena of {nbytes} bytes ({error.strerror})") from error
    return fd


def map_arena(fd: int, nbytes: int) -> mmap.mmap:
    """Map an arena after checking that its size is `nbytes` and final. Raises BadRequest.

    The mapping holds a duplicate of the descriptor, so that `fd` may be closed.
    """
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:  # a file of another kind
        seals = 0
    if seals & SEALS != SEALS or os.fstat(fd).st_size != nbytes:
        raise BadRequest("arena", f"a file of {os.fstat(fd).st_size} bytes", f"expected a sealed memfd of {nbytes}")
    return mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def release_pages(fd: int, nbytes: int) -> None:
    """Give the memory of an arena back although somebody may still map it: it reads as zeros from now on.

    A client that keeps its mapping after it has given the arena back would otherwise hold memory that is
    counted as free.
    """
    _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(nbytes))
