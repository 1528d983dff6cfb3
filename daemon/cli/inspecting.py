"""`tensord models`, `status` and `version`: what runs, and how it does."""

import sys
from importlib.metadata import version as package_version
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from .. import control
from .output import Failure, console, microseconds, nbytes
from .places import Socket, control_socket

STATE_COLOURS = {"ready": "green", "starting": "yellow", "degraded": "red", "draining": "yellow"}


def fetch_status(socket: Socket) -> control.InstanceStatus:
    """Ask the daemon. Raises Unreachable or Failure."""
    answer = control.ask(control_socket(socket), control.Status())
    if isinstance(answer, control.Refused):
        raise Failure(answer.sentence)
    assert isinstance(answer, control.InstanceStatus)
    return answer


def models(socket: Socket = None) -> None:
    """List the served models: where they are ready, how many requests they had, and how long these took."""
    status = fetch_status(socket)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("MODEL", "VERSION", "LABELS", "READY ON"):
        table.add_column(heading)
    for heading in ("REQUESTS", "FAILED", "p50", "p99", "ROWS/BATCH"):
        table.add_column(heading, justify="right")
    for model in status.models:
        counters = model.counters
        failed = sum(count for name, count in counters.items() if name.startswith("failed_"))
        times = model.phases["request"]
        rows = f"{counters['batch_rows'] / counters['batches']:.1f}" if counters["batches"] else "–"
        where = ", ".join(model.ready_on) or "[red]nowhere[/]"
        table.add_row(
            f"[bold]{model.name}[/]",
            str(model.version),
            ", ".join(model.labels),
            where,
            f"{counters['requests']:,}",
            f"[red]{failed:,}[/]" if failed else "0",
            microseconds(times.p50_us),
            microseconds(times.p99_us),
            rows,
        )
    console.print(table)


def status(
    socket: Socket = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say whether the instance is ready, why not, and what its processes do."""
    instance = fetch_status(socket)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(instance), indent=2) + b"\n")
        return
    colour = STATE_COLOURS.get(instance.state, "white")
    console.print(
        f"[bold {colour}]{instance.state}[/]  tensord {instance.version}, pid {instance.pid}, "
        f"up {_duration(instance.uptime_s)}, serving on {instance.socket}"
    )
    for reason in instance.reasons:
        console.print(f"  [red]because[/] {reason}", soft_wrap=True)
    if instance.converging:
        console.print(f"  [yellow]knobs[/] epoch {instance.epoch} is converging: {', '.join(instance.converging)}")
    front = instance.frontend
    console.print(
        f"front end  pid {front.pid or '–'}, generation {front.generation}, {front.connections:,} connections, "
        f"{front.queued:,} requests queued, {front.running:,} running, "
        f"ingest {nbytes(front.ingest_used_bytes)} of {nbytes(front.ingest_bytes)}, "
        f"{instance.arenas} client arenas of {nbytes(instance.arena_bytes)}",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("DEVICE", "STATE", "DOES", "CORES"):
        table.add_column(heading)
    for heading in ("PID", "UP", "RESTARTS", "MEMORY", "MODELS"):
        table.add_column(heading, justify="right")
    for worker in instance.workers:
        table.add_row(
            f"[bold]{worker.device}[/]",
            worker.state,
            worker.activity,
            ",".join(map(str, worker.cores)) or "any",
            str(worker.pid or "–"),
            _duration(worker.uptime_s),
            str(worker.restarts),
            nbytes(worker.memory_bytes),
            str(worker.models_loaded),
        )
    console.print(table)


def version() -> None:
    """Print the versions of tensord and of what it stands on."""
    console.print(f"tensord {package_version('tensord')}")
    console.print(
        f"python {sys.version.split()[0]}, torch {package_version('torch')}, numpy {package_version('numpy')}"
    )


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
