"""The tables of a run, as Markdown; good figures and bad ones alike."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from .cases import LATENCY, PAYLOADS
from .figures import Verdict, ratios, shown, shown_spread, spread
from .hop import ARENA, ECHO_ARENA, ECHO_INLINE, INLINE, PEER
from .policies import PLAIN
from .results import Hop, Point, Results
from .scale import ALONE
from .verdicts import ECHO_OF, arena_overhead_us, limit, p50, per_s, verdicts

BEGIN: Final = "<!-- figures: written by run.py, up to the mark below -->"
END: Final = "<!-- end of the figures -->"
BUSY: Final = 0.9
"""Share of a core from which on the load generator may itself be the limit."""

Rows = Iterable[Sequence[str]]


def rendered(results: Results) -> str:
    """All tables of a run."""
    judged = verdicts(results)
    parts = [
        _head(results),
        "### Verdicts",
        _table(("budget", "limit", "measured", ""), map(_verdict_row, judged)),
        *_hop_parts(results),
        *_cpu_parts(results),
        *_saturation_parts(results),
        *_goodput_parts(results),
        *_scale_parts(results),
        *_policy_parts(results),
        *_idle_parts(results),
    ]
    if results.failures:
        parts += ["### Measurements that failed", "\n".join(f"* {failure}" for failure in results.failures)]
    return "\n\n".join(parts) + "\n"


def replace_figures(page: Path, text: str) -> None:
    """Put the text between the two marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{page} lacks the marks"
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(results: Results) -> str:
    kind = "a quick look, not a measurement" if results.quick else "a full run"
    code = "compiled" if results.compiled else "interpreted"
    return (
        f"{results.date}, commit {results.commit}, {code}, {kind}: {results.repetitions} repetitions of "
        f"{results.seconds:g} s for each system under each load. {results.cpu}, {results.cores} cores, kernel "
        f"{results.kernel}. Peer: {results.peer}. A figure is the median over the repetitions, with the least and the "
        "most; a ratio is taken within each repetition."
    )


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    limit = f"{verdict.relation} {shown(verdict.budget)} {verdict.unit}" + (" (floor)" if verdict.hard else "")
    if verdict.measured is None:
        return verdict.name, limit, "–", "not measured"
    return verdict.name, limit, shown_spread(verdict.measured), "kept" if verdict.kept else "**missed**"


# ── the hop ─────────────────────────────────────────────────────────────────────────────────────


def _hop_parts(results: Results) -> Iterable[str]:
    for payload in PAYLOADS:
        hops = [hop for hop in results.hops if hop.payload == payload.name]
        if not hops:
            continue
        yield f"### {payload.name} there and back"
        head = (
            "connections × depth",
            "system",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "to its limit",
            "to mosec",
        )
        yield _table(head, [row for hop in hops for row in _hop_rows(results, hop)])
        overhead = arena_overhead_us(results, payload.name)
        in_process = [value for hop in hops for value in hop.in_process_us]
        if overhead and in_process:
            yield (
                f"The copy of {payload.name} in-process takes {shown_spread(spread(in_process))} µs; one arena request "
                f"alone takes {shown_spread(spread(overhead))} µs more."
            )
        busy = [note for hop in hops for note in _busy(hop)]
        if busy:
            yield (
                f"The load generator was busy for more than {BUSY:.0%} of the time, and so perhaps the limit, for "
                + ("; ".join(busy) + ".")
            )


def _hop_rows(results: Results, hop: Hop) -> Iterable[Sequence[str]]:
    alone = (hop.connections, hop.depth) == LATENCY
    figure = p50 if alone else per_s
    peers = [*map(figure, hop.systems[PEER])] if PEER in hop.systems else None
    for name, points in hop.systems.items():
        shown_name = f"{name} ({hop.peer_setting})" if name == PEER else name
        yield (
            f"{hop.connections} × {hop.depth}",
            shown_name,
            _figures(points, per_s),
            _figures(points, p50),
            _figures(points, lambda point: point.p99_us),
            _figures(points, lambda point: point.p999_us),
            _ratio([*map(figure, points)], limit(results, hop, name, latency=alone)),
            _ratio([*map(figure, points)], peers if name in ECHO_OF else None),
        )


def _ratio(values: Sequence[float], bases: Sequence[float] | None) -> str:
    return f"{shown(spread(ratios(values, bases)).median)} ×" if bases else ""


def _figures(points: Sequence[Point], figure: Callable[[Point], float]) -> str:
    return shown_spread(spread([*map(figure, points)]))


