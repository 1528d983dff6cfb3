"""What company costs: a request among a thousand models and ten thousand connections, against one alone."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from . import processes
from .cases import PAYLOADS, THROUGHPUT
from .generator import HERE, Failed, prepare, run
from .hop import SETTLE_S
from .results import Scale, noted
from .served import Daemon, serve, write_identity
from .timing import Timing

MODELS: Final = 1_000
CONNECTIONS: Final = 10_000
PAYLOAD: Final = PAYLOADS[0]
IDLE_RATE: Final = 20.0
"""Requests per second over all of the connections that are idle but for them."""

PATIENCE_S: Final = 30.0

ALONE: Final = "one model, 64 connections"
MANY_MODELS: Final = f"{MODELS:,} models, 64 connections"
BESIDE_IDLE: Final = f"one model, 64 connections beside {CONNECTIONS:,} idle ones"
ALL_BUSY: Final = f"one model, {CONNECTIONS:,} connections, all of them busy"
"""The companies; cost is compared with the first."""


def measure(directory: Path, timing: Timing, failures: list[str]) -> Scale:
    """CPU time per request of the daemon in each company, by turns."""
    for place, models in (("one", 1), ("many", MODELS)):
        first, *others = (f"{PAYLOAD.model}-{number}" for number in range(models))
        repository = directory / place / "models"
        repository.mkdir(parents=True)
        write_identity(repository, first, PAYLOAD.floats, PAYLOAD.max_batch)
        for name in others:
            shutil.copytree(repository / first, repository / name)
    found = Scale({})
    knobs = {f"{PAYLOAD.model}-0": {"queue_max": 2 * CONNECTIONS}}
    with (
        noted(failures, "scale"),
        serve(directory / "one", knobs) as one,
        serve(directory / "many", knobs) as many,
    ):
        for repetition in range(timing.repetitions):
            timing.say(f"scale, repetition {repetition + 1}")
            _sample(found, ALONE, one, THROUGHPUT[0], timing)
            _sample(found, MANY_MODELS, many, THROUGHPUT[0], timing)
            with _idle_connections(one, found):
                _sample(found, BESIDE_IDLE, one, THROUGHPUT[0], timing)
            _sample(found, ALL_BUSY, one, CONNECTIONS, timing)
    return found


def _sample(found: Scale, name: str, daemon: Daemon, connections: int, timing: Timing) -> None:
    time.sleep(SETTLE_S)
    seconds, warmup_s = timing.window(slow=connections > THROUGHPUT[0])
    request = PAYLOAD.request.named(f"{PAYLOAD.model}-0")
    looks: list[float] = []

    def look() -> None:
        looks.append(sum(processes.total_cpu_seconds(daemon.pids).values()))

    sample = run("tensord", daemon.socket, request, "inline", connections, 1, seconds, warmup_s, look=look)
    found.cpu_us.setdefault(name, []).append((looks[1] - looks[0]) / sample.measured.answered * 1e6)


@contextlib.contextmanager
def _idle_connections(daemon: Daemon, found: Scale) -> Iterator[None]:
    """Connections that hardly ever send anything; what each costs in the front end's memory is noted."""
    (frontend,) = daemon.pids["frontend"]
    before = processes.own_bytes(frontend)
    command = [str(HERE / "build" / "load"), "--to", "tensord", "--socket", str(daemon.socket)]
    command += [*PAYLOAD.request.named(f"{PAYLOAD.model}-0").arguments, "--connections", str(CONNECTIONS)]
    command += ["--rate", str(IDLE_RATE), "--deadline-ms", "10000", "--seconds", "600"]
    idle = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: prepare((), signal.SIGKILL))
    try:
        limit = time.monotonic() + PATIENCE_S
        while daemon.status().frontend.connections < CONNECTIONS:
            if time.monotonic() > limit or idle.poll() is not None:
                raise Failed(f"{daemon.status().frontend.connections} of {CONNECTIONS} idle connections")
            time.sleep(0.1)
        if found.connection_bytes is None:  # later, memory that the first ones took is used again
            found.connection_bytes = (processes.own_bytes(frontend) - before) / CONNECTIONS
        yield
    finally:
        idle.kill()
        idle.wait()
        limit = time.monotonic() + PATIENCE_S
        while daemon.status().frontend.connections and time.monotonic() < limit:
            time.sleep(0.1)
