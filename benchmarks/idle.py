"""What a daemon costs that nobody uses."""

import time
from pathlib import Path
from typing import Final

from . import processes
from .results import Idle
from .served import MODELS, copy_model, serve
from .timing import Timing

REST_S: Final = 1.0
"""After the start, until what only a start does is done."""


def measure(directory: Path, timing: Timing) -> Idle:
    """CPU share and memory of each process of a daemon with the project's models and no client."""
    for version in MODELS.glob("*/1"):
        copy_model(directory / "models", version.parent.name)
    timing.say(f"idle, {timing.idle_s:g} s")
    with serve(directory, {}) as daemon:
        time.sleep(REST_S)
        pids, started = daemon.pids, time.monotonic()
        before = processes.total_cpu_seconds(pids)
        time.sleep(timing.idle_s)
        elapsed = time.monotonic() - started
        after = processes.total_cpu_seconds(pids)
        own = {role: sum(processes.own_bytes(pid) for pid in each) for role, each in pids.items()}
    return Idle(
        elapsed,
        {role: (after[role] - before[role]) / elapsed * 100 for role in pids},
        {role: nbytes / 2**20 for role, nbytes in own.items()},
    )
