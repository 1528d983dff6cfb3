"""Real models at saturation: served, in the peer, and in an offline loop at its best batch size."""

import contextlib
import time
from pathlib import Path

import numpy as np

from . import peer
from .cases import SATURATED, Pressure, Saturated
from .generator import run
from .hop import SETTLE_S
from .inprocess import InProcess
from .request import Request
from .results import Saturation, noted
from .served import copy_model, serve
from .timing import Timing


def measure(
    directory: Path, offline: InProcess, timing: Timing, failures: list[str], *, with_peer: bool
) -> list[Saturation]:
    """Each model in turn."""
    return [_measure(model, directory, offline, timing, failures, with_peer=with_peer) for model in SATURATED]


def request_of(model: Saturated, rows: int, offline: InProcess) -> Request:
    """A request of so many rows, the same in every run."""
    return offline.request(model.name, model.inputs(rows, np.random.default_rng(1)))


def best_batch(model: Saturated, offline: InProcess, timing: Timing) -> int:
    """The batch size at which the offline loop takes the most rows."""
    speeds = {rows: offline.rows_per_s(request_of(model, rows, offline), timing.seconds / 2) for rows in model.batches}
    return max(speeds, key=lambda rows: speeds[rows])


def _measure(
    model: Saturated, directory: Path, offline: InProcess, timing: Timing, failures: list[str], *, with_peer: bool
) -> Saturation:
    timing.say(f"saturation, {model.name}: the offline loop's best batch")
    batch = best_batch(model, offline, timing)
    whole = request_of(model, batch, offline)
    requests = {pressure: request_of(model, pressure.rows or batch, offline) for pressure in model.pressures}
    copy_model(directory / "models", model.name)
    found = Saturation(model.name, batch, [], {}, {}, {})
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(serve(directory, {model.name: {"max_batch": batch}}))
        servers = _peers(stack, model, batch, requests, directory, timing, failures) if with_peer else {}
        found.peer_settings = {name: str(mosec.setting) for name, mosec in servers.items()}
        for repetition in range(timing.repetitions):
            timing.say(f"saturation, {model.name}, repetition {repetition + 1}")
            found.offline.append(offline.rows_per_s(whole, timing.window(slow=True)[0]))
            for pressure, request in requests.items():
                rows, window = pressure.rows or batch, timing.window(slow=True)
                load = (pressure.lane, pressure.connections, pressure.depth)
                time.sleep(SETTLE_S)
                with noted(failures, f"{model.name}, {pressure.name}"):
                    sample = run("tensord", daemon.socket, request, *load, *window)
                    found.served.setdefault(pressure.name, []).append(sample.per_s * rows)
                if mosec := servers.get(pressure.name):
                    with noted(failures, f"mosec, {model.name}, {pressure.name}"):
                        sample = mosec.load(request, pressure.connections * pressure.depth, *window)
                        found.peer.setdefault(pressure.name, []).append(sample.per_s * rows)
    found.served = {name: values for name, values in found.served.items() if len(values) == timing.repetitions}
    found.peer = {name: values for name, values in found.peer.items() if len(values) == timing.repetitions}
    return found


def _peers(
    stack: contextlib.ExitStack,
    model: Saturated,
    batch: int,
    requests: dict[Pressure, Request],
    directory: Path,
    timing: Timing,
    failures: list[str],
) -> dict[str, peer.Mosec]:
    """The peer with its best setting for each pressure; it has no arenas."""
    version = directory / "models" / model.name / "1"
    inline = {pressure: request for pressure, request in requests.items() if pressure.lane == "inline"}
    scores: dict[str, dict[peer.Setting, float]] = {}
    for setting in (peer.Setting(1, 1), *(peer.Setting(batch, wait_ms) for wait_ms in (0, 2, 10))):
        timing.say(f"mosec's best for {model.name}: {setting}")
        with (
            noted(failures, f"mosec, {model.name} ({setting})"),
            peer.serve(directory, setting, version, requests[model.pressures[0]]) as mosec,
        ):
            for pressure, request in inline.items():
                sample = mosec.load(request, pressure.connections * pressure.depth, *timing.window(slow=True))
                scores.setdefault(pressure.name, {})[setting] = sample.per_s
    best = {name: max(found, key=lambda setting: found[setting]) for name, found in scores.items()}
    servers = {
        setting: stack.enter_context(peer.serve(directory, setting, version, requests[model.pressures[0]]))
        for setting in dict.fromkeys(best.values())
    }
    return {name: servers[setting] for name, setting in best.items()}
