"""`tensord bench`: how fast does the daemon answer, and where does the time go?"""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from tensord.ipc.client.discovery import find_socket

from ..bench.plan import Arrivals, BadOption, Lane, Plan
from ..bench.plot import histogram_svg
from ..bench.processes import LoadFailure
from ..bench.report import Batches, Column, Report, Times, report
from ..bench.run import Display, measure
from ..bench.speech import Progress as Counts
from ..bench.watch import Watch
from ..exits import Exit
from .output import Failure, Refusal, complain, console, count, errors, examples, microseconds, nbytes, table
from .places import Socket, control_socket

DEFAULT: Final = Plan("")
BATCHES_SHOWN: Final = 5
"""Sizes of batches that are listed one by one; more are put together by powers of two."""
RELEASED: Final = {
    "full": "full",
    "window": "window over",
    "idle": "worker idle",
    "deadline": "deadline near",
    "drain": "draining",
}
"""Why the daemon runs a batch now, in words."""
BAR_WIDTH: Final = 24
BLOCKS: Final = "▁▂▃▄▅▆▇█"
EXAMPLES = examples(
    "tensord bench digits",
    "tensord bench digits --clients 64 --depth 4 --seconds 30",
    "tensord bench digits --rate 2000 --plot latency.svg",
    "tensord bench digits --rows 32 --lane arena --json | jq .latency",
)


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or model:version, or model:label.")],
    clients: Annotated[int, typer.Option(metavar="N", help="Connections.")] = DEFAULT.clients,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="D",
            help="Requests in flight on each. Default: 1; with --rate, as many as the daemon takes.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long to measure.")] = DEFAULT.seconds,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Open loop: so many requests per second are due, whatever the daemon does.",
            show_default=False,
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals | None,
        typer.Option(
            metavar="HOW",
            help="They come at random, `poisson` (the default), or evenly, `constant`.",
            show_default=False,
        ),
    ] = None,
    lane: Annotated[
        Lane,
        typer.Option(
            metavar="LANE", help="`inline`: through the socket; `arena`: in shared memory; `auto`: as clients choose."
        ),
    ] = DEFAULT.lane,
    rows: Annotated[int, typer.Option(metavar="R", help="Rows of each request.")] = DEFAULT.rows,
    timeout: Annotated[int, typer.Option(metavar="MS", help="Deadline of each request.")] = DEFAULT.timeout_ms,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the inputs and the arrivals.")] = DEFAULT.seed,
    warmup: Annotated[float, typer.Option(metavar="S", help="Load before the measurement.")] = DEFAULT.warmup_s,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the latencies as SVG.", show_default=False)
    ] = None,
    socket: Socket = None,
) -> int:
    """Put load on a model and measure throughput, latencies, batches and CPU time.

    Each of N connections keeps D requests in flight (a closed loop); or, with
    --rate, requests come at their own times, and latency counts from these (an
    open loop). Ctrl-C ends it early and prints what there is.
    """
    plan = Plan(model, clients, depth, seconds, warmup, rate, arrivals, lane, rows, timeout, seed)
    try:
        plan.check()
        _check_writable(plot)
        with _display() as display:
            path = find_socket(None if socket is None else str(socket))
            seen = measure(plan, path, Watch(control_socket(socket)), display)
    except BadOption as error:
        raise Refusal(f"{error} (see tensord bench --help)", Exit.USAGE) from error
    except LoadFailure as error:
        raise Refusal(str(error), error.exit) from error
    figures = report(seen)
    if not figures.requests.measured:
        return _ending(figures, plan)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
        sys.stdout.buffer.flush()
    else:
        console.print(_text(figures))
        for number, warning in enumerate(figures.warnings):
            console.print(f"{'' if number else chr(10)}[yellow]warning[/]  {escape(warning)}", soft_wrap=True)
    if plot is not None:
        _write(plot, histogram_svg(figures, microseconds))
    return _ending(figures, plan)


def _check_writable(path: Path | None) -> None:
    """Before the load, not after it. Raises BadOption."""
    if path is None:
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadOption("--plot", path, "it cannot be written there: name a file in a directory of yours")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error


def _ending(figures: Report, plan: Plan) -> int:
    """The exit code, and why where it is not 0."""
    measured = figures.requests.measured
    when = (
        f"after {figures.load.measured_s:.3g} s of {plan.seconds:g} s" if measured else "before anything was measured"
    )
    if figures.lost:
        return complain(f"the daemon went away {when} ({figures.lost}): see tensord status", Exit.UNREACHABLE)
    if figures.interrupted:
        return complain(f"interrupted {when}", Exit.INTERRUPTED)
    if not measured:
        remedy = "the daemon did not answer those before, or --rate is too low"
        return complain(f"no request began within {plan.seconds:g} s: {remedy}", Exit.FAILED)
    if not figures.latency.count:
        reason = next((each.sentence for each in figures.errors.values()), "the daemon is silent")
        return complain(f"none of {measured:,} requests was answered: {reason}", Exit.FAILED)
    return Exit.OK


# ── while it runs ───────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _display() -> Iterator[Display]:
    """A line on standard error that says how far it is, if somebody looks."""
    if not errors.is_terminal:
        yield lambda *_: None
        return
    bar = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.fields[note]}"),
        console=errors,
        transient=True,
    )
    speed = _Speed()
    with bar:
        task = bar.add_task("connecting", total=None, note="")

        def show(stage: str, done_s: float, total_s: float, counts: Counts) -> None:
            clock = f"{done_s:.0f} of {total_s:g} s" if total_s else f"{done_s:.0f} s"
            failed = f"  [red]{count(counts.failed)} failed[/]" if counts.failed else ""
            note = f"{clock}  {count(speed.per_s(counts.answered))} requests/s{failed}" if counts.answered else clock
            bar.update(task, description=stage, completed=done_s, total=total_s or None, note=note)

        yield show


