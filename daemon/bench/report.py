"""The figures of a measurement: all that is printed, drawn or written as JSON, each with its unit in its name."""

import math
from itertools import pairwise
from typing import Final

import msgspec

from .. import control
from .histogram import Histogram
from .run import Measurement
from .tally import PARTS, Errors

COLUMNS_PER_DECADE: Final = (48, 24, 12, 6)
"""Of the histogram; the finest that makes no more than COLUMNS_MAX."""

COLUMNS_MAX: Final = 56
"""What a terminal has room for, with a number at both ends."""

STEADY_RATIO: Final = 1.1
STEADY_RESULTS: Final = 1_000
"""Results per part of the window from which their number says something: chance alone makes them differ by 3 %."""

LATE_SHARE: Final = 0.01
BUSY_SHARE: Final = 0.9
OTHERS_SHARE: Final = 0.01


class Times(msgspec.Struct, frozen=True):
    """Durations. A percentile is None where so few were measured that none lies beyond it."""

    count: int
    mean_us: float | None
    p50_us: float | None
    p90_us: float | None
    p99_us: float | None
    p999_us: float | None
    max_us: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> "Times":
        """Those of a histogram."""
        p50, p90, p99, p999 = (_us(histogram.percentile_ns(fraction)) for fraction in (0.5, 0.9, 0.99, 0.999))
        longest = _us(histogram.max_ns) if histogram.count else None
        return cls(histogram.count, _us(histogram.mean_ns), p50, p90, p99, p999, longest)


class Shape(msgspec.Struct, frozen=True):
    """What load it was."""

    model: str
    version: int
    loop: str
    """`closed` or `open`."""
    clients: int
    depth: int
    """Requests in flight on each connection, at most."""
    rows_per_request: int
    lane: str
    request_bytes: int
    answer_bytes: int
    timeout_ms: float
    rate_per_s: float | None
    arrivals: str | None
    seed: int
    warmup_s: float
    measured_s: float
    """Less than asked for if it ended early."""
    load_processes: int


class Requests(msgspec.Struct, frozen=True):
    """How many. `sent` is `answered` and `failed`, over the whole run; `measured` are those of the window."""

    sent: int
    answered: int
    failed: int
    measured: int
    measured_answered: int
    measured_unanswered: int
    """Neither result nor error had come when the waiting ended."""
    others: int | None
    """Of this model, from others than us, during the run; None if the daemon does not say."""


class Throughput(msgspec.Struct, frozen=True):
    """Results that came within the window."""

    requests_per_s: float
    rows_per_s: float
    thirds_requests_per_s: list[float]
    """Of each third of the window; empty if it ended early."""


class OpenLoop(msgspec.Struct, frozen=True):
    """How well the load kept to the schedule. Latency counts from the schedule in any case."""

    offered_per_s: float
    late: int
    """Arrivals that the load began more than 1 ms late, through its own fault."""
    held: int
    """Arrivals that had to wait because every connection had its depth in flight."""
    send_delay: Times


class Batches(msgspec.Struct, frozen=True):
    """In what batches the measured requests ran."""

    mean_rows: float
    share_by_rows: dict[int, float]
    """How large a share of the batches had so many rows."""
    released: dict[str, int] | None
    """Why the daemon released batches of the model, over the whole run; None if it does not say."""


class ProcessCpu(msgspec.Struct, frozen=True):
    """CPU time of one process, or of all processes of the load, within the window."""

    name: str
    pid: int | None
    cpu_us_per_request: float | None
    cores: float
    """Of how many cores it took all the time."""


class Column(msgspec.Struct, frozen=True):
    """One column of the latency histogram."""

    from_us: float
    to_us: float
    count: int


class Report(msgspec.Struct, frozen=True):
    """All figures."""

    load: Shape
    interrupted: bool
    """Whether somebody ended it before its time."""
    lost: str
    """Why the daemon's connections ended before its time; empty if they did not."""
    warnings: list[str]
    """Why the figures may not mean what they seem to."""
    requests: Requests
    throughput: Throughput
    latency: Times
    """From the begin of a request, in an open loop its scheduled arrival, to the last byte of its result."""
    phases: dict[str, Times]
    """Of this: `copy_in` (inputs into the arena), `queue` (until the batch is released), `compute` (the model, for the
    whole batch), `elsewhere` (sockets, rings, waiting in the worker behind another batch)."""
    open_loop: OpenLoop | None
    errors: dict[str, Errors]
    batches: Batches | None
    cpu: list[ProcessCpu]
    histogram: list[Column]
    """Of the latency; columns have equal widths on a logarithmic axis, and the first and the last are not empty."""


def report(seen: Measurement) -> Report:
    """The figures of a measurement; pure."""
    tally, plan = seen.tally, seen.plan
    requests = Requests(
        tally.sent,
        tally.answered,
        tally.failed,
        tally.offered,
        tally.latency.count,
        tally.unanswered,
        _others(seen),
    )
    early = tally.window_s < plan.seconds - 1e-3
    throughput = _throughput(seen, early=early)
    return Report(
        _shape(seen),
        seen.interrupted and early,
        tally.lost,
        _warnings(seen, requests, throughput),
        requests,
        throughput,
        Times.of(tally.latency),
        {
            name: Times.of(histogram)
            for name in ("copy_in", "queue", "compute", "elsewhere")
            if (histogram := getattr(tally, name)).count
        },
        _open_loop(seen),
        tally.errors,
        _batches(seen),
        _cpu(seen),
        columns(tally.latency),
    )


