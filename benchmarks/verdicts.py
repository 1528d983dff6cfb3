"""The budgets of the design, and the floors below it, against what a run measured."""

from collections.abc import Callable, Sequence
from typing import Final

from .cases import LATENCY, PAYLOADS, THROUGHPUT
from .figures import Spread, Verdict, differences, ratios, spread
from .hop import ARENA, ECHO_APART, ECHO_ARENA, ECHO_INLINE, INLINE, PEER
from .policies import PLAIN
from .results import Hop, Idle, Point, Results
from .scale import ALONE

SMALL: Final = PAYLOADS[0].name
LARGE: Final = PAYLOADS[-1].name

ECHO_OF: Final = {INLINE: ECHO_INLINE, ARENA: ECHO_ARENA}
"""The echo with frames of the same size."""


def verdicts(results: Results) -> list[Verdict]:
    """Every budget, kept or not, measured or not."""
    found = []
    for system, echo in ECHO_OF.items():
        alone = f"p50 of one connection, {SMALL}, {system}"
        crowd = f"throughput of 64 connections, {SMALL}, {system}"
        alone_ratio = _ratio(results, LATENCY, system, p50)
        crowd_ratio = _ratio(results, THROUGHPUT, system, per_s)
        found += [
            Verdict(f"{alone}, to the echo's", "≤", 1.5, alone_ratio(echo), "×"),
            Verdict(f"{alone}, to the echo's on two cores", "≤", 1.5, alone_ratio(ECHO_APART), "×"),
            Verdict(f"{alone}, to the best peer's", "≤", 0.25, alone_ratio(PEER), "×"),
            Verdict(f"{crowd}, to the echo's", "≥", 1 / 3, crowd_ratio(echo), "×"),
            Verdict(f"{crowd}, to the best peer's", "≥", 3.0, crowd_ratio(PEER), "×", hard=True),
        ]
    overheads = {payload.name: arena_overhead_us(results, payload.name) for payload in PAYLOADS}
    for name, values in overheads.items():
        found.append(
            Verdict(f"one arena request alone, {name}, over the in-process call", "≤", 300.0, _of(values), "µs")
        )
    growth = ratios(overheads[LARGE], overheads[SMALL]) if overheads[LARGE] and overheads[SMALL] else []
    found.append(Verdict(f"that overhead, {LARGE} to {SMALL}", "≤", 1.5, _of(growth), "×", hard=True))
    for saturation in results.saturations:
        for name, values in saturation.served.items():
            share = _of(ratios(values, saturation.offline))
            what = f"{saturation.model} at saturation, {name}, to the offline loop"
            found.append(Verdict(what, "≥", 0.97, share, "×"))
            found.append(Verdict(what, "≥", 0.95, share, "×", hard=True))
    for goodput in results.goodputs:
        share = _of(ratios(goodput.good, goodput.peak))
        found.append(Verdict(f"goodput at 5 × the capacity, {goodput.name}, to the peak", "≥", 0.95, share, "×"))
    if results.scale is not None:
        base = results.scale.cpu_us.get(ALONE, [])
        for name, values in results.scale.cpu_us.items():
            if name != ALONE:
                cost = _of(ratios(values, base)) if len(values) == len(base) else None
                found.append(Verdict(f"CPU time per request, {name}, to {ALONE}", "≤", 1.2, cost, "×", hard=True))
    if results.policies is not None:
        base = results.policies.cpu_us.get(PLAIN, [])
        for name, values in results.policies.cpu_us.items():
            if name != PLAIN:
                cost = _of(ratios(values, base)) if len(values) == len(base) else None
                found.append(Verdict(f"front end's CPU time per request, {name}, to {PLAIN}", "≤", 1.2, cost, "×"))
    cpu, mib = idle_totals(results.idle)
    found.append(Verdict("idle, all but the workers, CPU", "<", 1.0, _of(cpu), "% of a core", hard=True))
    found.append(Verdict("idle, all but the workers, memory", "<", 200.0, _of(mib), "MiB"))
    return found


def p50(point: Point) -> float:
    """Median latency."""
    return point.p50_us


def per_s(point: Point) -> float:
    """Throughput."""
    return point.per_s


def hop_of(results: Results, payload: str, load: tuple[int, int]) -> Hop | None:
    """The measurements of one payload under one load."""
    found = (hop for hop in results.hops if (hop.payload, hop.connections, hop.depth) == (payload, *load))
    return next(found, None)


def arena_overhead_us(results: Results, payload: str) -> list[float]:
    """What one arena request alone takes beyond a copy of its bytes in-process; empty where it was not measured."""
    hop = hop_of(results, payload, LATENCY)
    if hop is None or ARENA not in hop.systems:
        return []
    return differences([point.p50_us for point in hop.systems[ARENA]], hop.in_process_us)


def limit(results: Results, hop: Hop, system: str, *, latency: bool) -> list[float] | None:
    """What one hop alone gives, a repetition each: p50 in µs when `latency`, else requests per second.

    Inline that is the echo of the same bytes. In an arena the bytes do not travel, and the limit is the echo of the
    frames together with the model's work on the bytes, the copy: one after the other when alone, else the slower one.
    """
    echo = ECHO_OF.get(system)
    if echo is None or echo not in hop.systems:
        return None
    figures = [point.p50_us if latency else point.per_s for point in hop.systems[echo]]
    if system != ARENA:
        return figures
    alone = hop_of(results, hop.payload, LATENCY)
    copies = alone.in_process_us if alone is not None else []
    if len(copies) != len(figures):
        return None
    if latency:
        return [figure + copy for figure, copy in zip(figures, copies, strict=True)]
    return [min(figure, 1e6 / copy) for figure, copy in zip(figures, copies, strict=True)]


def idle_totals(idle: Idle | None) -> tuple[list[float], list[float]]:
    """CPU share and memory of all processes but the workers."""
    if idle is None:
        return [], []
    roles = [role for role in idle.cpu_percent if role != "worker"]
    return [sum(idle.cpu_percent[role] for role in roles)], [sum(idle.own_mib[role] for role in roles)]


def _ratio(
    results: Results, load: tuple[int, int], system: str, figure: Callable[[Point], float]
) -> Callable[[str], Spread | None]:
    """The ratio of a system's figure to another system's."""
    hop = hop_of(results, SMALL, load)

    def to(base: str) -> Spread | None:
        if hop is None or system not in hop.systems or base not in hop.systems:
            return None
        return spread(ratios([*map(figure, hop.systems[system])], [*map(figure, hop.systems[base])]))

    return to


def _of(values: Sequence[float]) -> Spread | None:
    return spread(values) if values else None
