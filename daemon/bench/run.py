"""One measurement, from the first connection to the last answer."""

import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Final

from tensord.ipc.client.arrays import Array
from tensord.ipc.errors import ConnectionLost
from tensord.ipc.tensors import ModelSpec

from .. import control
from ..exits import Exit
from .connection import LoadConnection
from .inputs import random_inputs
from .load import DRAIN_NS, DRAIN_STOPPED_NS
from .plan import BadOption, Form, Plan, form
from .processes import LoadFailure, Processes, shares
from .speech import Job, Progress
from .tally import Tally, together
from .watch import Usage, Watch, usages

SETUP_NS: Final = 60_000_000_000
"""How long opening all connections may take: thousands of them, or arenas of gigabytes, take seconds."""

HEAD_START_NS: Final = 50_000_000
"""From the order to begin to the begin: all processes have read it by then."""

MARGIN_NS: Final = 5_000_000_000
"""How much later than it must a process of the load may end."""

DESCRIPTORS_SPARE: Final = 32

Display = Callable[[str, float, float, Progress], None]
"""Told what is going on, seconds since it began, seconds that it will take (0: unknown), and what there is so far."""


@dataclass(frozen=True)
class Measurement:
    """All that was seen."""

    plan: Plan
    form: Form
    spec: ModelSpec
    processes: int
    """Of the load."""
    tally: Tally
    before: control.InstanceStatus | None
    """What the daemon said before the warm-up,"""
    after: control.InstanceStatus | None
    """and after the last answer."""
    usages: dict[str, tuple[Usage, Usage]]
    """CPU time of the daemon's processes at begin and end of the window, unless they ended within it."""
    silence: str
    """Why nothing is known of the daemon."""
    interrupted: bool
    """Whether somebody ended it early."""


class Interruption:
    """Ctrl-C, noticed instead of raised; a second one is raised."""

    def __init__(self) -> None:
        self.happened = False
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.happened = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)


def measure(plan: Plan, socket: str, watch: Watch, display: Display) -> Measurement:
    """Do what the plan says to the daemon on this socket, which `watch` looks at meanwhile.

    Raises BadOption, TensordError, LoadFailure; and KeyboardInterrupt when it was interrupted before it began.
    """
    plan.check()
    spec, fitted = _look(plan, socket)
    cores = len(os.sched_getaffinity(0))
    jobs = [Job(socket, plan, fitted, share.start, share.stop) for share in shares(plan, cores)]
    _check_descriptors(jobs)
    with Interruption() as interruption, Processes(jobs) as processes:
        _wait_ready(processes, interruption, display)
        before = watch.status()
        found = _run(plan, processes, interruption, display, before)
        tally = together([process.tally for process in processes.all if process.tally is not None])
        after = watch.status()
    return Measurement(plan, fitted, spec, len(jobs), tally, before, after, found, watch.silence, interruption.happened)


def _look(plan: Plan, socket: str) -> tuple[ModelSpec, Form]:
    """The model, and what the plan comes to with it."""

    def inputs_of(spec: ModelSpec) -> dict[str, Array]:
        plan.check_rows(spec)
        return random_inputs(spec, plan.rows, plan.seed)

    connection = LoadConnection(socket, plan.model, inputs_of)
    try:
        assert connection.session.welcome is not None
        return connection.spec, form(plan, connection.plan, connection.session.welcome)
    finally:
        connection.close(ConnectionLost("it was only a look"))


def _check_descriptors(jobs: list[Job]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(job.stop - job.first for job in jobs) + DESCRIPTORS_SPARE
    if needed > most != resource.RLIM_INFINITY:
        remedy = f"a process may have {most:,} descriptors open, and {needed:,} are needed: raise `ulimit -Hn`"
        raise BadOption("--clients", f"{jobs[-1].stop:,}", remedy)


def _wait_ready(processes: Processes, interruption: Interruption, display: Display) -> None:
    began_ns = time.monotonic_ns()

    def show() -> None:
        display("connecting", (time.monotonic_ns() - began_ns) / 1e9, 0.0, processes.progress)

    there = processes.wait(lambda: processes.ready or interruption.happened, began_ns + SETUP_NS, show)
    if interruption.happened:
        raise KeyboardInterrupt
    if not there:
        seconds = SETUP_NS // 1_000_000_000
        raise LoadFailure(f"the connections were not open after {seconds} s: use fewer --clients", Exit.FAILED)


def _run(
    plan: Plan,
    processes: Processes,
    interruption: Interruption,
    display: Display,
    status: control.InstanceStatus | None,
) -> dict[str, tuple[Usage, Usage]]:
    """Warm up, measure, and wait for the last answers; what the daemon's processes used within the window."""
    start_ns = time.monotonic_ns() + HEAD_START_NS
    measured_ns = start_ns + int(plan.warmup_s * 1e9)
    end_ns = measured_ns + int(plan.seconds * 1e9)

    def show() -> None:
        now = time.monotonic_ns()
        if now < measured_ns:
            display("warming up", max(0, now - start_ns) / 1e9, plan.warmup_s, processes.progress)
        elif now < end_ns:
            display("measuring", (now - measured_ns) / 1e9, plan.seconds, processes.progress)
        else:
            display("draining", (now - end_ns) / 1e9, 0.0, processes.progress)

    def over() -> bool:
        return interruption.happened or processes.any_finished

    processes.begin(start_ns)
    early = processes.wait(over, measured_ns, show)
    before = usages(status)
    early = processes.wait(over, end_ns, show) or early
    after = usages(status)
    if not early:
        processes.wait(lambda: processes.finished or interruption.happened, end_ns + DRAIN_NS + MARGIN_NS, show)
    if not processes.finished:
        processes.stop()
        if not processes.wait(lambda: processes.finished, time.monotonic_ns() + DRAIN_STOPPED_NS + MARGIN_NS, show):
            raise LoadFailure("a process of the load does not end: it was killed, and its figures with it", Exit.FAILED)
    return {name: (before[name], after[name]) for name in before if name in after}