def columns(histogram: Histogram) -> list[Column]:
    """The histogram in columns of equal width on a logarithmic axis, few enough to be seen."""
    for per_decade in COLUMNS_PER_DECADE:
        counts: dict[int, int] = {}
        for middle_ns, count in histogram.middles_ns():
            column = math.floor(math.log10(middle_ns) * per_decade)
            counts[column] = counts.get(column, 0) + count
        if not counts:
            return []
        numbers = range(min(counts), max(counts) + 1)
        if len(numbers) <= COLUMNS_MAX:
            break
    edges_us = [round(10 ** (number / per_decade) / 1000, 3) for number in (*numbers, numbers.stop)]
    return [Column(*edges, counts.get(number, 0)) for number, edges in zip(numbers, pairwise(edges_us), strict=True)]


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


def _shape(seen: Measurement) -> Shape:
    plan, form = seen.plan, seen.form
    is_open = plan.rate_per_s is not None
    return Shape(
        model=seen.spec.name,
        version=seen.spec.version,
        loop="open" if is_open else "closed",
        clients=plan.clients,
        depth=form.depth,
        rows_per_request=plan.rows,
        lane=str(form.lane),
        request_bytes=form.request_bytes,
        answer_bytes=form.answer_bytes,
        timeout_ms=plan.timeout_ms,
        rate_per_s=plan.rate_per_s,
        arrivals=str(plan.arrivals or "poisson") if is_open else None,
        seed=plan.seed,
        warmup_s=plan.warmup_s,
        measured_s=round(seen.tally.window_s, 3),
        load_processes=seen.processes,
    )


def _throughput(seen: Measurement, *, early: bool) -> Throughput:
    tally = seen.tally
    per_s = _ratio(tally.results, tally.window_s) or 0.0
    thirds = [] if early else [round(count * PARTS / tally.window_s, 1) for count in tally.parts]
    return Throughput(round(per_s, 1), round(per_s * seen.plan.rows, 1), thirds)


def _open_loop(seen: Measurement) -> OpenLoop | None:
    if seen.plan.rate_per_s is None:
        return None
    tally = seen.tally
    offered_per_s = _ratio(tally.offered, tally.window_s) or 0.0
    return OpenLoop(round(offered_per_s, 1), tally.late, tally.held, Times.of(tally.send_delay))


def _batches(seen: Measurement) -> Batches | None:
    batches = seen.tally.batches
    total = sum(batches.values())
    if not total:
        return None
    rows = sum(size * number for size, number in batches.items())
    shares = {size: round(number / total, 6) for size, number in sorted(batches.items())}
    names = [name for name in _counters(seen.after, seen) if name.startswith("released_")]
    released = {name.removeprefix("released_"): _change(seen, name) for name in names} or None
    return Batches(round(rows / total, 3), shares, released)


def _cpu(seen: Measurement) -> list[ProcessCpu]:
    tally = seen.tally
    used = [(name, begin.pid, end.cpu_s - begin.cpu_s) for name, (begin, end) in seen.usages.items()]
    return [
        ProcessCpu(name, pid, _us(_ratio(cpu_s * 1e9, tally.results)), round(_ratio(cpu_s, tally.window_s) or 0.0, 3))
        for name, pid, cpu_s in [*used, ("load generator", None, tally.cpu_s)]
    ]


def _others(seen: Measurement) -> int | None:
    """Requests that the daemon counted and we did not send. One that it refused at once is counted by it, too."""
    if not _counters(seen.before, seen) or not _counters(seen.after, seen):
        return None
    return max(0, _change(seen, "requests") - seen.tally.sent)


def _counters(status: control.InstanceStatus | None, seen: Measurement) -> dict[str, int]:
    served = status.models if status is not None else []
    ours = (seen.spec.name, seen.spec.version)
    return next((model.counters for model in served if (model.name, model.version) == ours), {})


def _change(seen: Measurement, counter: str) -> int:
    return _counters(seen.after, seen).get(counter, 0) - _counters(seen.before, seen).get(counter, 0)


# ── what may be wrong with it ───────────────────────────────────────────────────────────────────


def _warnings(seen: Measurement, requests: Requests, throughput: Throughput) -> list[str]:
    tally, plan = seen.tally, seen.plan
    found = []
    if seen.before is None:
        found.append(f"nothing is known of the daemon itself: {seen.silence}")
    if tally.late > LATE_SHARE * max(1, tally.offered):
        share = tally.late / tally.offered
        found.append(f"the load generator was the limit: it began {share:.0%} of the arrivals more than 1 ms late")
    elif tally.window_s and tally.busy_s > BUSY_SHARE * tally.window_s:
        share = tally.busy_s / tally.window_s
        found.append(f"the load generator was the limit: it computed, or waited for a core, {share:.0%} of the time")
    if tally.held:
        share = tally.held / max(1, tally.offered)
        places = f"{plan.clients:,} × {seen.form.depth:,}"
        found.append(
            f"{share:.0%} of the arrivals had to wait until one of {places} requests in flight was answered, and their "
            "latency shows it: lower the --rate, or give more --clients or --depth"
        )
    if requests.measured_unanswered:
        number = requests.measured_unanswered
        found.append(f"{number:,} requests had no answer when the waiting ended: the true percentiles are higher")
    thirds = throughput.thirds_requests_per_s
    if thirds and min(tally.parts) >= STEADY_RESULTS and max(tally.parts) > STEADY_RATIO * min(tally.parts):
        found.append(f"not steady: {', '.join(f'{each:,.0f}' for each in thirds)} requests/s in the thirds of the time")
    if requests.others and requests.others > OTHERS_SHARE * requests.sent:
        found.append(f"others sent {requests.others:,} requests to the model meanwhile")
    return found


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None


def _us(ns: float | None) -> float | None:
    """Nanoseconds as microseconds, to the tenth of one."""
    return None if ns is None else round(ns / 1000, 1)
