"""From results to verdicts and tables, with made-up figures."""

from pathlib import Path

import msgspec
import pytest
from benchmarks import report
from benchmarks.figures import Spread
from benchmarks.hop import ARENA, ECHO_APART, ECHO_ARENA, ECHO_INLINE, INLINE, PEER
from benchmarks.results import Goodput, Hop, Idle, Point, Results, Saturation
from benchmarks.suite import PAGE
from benchmarks.verdicts import arena_overhead_us, hop_of, limit, verdicts


def points(*per_s_and_p50: tuple[float, float], busy: float = 0.1) -> list[Point]:
    return [
        Point(per_s, p50, p50, p50, p50, p50, {"frontend": 20.0, "load": 3.0}, busy) for per_s, p50 in per_s_and_p50
    ]


def results(
    hops: tuple[Hop, ...] = (),
    saturations: tuple[Saturation, ...] = (),
    goodputs: tuple[Goodput, ...] = (),
    idle: Idle | None = None,
    failures: tuple[str, ...] = (),
) -> Results:
    return Results(
        date="2001-02-03",
        commit="abc",
        compiled=True,
        quick=False,
        repetitions=2,
        seconds=2.0,
        cores=2,
        cpu="a CPU",
        kernel="6.1",
        peer="mosec 1",
        hops=[*hops],
        saturations=[*saturations],
        goodputs=[*goodputs],
        idle=idle,
        failures=[*failures],
    )


@pytest.fixture
def alone() -> Hop:
    systems = {
        INLINE: points((9000, 100), (9000, 110)),
        ARENA: points((9000, 90), (9000, 95)),
        ECHO_INLINE: points((90000, 50), (90000, 100)),
        ECHO_ARENA: points((90000, 30), (90000, 30)),
        ECHO_APART: points((20000, 100), (20000, 100)),
        PEER: points((2000, 400), (2000, 440)),
    }
    return Hop("4 KiB", 1, 1, systems, "no batching", [1.0, 2.0])


@pytest.fixture
def crowd() -> Hop:
    systems = {
        INLINE: points((60000, 900), (66000, 900)),
        ECHO_INLINE: points((150000, 300), (150000, 300), busy=0.95),
        PEER: points((20000, 3000), (22000, 3000)),
    }
    return Hop("4 KiB", 64, 1, systems, "batch 64, wait 1 ms", [])


def measured(found: Results) -> dict[tuple[str, float], tuple[Spread | None, bool]]:
    return {(verdict.name, verdict.budget): (verdict.measured, verdict.kept) for verdict in verdicts(found)}


def test_latency_is_judged_by_ratios_within_a_repetition(alone: Hop) -> None:
    judged = measured(results((alone,)))
    ratio = Spread(1.55, 1.1, 2.0)
    assert judged["p50 of one connection, 4 KiB, inline, to the echo's", 1.5] == (ratio, False)
    assert judged["p50 of one connection, 4 KiB, inline, to the echo's on two cores", 1.5] == (
        Spread(1.05, 1.0, 1.1),
        True,
    )
    assert judged["p50 of one connection, 4 KiB, inline, to the best peer's", 0.25] == (Spread(0.25, 0.25, 0.25), True)


def test_throughput_is_judged_at_64_connections(alone: Hop, crowd: Hop) -> None:
    judged = measured(results((alone, crowd)))
    assert judged["throughput of 64 connections, 4 KiB, inline, to the best peer's", 3.0] == (Spread(3, 3, 3), True)
    assert judged["throughput of 64 connections, 4 KiB, inline, to the echo's", 1 / 3][1]
    assert judged["throughput of 64 connections, 4 KiB, arena, to the best peer's", 3.0] == (None, False)


def test_arena_overhead_is_what_goes_beyond_the_copy(alone: Hop) -> None:
    large = Hop("16 MiB", 1, 1, {ARENA: points((500, 1089), (500, 2279))}, "", [1000.0, 2000.0])
    found = results((alone, large))
    assert arena_overhead_us(found, "4 KiB") == [89.0, 93.0]
    assert arena_overhead_us(found, "16 MiB") == [89.0, 279.0]
    assert arena_overhead_us(found, "588 KiB") == []
    judged = measured(found)
    assert judged["that overhead, 16 MiB to 4 KiB", 1.5] == (Spread(2.0, 1.0, 3.0), False)
    assert judged["one arena request alone, 16 MiB, over the in-process call", 300.0] == (Spread(184, 89, 279), True)


def test_limit_of_an_arena_has_the_copy_in_it(alone: Hop) -> None:
    found = results((alone,))
    assert limit(found, alone, INLINE, latency=True) == [50, 100]
    assert limit(found, alone, ARENA, latency=True) == [31, 32]
    assert limit(found, alone, ARENA, latency=False) == [90000, 90000]
    assert limit(found, alone, PEER, latency=True) is None
    slow = Hop("4 KiB", 1, 1, alone.systems, "", [100.0, 200.0])
    assert limit(results((slow,)), slow, ARENA, latency=False) == [10000, 5000]


def test_everything_unmeasured_is_missed() -> None:
    judged = measured(results())
    assert len(judged) == 16
    assert not any(kept for _, kept in judged.values())


def test_saturation_goodput_and_idle_are_judged() -> None:
    saturation = Saturation("digits", 32, [100, 200], {"one row": [96, 192]}, {"one row": [50, 100]}, {"one row": "x"})
    goodput = Goodput("digits", [100], [500], [96], [3], [{"116": 7}], [0], [10], [0.2])
    idle = Idle(
        10, {"supervisor": 0.6, "frontend": 0.5, "worker": 50}, {"supervisor": 90, "frontend": 90, "worker": 500}
    )
    judged = measured(results((), (saturation,), (goodput,), idle))
    assert not judged["digits at saturation, one row, to the offline loop", 0.97][1]
    assert judged["digits at saturation, one row, to the offline loop", 0.95][1]
    assert judged["goodput at 5 × the capacity, digits, to the peak", 0.95][1]
    assert not judged["idle, all but the workers, CPU", 1.0][1]
    assert judged["idle, all but the workers, memory", 200.0] == (Spread(180, 180, 180), True)


def test_tables_show_good_and_bad_alike(alone: Hop, crowd: Hop) -> None:
    text = report.rendered(results((alone, crowd), failures=("mosec: it broke",)))
    assert "2001-02-03, commit abc, compiled, a full run: 2 repetitions" in text
    assert "| p50 of one connection, 4 KiB, inline, to the echo's | ≤ 1.50 × | 1.55 (1.10–2.00) | **missed** |" in text
    assert "| 64 × 1 | inline | 63,000 (60,000–66,000) |" in text
    assert "mosec (batch 64, wait 1 ms)" in text
    assert "echo, inline frames at 64 × 1 (95%)" in text
    assert "* mosec: it broke" in text


def test_results_survive_as_json(alone: Hop) -> None:
    found = results((alone,), idle=Idle(1, {"worker": 0}, {"worker": 1}))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Results) == found


def test_hop_that_was_not_measured_is_none(alone: Hop) -> None:
    assert hop_of(results((alone,)), "4 KiB", (1, 1)) is alone
    assert hop_of(results((alone,)), "4 KiB", (64, 1)) is None


def test_figures_of_a_page_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.replace_figures(page, "new\n")
    report.replace_figures(page, "newer\n")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnewer\n\n{report.END}\nafter\n"


def test_page_of_the_benchmarks_has_the_marks_once_and_in_order() -> None:
    text = PAGE.read_text()
    assert (text.count(report.BEGIN), text.count(report.END)) == (1, 1)
    assert text.index(report.BEGIN) < text.index(report.END)
