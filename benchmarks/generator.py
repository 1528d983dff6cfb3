"""The load generator and the echo, compiled and run."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from .request import Request

HERE: Final = Path(__file__).parent
PATIENCE_S: Final = 60.0
"""Beyond a run's own duration: connecting, prefaulting arenas, draining."""

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""

_libc = ctypes.CDLL(None)

Target = Literal["tensord", "echo", "http"]
Lane = Literal["inline", "arena"]


class Failed(Exception):
    """A measurement that gave no figures: something broke, or an answer was wrong or missing."""


class Counts(msgspec.Struct, frozen=True):
    """How requests ended."""

    answered: int
    """In time, and right."""
    late: int
    """Right, but behind their deadline."""
    wrong: int
    lost: int
    unsent: int
    """Given up by the generator, since their deadline passed before there was room to send them."""
    failed: int
    errors: dict[str, int]
    """The failed ones by code."""


class Durations(msgspec.Struct, frozen=True):
    """In microseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float
    samples: int


class Sample(msgspec.Struct, frozen=True):
    """What the load generator prints."""

    connections: int
    depth: int
    request_bytes: int
    answer_bytes: int
    rate: float
    """Arrivals per second that were asked for; 0: a closed loop."""
    offered: int
    """Arrivals in the window, of an open loop."""
    sent: int
    checked: int
    """Answers of which every byte was compared."""
    measured: Counts
    """Of the window."""
    total: Counts
    """Of the whole run, with warm-up and end."""
    latency_us: Durations
    send_delay_us: Durations
    """How long after its scheduled arrival a request was written, in an open loop."""
    seconds: float
    per_s: float
    cpu_s: float
    """The generator's own, in the window."""

    @property
    def cpu_share(self) -> float:
        """Of one core. Near 1, the generator and not the server is the limit."""
        return self.cpu_s / self.seconds


def build() -> Path:
    """Compile both programs and return their folder. Raises Failed."""
    done = subprocess.run(["make", "--silent", "-C", str(HERE)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the load generator does not compile: {done.stderr}")
    return HERE / "build"


def run(
    to: Target,
    socket: Path | str,
    request: Request,
    lane: Lane,
    connections: int,
    depth: int,
    seconds: float,
    warmup_s: float,
    *,
    rate: float = 0.0,
    deadline_ms: float = 0.0,
    seed: int = 1,
    cores: Collection[int] = (),
    look: Callable[[], None] = lambda: None,
) -> Sample:
    """One run of the load generator. Raises Failed, and so for a single wrong or missing answer.

    In a closed loop nobody has a reason to refuse a request, so there an error is a failure, too. `look` is called when
    the window begins and when it ends.
    """
    command = [str(HERE / "build" / "load"), "--to", to, "--socket", str(socket), *request.arguments]
    command += ["--lane", lane, "--connections", str(connections), "--depth", str(depth)]
    command += ["--seconds", str(seconds), "--warmup", str(warmup_s), "--announce"]
    if rate:
        command += ["--rate", str(rate), "--deadline-ms", str(deadline_ms), "--seed", str(seed)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: prepare(cores, signal.SIGKILL)
    )
    limit = threading.Timer(seconds + warmup_s + PATIENCE_S, child.kill)
    limit.start()
    try:
        assert child.stdout is not None
        assert child.stderr is not None
        for _ in ("begin", "end"):
            child.stdout.readline()
            look()
        output, complaint = child.stdout.read(), child.stderr.read()  # of the latter, a line at most
        child.wait()
    finally:
        limit.cancel()
        child.kill()
        child.communicate()
    if child.returncode:
        raise Failed(complaint.decode().strip() or f"the load generator ended with {child.returncode}")
    sample = msgspec.json.decode(output, type=Sample)
    if not rate and (sample.total.failed or not sample.measured.answered):
        raise Failed(f"{sample.measured.answered} answers, and errors by code: {sample.total.errors}")
    return sample


@dataclass(frozen=True, slots=True)
class Echo:
    """A running echo."""

    socket: Path
    pids: dict[str, list[int]]


@contextlib.contextmanager
def start_echo(socket: Path, cores: Collection[int] = ()) -> Iterator[Echo]:
    """The echo, on these cores, while the context lasts. Raises Failed."""
    with subprocess.Popen(
        [str(HERE / "build" / "echo"), str(socket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: prepare(cores, signal.SIGKILL),
    ) as echo:  # it ends when its standard input does
        assert echo.stdout is not None
        if echo.stdout.readline() != b"listening\n":
            raise Failed(f"the echo ended with {echo.wait()}")
        yield Echo(socket, {"echo": [echo.pid]})


def prepare(cores: Collection[int], ends_by: int) -> None:
    """In a new process: its cores, and its end with the run's."""
    _libc.prctl(PR_SET_PDEATHSIG, ends_by)
    if cores:
        os.sched_setaffinity(0, cores)