def _busy(hop: Hop) -> Iterable[str]:
    for name, points in hop.systems.items():
        share = spread([point.load_cpu_share for point in points]).median
        if share > BUSY:
            yield f"{name} at {hop.connections} × {hop.depth} ({share:.0%})"


def _cpu_parts(results: Results) -> Iterable[str]:
    hops = [hop for hop in results.hops if hop.connections == 64]
    if not hops:
        return
    yield "### CPU time per request with 64 connections, in µs"
    systems = (INLINE, ARENA, PEER, ECHO_INLINE, ECHO_ARENA)
    roles = dict.fromkeys(
        role for hop in hops for name in systems for point in hop.systems.get(name, ()) for role in point.cpu_us
    )
    rows = []
    for hop in hops:
        for name in (name for name in systems if name in hop.systems):
            cells = [_cpu(hop.systems[name], role) for role in roles]
            rows.append((f"{hop.payload}, depth {hop.depth}", name, *cells))
    yield _table(("payload", "system", *(role.replace("load", "load generator") for role in roles)), rows)


def _cpu(points: Sequence[Point], role: str) -> str:
    values = [point.cpu_us[role] for point in points if role in point.cpu_us]
    return shown(spread(values).median) if values else ""


# ── models, overload, idle ──────────────────────────────────────────────────────────────────────


def _saturation_parts(results: Results) -> Iterable[str]:
    for found in results.saturations:
        yield f"### {found.model} at saturation"
        offline = f"offline loop, batch {found.batch}"
        rows = [(offline, shown_spread(spread(found.offline)), "1", "")]
        for name, values in found.served.items():
            peer = found.peer.get(name)
            to_peer = f"{shown(spread(ratios(values, peer)).median)} ×" if peer else ""
            rows.append((f"served: {name}", *_share(values, found.offline), to_peer))
        for name, values in found.peer.items():
            rows.append((f"mosec ({found.peer_settings[name]}): {name}", *_share(values, found.offline), ""))
        yield _table(("", "rows/s", "to the offline loop", "to mosec"), rows)


def _share(values: Sequence[float], bases: Sequence[float]) -> tuple[str, str]:
    return shown_spread(spread(values)), shown_spread(spread(ratios(values, bases)))


def _goodput_parts(results: Results) -> Iterable[str]:
    if not results.goodputs:
        return
    yield "### Overload: five times the capacity, in requests per second"
    head = (
        "",
        "peak",
        "offered",
        "in time",
        "to the peak",
        "late",
        "unsent",
        "refused, by code",
        "sent late by, p99 µs",
    )
    rows = []
    for found in results.goodputs:
        codes: dict[str, int] = {}
        for refused in found.refused:
            for code, count in refused.items():
                codes[code] = codes.get(code, 0) + count
        columns = (found.peak, found.offered, found.good, ratios(found.good, found.peak), found.late, found.unsent)
        texts = [shown_spread(spread(values)) for values in columns]
        refusals = ", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items()))
        rows.append((found.name, *texts, refusals, shown_spread(spread(found.send_delay_p99_us))))
    yield _table(head, rows)


def _scale_parts(results: Results) -> Iterable[str]:
    found = results.scale
    if found is None or ALONE not in found.cpu_us:
        return
    yield "### Company: CPU time of the daemon per request of 4 KiB"
    alone = found.cpu_us[ALONE]
    rows = [(name, *_share(values, alone)) for name, values in found.cpu_us.items()]
    yield _table(("", "CPU µs per request", "to the first line"), rows)
    if found.connection_bytes is not None:
        yield f"An idle connection takes {found.connection_bytes / 1024:.1f} KiB of the front end's memory."


def _policy_parts(results: Results) -> Iterable[str]:
    found = results.policies
    if found is None or PLAIN not in found.cpu_us:
        return
    yield "### Policies: CPU time of the front end per request of 4 KiB"
    plain = found.cpu_us[PLAIN]
    rows = [(name, *_share(values, plain)) for name, values in found.cpu_us.items()]
    yield _table(("", "CPU µs per request", "to the first line"), rows)


def _idle_parts(results: Results) -> Iterable[str]:
    idle = results.idle
    if idle is None:
        return
    yield f"### Idle, over {idle.seconds:.0f} s"
    rows = [(role, f"{percent:.2f}", shown(idle.own_mib[role])) for role, percent in idle.cpu_percent.items()]
    yield _table(("process", "CPU, % of a core", "memory without shared memory, MiB"), rows)


def summary(judged: Sequence[Verdict]) -> str:
    """One line."""
    kept = sum(verdict.kept for verdict in judged)
    return f"{kept} of {len(judged)} budgets kept"
