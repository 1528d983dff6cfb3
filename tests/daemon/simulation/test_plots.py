from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.cli.output import microseconds
from tensord.daemon.simulation.intervals import Estimate
from tensord.daemon.simulation.plots import HEIGHT, WIDTH, latency_svg, outcomes_svg, pictures, scaling_svg
from tensord.daemon.simulation.results import Summary, summary
from tensord.daemon.simulation.run import Report, Scaling
from tensord.daemon.simulation.scaling import fit

from .test_results import tally

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


def points(root: ET.Element) -> list[list[tuple[float, float]]]:
    """Of each curve."""
    found = [(each.get("points") or "").split() for each in root.iter(f"{SVG}polyline")]
    return [[(float(place.split(",")[0]), float(place.split(",")[1])) for place in curve] for curve in found]


def test_each_setting_has_a_curve_that_climbs_within_the_picture() -> None:
    root = ET.fromstring(latency_svg(SETTINGS, microseconds))
    curves = points(root)
    assert len(curves) == 2
    for curve in curves:
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
        assert [y for _, y in curve] == sorted((y for _, y in curve), reverse=True)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in curve)
    assert {"fcfs & co", "<sjf>", "99 %"} <= set(texts(root))


@pytest.mark.parametrize("responses", [[3], [3, 3], list(range(2, 30))])
def test_few_answers_are_a_picture_too(responses: list[int]) -> None:
    assert len(points(ET.fromstring(latency_svg([named("s", *responses)], microseconds)))) == 1


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
    assert len(points(root)) == 3
    assert len(list(root.iter(f"{SVG}circle"))) == 4
    assert all(0 <= y <= HEIGHT for curve in points(root) for _, y in curve)
    assert any(text.startswith("USL: σ") for text in texts(root))


def test_every_picture_is_a_file_of_its_own() -> None:
    report = Report(1, 1.0, SETTINGS, [SCALING, SCALING])
    assert set(pictures(report, microseconds)) == {"outcomes.svg", "latency.svg", "scaling-1.svg", "scaling-2.svg"}
    assert set(pictures(Report(1, 1.0, [named("s")], [SCALING]), microseconds)) == {"outcomes.svg", "scaling.svg"}


def test_nothing_that_came_is_an_empty_bar() -> None:
    root = ET.fromstring(outcomes_svg([named("s")]))
    assert [each for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None] == []
