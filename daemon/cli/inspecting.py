"""`tensord models`, `status` and `version`: what runs, and how it does."""

import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version
from itertools import groupby
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from .. import control
from .output import Failure, console, count, duration, examples, microseconds, nbytes, table
from .places import Socket, control_socket

STATE_COLOURS = {"ready": "green", "starting": "yellow", "degraded": "red", "draining": "yellow"}
DEVICES_NAMED = 2
"""Devices that the list of models names; more are counted."""
STATUS_EXAMPLES = examples("tensord status", "tensord status --json | jq '.models\\[].counters'")


def fetch_status(socket: Socket) -> control.InstanceStatus:
    """Ask the daemon. Raises Unreachable or Failure."""
    answer = control.ask(control_socket(socket), control.Status())
    if isinstance(answer, control.Refused):
        raise Failure(answer.sentence)
    assert isinstance(answer, control.InstanceStatus)
    return answer


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def models(socket: Socket = None) -> None:
    """List the served models: where they are ready, how many requests they had, and how long these took."""
    served = fetch_status(socket).models
    pads = any(model.counters["padded_bytes"] for model in served)
    keeps = any(_looked_up(model.counters) for model in served)
    padded = ("PADDED",) if pads else ()
    rows = table("MODEL", "LABELS", "READY ON", right=("REQUESTS", "FAILED", "p50", "p99", "BATCH", *padded))
    for model in served:
        rows.add_row(*_model_row(model), *([_padded(model.counters)] if pads else []))
    console.print(rows)
    for model in served:
        for device, reason in model.broken_on.items():
            console.print(f"[red]{model.name}:{model.version}[/] is not on {device}: {escape(reason)}", soft_wrap=True)
    console.print("[dim]p50, p99: from request to reply · BATCH: rows that ran together, on average[/]")
    if pads:
        console.print("[dim]PADDED: share of the computed input that is padding[/]")
    refusals = _refusal_table(served)
    if refusals.row_count:
        console.print()
        console.print(refusals)
    if keeps:
        console.print()
        console.print(_cache_table(served))
        console.print("[dim]of the response cache · SAVED: device time that hits have spared[/]")


def _refusal_table(served: list[control.ModelStatus]) -> Table:
    """A line for each reason for which requests of a model were refused."""
    rows = table("MODEL", "REFUSED FOR", right=("REQUESTS",))
    for model in served:
        for name, number in model.counters.items():
            if name.startswith("refused_") and number:
                reason = name.removeprefix("refused_").replace("_", " ")
                rows.add_row(f"[bold]{model.name}[/]:{model.version}", reason, count(number))
    return rows


def _cache_table(served: list[control.ModelStatus]) -> Table:
    rows = table("MODEL", right=("HITS", "MISSES", "SAVED"))
    for model in served:
        if _looked_up(model.counters):
            rows.add_row(f"[bold]{model.name}[/]:{model.version}", *_cached(model.counters))
    return rows


def _model_row(model: control.ModelStatus) -> list[str]:
    counters = model.counters
    failed = sum(number for name, number in counters.items() if name.startswith("failed_"))
    times = model.phases["request"]
    where = ", ".join(model.ready_on) if len(model.ready_on) <= DEVICES_NAMED else f"{len(model.ready_on)} devices"
    return [
        f"[bold]{model.name}[/]:{model.version}",
        ", ".join(model.labels) or "–",
        where or "[red]nowhere[/]",
        count(counters["requests"]),
        f"[red]{count(failed)}[/]" if failed else "0",
        microseconds(times.p50_us),
        microseconds(times.p99_us),
        f"{counters['batch_rows'] / counters['batches']:.1f}" if counters["batches"] else "–",
    ]


def _padded(counters: dict[str, int]) -> str:
    padded = counters["padded_bytes"]
    return f"{padded / (padded + counters['viewed_bytes'] + counters['gathered_bytes']):.0%}" if padded else "–"


def _hits(counters: dict[str, int]) -> int:
    return counters["cache_hits"] + counters["cache_redis_hits"] + counters["cache_joined"]