class _Speed:
    """Requests per second of the last second or so."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=12)

    def per_s(self, answered: int) -> int:
        """So many have been answered by now."""
        now = time.monotonic()
        self._points.append((now, answered))
        since, before = self._points[0]
        return round((answered - before) / (now - since)) if now > since else 0


# ── the figures as text ─────────────────────────────────────────────────────────────────────────


def _text(figures: Report) -> RenderableType:
    sections: list[RenderableType] = [_head(figures), _latencies(figures)]
    if figures.errors:
        sections.append(_errors(figures))
    if figures.batches is not None:
        sections.append(_batches(figures.batches))
    sections.append(_cpu(figures))
    spaced = [part for section in sections for part in ("", section)][1:]
    return Group(*spaced)


def _head(figures: Report) -> RenderableType:
    load, requests, throughput = figures.load, figures.requests, figures.throughput
    if load.rate_per_s is None:
        loop = f"closed loop, {load.clients:,} clients × {load.depth:,} in flight"
        offered = ""
    else:
        loop = f"open loop, {load.arrivals} arrivals, {load.clients:,} clients"
        offered = f" of {load.rate_per_s:,.6g} offered"
    rows = "1 row" if load.rows_per_request == 1 else f"{load.rows_per_request:,} rows"
    sizes = f"{nbytes(load.request_bytes)} there, {nbytes(load.answer_bytes)} back"
    failed = requests.measured - requests.measured_answered
    lines = Table.grid(padding=(0, 2))
    lines.add_row(f"[bold]{escape(load.model)}:{load.version}[/]", loop)
    lines.add_row("", f"{rows} each, {load.lane} lane: {sizes}")
    lines.add_row(
        "[dim]throughput[/]",
        f"[bold green]{throughput.requests_per_s:,.0f} requests/s[/]{offered}, {throughput.rows_per_s:,.0f} rows/s",
    )
    answers = f"{requests.measured_answered:,} answered in {load.measured_s:.4g} s"
    lines.add_row("[dim]requests[/]", f"{answers}, [red]{failed:,} failed[/]" if failed else f"{answers}, none failed")
    return lines


def _latencies(figures: Report) -> RenderableType:
    """From the whole to its parts, and where the answers lie."""
    rows = table("LATENCY", right=("p50", "p90", "p99", "p99.9", "MAX", "MEAN"))
    rows.add_row("[bold]request[/]", *_times(figures.latency), style="bold")
    for name, times in figures.phases.items():
        rows.add_row(f"  {name.replace('_', ' ')}", *_times(times))
    if figures.open_loop is not None:
        rows.add_row("[dim]sent late by[/]", *_times(figures.open_loop.send_delay), style="dim")
    return Group(rows, *_sparkline(figures.histogram))


def _times(times: Times) -> list[str]:
    shown = (times.p50_us, times.p90_us, times.p99_us, times.p999_us, times.max_us, times.mean_us)
    return [microseconds(value) for value in shown]


def _sparkline(columns: list[Column]) -> Iterator[str]:
    """The histogram in one line: high where many answers are."""
    if columns:
        most = max(column.count for column in columns)
        heights = [-(-column.count * len(BLOCKS) // most) for column in columns]
        line = "".join(BLOCKS[height - 1] if height else " " for height in heights)
        yield f"[dim]{microseconds(columns[0].from_us)}[/] [cyan]{line}[/] [dim]{microseconds(columns[-1].to_us)}[/]"


def _errors(figures: Report) -> RenderableType:
    rows = table("ERROR", right=("COUNT", "SHARE"))
    rows.add_column("")
    for name, each in sorted(figures.errors.items(), key=lambda item: -item[1].count):
        share = each.count / figures.requests.measured
        rows.add_row(f"[red]{name}[/]", count(each.count), f"{share:.2%}", f"[dim]{escape(each.sentence)}[/]")
    return rows


def _batches(batches: Batches) -> RenderableType:
    rows = table("BATCHES", right=("SHARE",))
    rows.add_column("")
    for name, share in _grouped(batches.share_by_rows).items():
        rows.add_row(
            f"{name} rows" if name != "1" else "1 row", f"{share:.1%}", f"[cyan]{'█' * round(share * BAR_WIDTH)}[/]"
        )
    notes = [f"mean {batches.mean_rows:,.1f} rows"]
    if batches.released and (total := sum(batches.released.values())):
        reasons = [f"{RELEASED[name]} {number / total:.0%}" for name, number in batches.released.items() if number]
        notes.append(f"released because {', '.join(reasons)}")
    return Group(rows, *(f"[dim]{note}[/]" for note in notes))


def _grouped(shares: dict[int, float]) -> dict[str, float]:
    """Sizes as `1`, `2–3`, `4–7`: between powers of two; or one by one, where there are few."""
    groups: dict[int, list[int]] = {}
    for rows in sorted(shares):
        groups.setdefault(rows if len(shares) <= BATCHES_SHOWN else rows.bit_length(), []).append(rows)
    return {
        f"{group[0]:,}" if len(group) == 1 else f"{group[0]:,}–{group[-1]:,}": sum(shares[rows] for rows in group)
        for group in groups.values()
    }


def _cpu(figures: Report) -> RenderableType:
    rows = table("CPU TIME", right=("PID", "PER REQUEST", "CORES"))
    for each in figures.cpu:
        pid = "–" if each.pid is None else str(each.pid)
        rows.add_row(each.name, pid, microseconds(each.cpu_us_per_request), f"{each.cores:.2f}")
    return rows
