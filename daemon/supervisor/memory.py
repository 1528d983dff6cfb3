"""How much memory the instance may still take without waking the OOM killer, which picks its victim itself."""

from pathlib import Path
from typing import Final

import psutil

from tensord.ipc.errors import NoMemory

RESERVE_BYTES: Final = 256 * 1024 * 1024
"""Left to everything else. Shared memory cannot be swapped out by those who need room, nor reclaimed."""

CGROUPS: Final = Path("/sys/fs/cgroup")


def check_room(nbytes: int) -> None:
    """Raise NoMemory if the host, or a cgroup that this process is in, has not this much and the reserve."""
    try:
        room = available_bytes() - RESERVE_BYTES
    except OSError as error:  # no descriptor is left to read it with
        raise NoMemory(f"a file descriptor ({error.strerror})") from error
    if nbytes > room:
        raise NoMemory(f"{nbytes} bytes of shared memory ({max(room, 0)} are free without the reserve)")


def available_bytes(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """What can be taken now: the least of the host's available memory and what each enclosing cgroup has left."""
    available = int(psutil.virtual_memory().available)
    for directory in _own_cgroups(cgroups, membership):
        try:
            limit = (directory / "memory.max").read_text().strip()
            current = int((directory / "memory.current").read_text())
        except (OSError, ValueError):
            continue  # the root, or a controller that is not there
        if limit != "max":
            available = min(available, int(limit) - current)
    return available


def _own_cgroups(cgroups: Path, membership: Path) -> list[Path]:
    """This process's cgroup (version 2) and those around it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    own = cgroups / path.lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(cgroups))]
