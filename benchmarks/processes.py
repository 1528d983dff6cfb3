"""What processes cost: CPU time and proportional memory, as the kernel counts them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            parent = _stat(int(entry.name))
            if parent is not None:
                children.setdefault(int(parent[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += sorted(children.get(each, []))
    return found


def role(pid: int) -> str:
    """What a process of the daemon is for, from its command line: `supervisor`, `frontend`, `worker`, …"""
    words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    modules = [word.rsplit(".", 1)[-1] for word in words if word.startswith("tensord.")]
    return modules[0] if modules else "supervisor"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; of one that has ended, none."""
    fields = _stat(pid)
    return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def own_bytes(pid: int) -> int:
    """Proportional memory (PSS) without shared memory: arenas and rings belong to nobody alone."""
    lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Pss")}
    return (kib["Pss"] - kib["Pss_Shmem"]) * 1024


def total_cpu_seconds(pids: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """CPU time so far by role."""
    return {role: sum(map(cpu_seconds, each)) for role, each in pids.items()}


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, which can hold spaces: from the state on, which is index 0."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from."""

    cores: int
    cpu: str
    kernel: str

    @classmethod
    def this(cls) -> "Machine":
        """This machine, with the cores that we may use."""
        lines = (PROC / "cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
        return cls(len(os.sched_getaffinity(0)), names[0] if names else os.uname().machine, os.uname().release)
