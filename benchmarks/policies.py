"""What policies cost: the front end's time per request under each, against plain FCFS with fixed batches."""

import time
from pathlib import Path
from typing import Final

from tensord.daemon import control

from . import processes
from .cases import PAYLOADS, THROUGHPUT
from .generator import run
from .hop import SETTLE_S
from .results import Policies, noted
from .served import Daemon, serve, write_identity
from .timing import Timing

PAYLOAD: Final = PAYLOADS[0]
PLAIN: Final = "FCFS"
"""The setting that the others are compared with: the defaults."""

SETTINGS: Final[dict[str, dict[str, control.Setting]]] = {
    PLAIN: {"order": "fcfs"},
    "SJF": {"order": "sjf"},
    "HRRN": {"order": "hrrn"},
    "MLFQ": {"order": "mlfq"},
    "EDF": {"order": "edf"},
    "AIMD": {"batching": "aimd"},
    "preferred sizes": {"preferred_batches": "8,16,32"},
    "CoDel": {"codel_target_ms": 20},
    "a gradient limit": {"adaptive_concurrency": True},
    "no check of deadlines": {"deadline_check": False},
}


def measure(directory: Path, timing: Timing, failures: list[str]) -> Policies:
    """CPU time per request of the front end under each setting, by turns."""
    write_identity(directory / "models", PAYLOAD.model, PAYLOAD.floats, PAYLOAD.max_batch)
    found = Policies({})
    with noted(failures, "policies"), serve(directory, {}) as daemon:
        for repetition in range(timing.repetitions):
            timing.say(f"policies, repetition {repetition + 1}")
            for name, knobs in SETTINGS.items():
                daemon.set({f"{PAYLOAD.model}.{knob}": value for knob, value in knobs.items()})
                found.cpu_us.setdefault(name, []).append(_sample(daemon, timing))
                daemon.set({f"{PAYLOAD.model}.{knob}": None for knob in knobs})
    return found


def _sample(daemon: Daemon, timing: Timing) -> float:
    time.sleep(SETTLE_S)
    looks: list[float] = []

    def look() -> None:
        looks.append(processes.total_cpu_seconds(daemon.pids)["frontend"])

    window = timing.window(slow=False)
    sample = run("tensord", daemon.socket, PAYLOAD.request, "inline", *THROUGHPUT, *window, look=look)
    return (looks[1] - looks[0]) / sample.measured.answered * 1e6