def _looked_up(counters: dict[str, int]) -> int:
    return _hits(counters) + counters["cache_misses"]


def _cached(counters: dict[str, int]) -> list[str]:
    return [count(_hits(counters)), count(counters["cache_misses"]), microseconds(counters["cache_saved_ns"] / 1000)]


# ── status ──────────────────────────────────────────────────────────────────────────────────────


def status(
    socket: Socket = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say whether the instance is ready, why not, and what its processes do.

    Exits with 0 whenever a daemon answers, whatever its state.
    """
    instance = fetch_status(socket)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(instance), indent=2) + b"\n")
        return
    colour = STATE_COLOURS.get(instance.state, "white")
    facts = f"tensord {instance.version}, pid {instance.pid}, up {duration(instance.uptime_s)}"
    console.print(f"[bold {colour}]{instance.state}[/]  {facts}")
    for reason in instance.reasons:
        console.print(f"  [red]because[/] {escape(reason)}", soft_wrap=True)
    for heading, text in _facts(instance):
        console.print(f"[dim]{heading:<10}[/] {escape(text)}", soft_wrap=True)
    for note in instance.frontend.notes:
        console.print(f"[yellow]front end[/]: {escape(note)}", soft_wrap=True)
    console.print(_workers(instance.workers))
    for worker in instance.workers:
        if worker.device_memory is not None:
            console.print(f"[bold]{worker.device}[/]: {_memory(worker.device_memory)}", soft_wrap=True)
        for note in worker.notes:
            console.print(f"[yellow]{worker.device}[/]: {escape(note)}", soft_wrap=True)


def _facts(instance: control.InstanceStatus) -> list[tuple[str, str]]:
    front = instance.frontend
    settled = f"converging: {', '.join(instance.converging)}" if instance.converging else "applied by every process"
    facts = [
        ("socket", instance.socket),
        ("front end", f"pid {front.pid or '–'}, {_counted(front.restarts, 'restart')}"),
        (
            "requests",
            f"{front.queued:,} queued, {front.running:,} running, {_counted(front.connections, 'connection')}",
        ),
        ("inline", f"{nbytes(front.ingest_used_bytes)} of {nbytes(front.ingest_bytes)} shared memory taken"),
        ("arenas", f"{_counted(instance.arenas, 'client arena')}, {nbytes(instance.arena_bytes)}"),
        ("knobs", f"epoch {instance.epoch}, {settled}"),
    ]
    if instance.pending_restart:
        facts.append(("", f"waiting for a restart: {', '.join(instance.pending_restart)}"))
    return facts


def _workers(workers: Sequence[control.WorkerStatus]) -> Table:
    rows = table("DEVICE", "STATE", "CORES", right=("PID", "UP", "RESTARTS", "MEMORY", "MODELS"))
    for worker in workers:
        state = f"ready, {worker.activity}" if worker.state == "ready" else f"[yellow]{worker.state}[/]"
        rows.add_row(
            f"[bold]{worker.device}[/]",
            state,
            _ranges(worker.cores) or "any",
            str(worker.pid or "–"),
            duration(worker.uptime_s),
            count(worker.restarts),
            nbytes(worker.memory_bytes),
            str(worker.models_loaded),
        )
    return rows


def _memory(memory: control.DeviceMemory) -> str:
    unpinned = f", {nbytes(memory.unpinned_bytes)} not" if memory.unpinned_bytes else ""
    return (
        f"{nbytes(memory.allocated_bytes)} in tensors, "
        f"{nbytes(memory.free_bytes)} of {nbytes(memory.total_bytes)} free; "
        f"{nbytes(memory.pinned_bytes)} of shared memory pinned{unpinned}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3, 8."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# ── version ─────────────────────────────────────────────────────────────────────────────────────


def version() -> None:
    """Print the versions of tensord and of what it stands on."""
    console.print(f"tensord {package_version('tensord')}")
    console.print(
        f"python {sys.version.split()[0]}, torch {package_version('torch')}, numpy {package_version('numpy')}"
    )
