"""Overload: arrivals at several times the capacity that do not wait, and how many are answered in time."""

import time
from pathlib import Path

from .cases import OPEN_DEPTH, OVERLOAD, OVERLOADS, Overload
from .generator import run
from .hop import SETTLE_S
from .inprocess import InProcess
from .results import Goodput, noted
from .saturation import best_batch, request_of
from .served import Daemon, copy_model, serve
from .timing import Timing


def measure(directory: Path, offline: InProcess, timing: Timing, failures: list[str]) -> list[Goodput]:
    """Each overload: peak and goodput by turns."""
    models = {case.model.name: case.model for case in OVERLOADS}
    for name in models:
        copy_model(directory / "models", name)
    timing.say("goodput: the offline loops' best batches")
    most = {name: max(case.rows for case in OVERLOADS if case.model.name == name) for name in models}
    knobs = {name: {"max_batch": max(most[name], best_batch(model, offline, timing))} for name, model in models.items()}
    found = []
    with serve(directory, knobs) as daemon:
        for case in OVERLOADS:
            with noted(failures, f"goodput, {case.name}"):
                found.append(_measure(case, daemon, offline, timing))
    return found


def _measure(case: Overload, daemon: Daemon, offline: InProcess, timing: Timing) -> Goodput:
    request = request_of(case.model, case.rows, offline)
    good = Goodput(case.name, [], [], [], [], [], [], [], [])
    seconds, warmup_s = timing.window(slow=True)
    for repetition in range(timing.repetitions):
        timing.say(f"goodput, {case.name}, repetition {repetition + 1}")
        time.sleep(SETTLE_S)
        peak = run("tensord", daemon.socket, request, "inline", case.connections, case.peak_depth, seconds, warmup_s)
        good.peak.append(peak.per_s)
        time.sleep(SETTLE_S)
        sample = run(
            "tensord", daemon.socket, request, "inline", case.connections, OPEN_DEPTH, seconds, 2 * warmup_s,
            rate=OVERLOAD * peak.per_s, deadline_ms=case.deadline_ms, seed=repetition + 1,
        )  # fmt: skip
        good.offered.append(sample.offered / sample.seconds)
        good.good.append(sample.per_s)
        good.late.append(sample.measured.late / sample.seconds)
        good.refused.append(sample.measured.errors)
        good.unsent.append(sample.measured.unsent / sample.seconds)
        good.send_delay_p99_us.append(sample.send_delay_us.p99)
        good.load_cpu_share.append(sample.cpu_share)
    return good
