from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.cli.output import microseconds
from tensord.daemon.simulation.frame import HEIGHT, WIDTH
from tensord.daemon.simulation.intervals import Estimate
from tensord.daemon.simulation.plots import latency_svg, outcomes_svg, pictures, scaling_svg
from tensord.daemon.simulation.results import Summary, summary
from tensord.daemon.simulation.run import Report, Scaling, Sweep
from tensord.daemon.simulation.scaling import fit

from .test_results import MS, tally
from .test_tally import request, run

SVG = "{http://www.w3.org/2000/svg}"


def named(name: str, *responses_ms: int, refused: int = 0) -> Summary:
    return summary(name, [tally(*responses_ms, refused=refused)], {9: "cpu:0"}, ["", "", "", "m"], ["w"])


def scaled(per_s: list[float]) -> Scaling:
    replicas = [1, 2, 4, 8]
    return Scaling("s", replicas, [Estimate(each, each / 50) for each in per_s], fit(replicas, per_s))


SETTINGS = [named("fcfs & co", *range(2, 900), refused=100), named("<sjf>", *range(2, 500))]
SCALING = scaled([100.0, 190.0, 340.0, 500.0])


def texts(root: ET.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


def points_of(root: ET.Element) -> list[list[tuple[float, float]]]:
    """Of each curve."""
    found = [(each.get("points") or "").split() for each in root.iter(f"{SVG}polyline")]
    return [[(float(place.split(",")[0]), float(place.split(",")[1])) for place in curve] for curve in found]


def test_each_setting_has_a_curve_that_climbs_within_the_picture() -> None:
    root = ET.fromstring(latency_svg("Times", {each.setting: each.curve for each in SETTINGS}, microseconds))
    curves = points_of(root)
    assert len(curves) == 2
    for curve in curves:
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
        assert [y for _, y in curve] == sorted((y for _, y in curve), reverse=True)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)
    assert {"fcfs & co", "<sjf>", "99 %"} <= set(texts(root))


@pytest.mark.parametrize("responses", [[3], [3, 3], list(range(2, 30))])
def test_few_answers_are_a_picture_too(responses: list[int]) -> None:
    assert len(points_of(ET.fromstring(latency_svg("Times", {"s": named("s", *responses).curve}, microseconds)))) == 1


def test_a_bar_is_as_long_as_all_that_ended() -> None:
    root = ET.fromstring(outcomes_svg(SETTINGS))
    bars = [each for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    widths: dict[str, float] = {}
    for bar in bars:
        widths[bar.get("y", "")] = widths.get(bar.get("y", ""), 0.0) + float(bar.get("width", 0))
    assert len(widths) == 2
    assert max(widths.values()) - min(widths.values()) < 0.5
    assert "QueueFull" in texts(root)


def test_the_laws_are_drawn_beside_what_was_measured() -> None:
    root = ET.fromstring(scaling_svg(SCALING))
    assert len(points_of(root)) == 3
    assert len(list(root.iter(f"{SVG}circle"))) == 4
    assert all(0 <= y <= HEIGHT for curve in points_of(root) for _, y in curve)
    assert any(text.startswith("USL: σ") for text in texts(root))


def test_every_picture_is_a_file_of_its_own() -> None:
    report = Report(1, 1.0, SETTINGS, [SCALING, SCALING])
    assert set(pictures(report, microseconds)) == {"outcomes.svg", "latency.svg", "scaling-1.svg", "scaling-2.svg"}
    assert set(pictures(Report(1, 1.0, [named("s")], [SCALING]), microseconds)) == {"outcomes.svg", "scaling.svg"}


def test_each_of_several_workloads_has_a_picture_of_its_own() -> None:
    summaries = [summary("s", [tally(*range(2, 30))], {9: "cpu:0"}, ["", "", "", "m"], ["w", "idle"])]
    assert set(pictures(Report(1, 1.0, summaries, []), microseconds)) == {
        "outcomes.svg",
        "latency.svg",
        "latency-1.svg",
    }


def test_a_sweep_is_a_line_for_each_setting() -> None:
    points = [named("s", *range(2, 102)), named("s", *range(2, 902)), named("s")]
    sweeps = [Sweep("s", [1, 2, 3], points), Sweep("other", [1, 2, 3], points)]
    made = pictures(Report(1, 1.0, points[:1], [], sweeps), microseconds)
    assert {name for name in made if "sweep" in name} == {"sweep-goodput.svg", "sweep-batches.svg", "sweep-p99.svg"}
    for name, dots in (("sweep-goodput.svg", 6), ("sweep-batches.svg", 4), ("sweep-p99.svg", 4)):
        root = ET.fromstring(made[name])
        assert {"s", "other"} <= set(texts(root))
        assert [len(points) for points in points_of(root)] == [dots // 2] * 2
        assert len(list(root.iter(f"{SVG}circle"))) == dots
        assert all(0 <= y <= HEIGHT for points in points_of(root) for _, y in points)


def test_tenants_of_a_sweep_are_lines() -> None:
    def of(*tenants: str) -> Summary:
        made = tally(10)
        for tenant in tenants:
            run(made, request(0, tenant=tenant), begun_ns=MS, ended_ns=9 * MS)
        return summary("s", [made], {9: "cpu:0"}, ["", "", "", "m"], ["w"])

    sweep = Sweep("s", [1, 2], [of("a", "b"), of("a", "b", "b")])
    root = ET.fromstring(pictures(Report(1, 1.0, sweep.points, [], [sweep]), microseconds)["sweep-tenants.svg"])
    assert {"a", "b"} <= set(texts(root))


def test_nothing_that_came_is_an_empty_bar() -> None:
    root = ET.fromstring(outcomes_svg([named("s")]))
    assert [each for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None] == []
