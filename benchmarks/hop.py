"""The hop: identity through the daemon, beside the echo (a hop and nothing else), an in-process copy, and the peer."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from . import peer, processes, python_client
from .cases import LATENCY, PAYLOADS, Payload
from .generator import Echo, Failed, Lane, Sample, Target, run, start_echo
from .inprocess import InProcess
from .results import Hop, Point, noted
from .served import Daemon, device_cores, first_core, serve, write_identity
from .timing import Timing

SETTLE_S: Final = 0.1
"""Until what the last run held (arenas) is given back."""

INLINE: Final = "inline"
ARENA: Final = "arena"
PYTHON_INLINE: Final = "inline, Python client"
PYTHON_ARENA: Final = "arena, Python client"
ECHO_INLINE: Final = "echo, inline frames"
ECHO_ARENA: Final = "echo, arena frames"
ECHO_APART: Final = "echo, inline frames, on two cores"
PEER: Final = "mosec"

Look = Callable[[], None]
"""Called when the window begins and when it ends."""


@dataclass(frozen=True, slots=True)
class System:
    """How a system is loaded, and the processes whose CPU time counts for it, by role."""

    load: Callable[[Look], Sample]
    pids: Mapping[str, Sequence[int]]

    def measure(self) -> Point:
        """One run. Raises Failed."""
        seen: list[dict[str, float]] = []
        sample = self.load(lambda: seen.append(processes.total_cpu_seconds(self.pids)))
        before, after = seen
        return Point.of(sample, {role: after[role] - before[role] for role in self.pids})


Systems = dict[str, System]


@dataclass(frozen=True, slots=True)
class Servers:
    """All that run at once; those that are not loaded sleep."""

    daemon: Daemon
    echo: Echo
    apart: Echo
    """Another one, on the cores of the daemon's worker."""

    def systems(self, payload: Payload, load: tuple[int, int], mosec: peer.Mosec | None, timing: Timing) -> Systems:
        """What is measured under one load, in this order."""
        daemon, connections, depth = self.daemon, *load
        window = timing.window(slow=payload.is_slow(load))

        def frames(to: Target, socket: Path, lane: Lane, cores: tuple[int, ...] = ()) -> Callable[[Look], Sample]:
            loaded = partial(run, to, socket, payload.request, lane, connections, depth, *window, cores=cores)
            return lambda look: loaded(look=look)

        def python(lane: Lane) -> Callable[[Look], Sample]:
            return partial(python_client.run, daemon.socket, payload.model, payload.floats, lane, window)

        found: Systems = {}
        if payload.inline:
            found[INLINE] = System(frames("tensord", daemon.socket, "inline"), daemon.pids)
        found[ARENA] = System(frames("tensord", daemon.socket, "arena"), daemon.pids)
        if load == LATENCY and payload.inline:
            found[PYTHON_INLINE] = System(python("inline"), daemon.pids)
        if load == LATENCY:
            found[PYTHON_ARENA] = System(python("arena"), daemon.pids)
        found[ECHO_INLINE] = System(frames("echo", self.echo.socket, "inline"), self.echo.pids)
        found[ECHO_ARENA] = System(frames("echo", self.echo.socket, "arena"), self.echo.pids)
        if load == LATENCY and first_core() not in device_cores():
            apart = frames("echo", self.apart.socket, "inline", (first_core(),))
            found[ECHO_APART] = System(apart, self.apart.pids)
        if mosec is not None:
            loaded = partial(mosec.load, payload.request, connections * depth, *window)
            found[PEER] = System(loaded, {PEER: mosec.pids})
        return found


def measure(directory: Path, offline: InProcess, timing: Timing, failures: list[str], *, with_peer: bool) -> list[Hop]:
    """Every payload under every load, system after system within each repetition."""
    for payload in PAYLOADS:
        write_identity(directory / "models", payload.model, payload.floats, payload.max_batch)
    best = choose(directory, timing, failures) if with_peer else {}
    with contextlib.ExitStack() as stack:
        servers = Servers(
            stack.enter_context(serve(directory, {})),
            stack.enter_context(start_echo(directory / "echo.sock")),
            stack.enter_context(start_echo(directory / "apart.sock", device_cores())),
        )
        peers = {each: stack.enter_context(peer.serve(directory, each)) for each in dict.fromkeys(best.values())}
        todo = []
        for payload in PAYLOADS:
            for load in payload.loads:
                setting = best.get((payload.name, load))
                mosec = peers[setting] if setting else None
                hop = Hop(payload.name, *load, {}, str(setting or ""), [])
                todo.append((payload, hop, servers.systems(payload, load, mosec, timing)))
        for repetition in range(timing.repetitions):
            for payload, hop, systems in todo:
                timing.say(f"hop, repetition {repetition + 1}: {hop.payload}, {hop.connections} × {hop.depth}")
                if (hop.connections, hop.depth) == LATENCY:
                    hop.in_process_us.append(offline.copy_us(payload.floats, timing.seconds))
                _measure(hop, systems, failures)
        return [hop for _, hop, _ in todo]


def _measure(hop: Hop, systems: Systems, failures: list[str]) -> None:
    """A point of each system. One that fails is not tried under this load again, and has no figures for it."""
    for name, system in list(systems.items()):
        time.sleep(SETTLE_S)
        try:
            hop.systems.setdefault(name, []).append(system.measure())
        except Failed as failure:
            failures.append(f"{name}, {hop.payload}, {hop.connections} × {hop.depth}: {failure}")
            del systems[name], hop.systems[name]


def choose(directory: Path, timing: Timing, failures: list[str]) -> dict[tuple[str, tuple[int, int]], peer.Setting]:
    """The peer's best setting for each payload and load: by its median latency when alone, else by its throughput."""
    scores: dict[tuple[str, tuple[int, int]], dict[peer.Setting, float]] = {}
    for setting in peer.CANDIDATES:
        timing.say(f"mosec's best: {setting}")
        with peer.serve(directory, setting) as mosec:
            for payload in PAYLOADS:
                for load in payload.loads:
                    with noted(failures, f"mosec ({setting}), {payload.name}, {load[0]} × {load[1]}"):
                        sample = mosec.load(
                            payload.request, load[0] * load[1], *timing.window(slow=payload.is_slow(load))
                        )
                        score = -sample.latency_us.p50 if load == LATENCY else sample.per_s
                        scores.setdefault((payload.name, load), {})[setting] = score
    return {case: max(found, key=lambda setting: found[setting]) for case, found in scores.items()}
