import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.bench.plot import CHARACTER_WIDTH, HEIGHT, WIDTH, histogram_svg
from tensord.daemon.bench.report import Report, report
from tensord.daemon.cli.output import microseconds

from .measurements import SPEC, durations, measurement, tally

SVG = "{http://www.w3.org/2000/svg}"


def label(us: float | None) -> str:
    return f"{us:.0f} us"


def figures_of(*milliseconds: float, **changes: object) -> Report:
    return report(measurement(tally=tally(latency=durations(*milliseconds)), **changes))


def drawn(figures: Report) -> ET.Element:
    return ET.fromstring(histogram_svg(figures, label))


def texts(root: ET.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


def bars(root: ET.Element) -> list[ET.Element]:
    return [each for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]


def test_it_is_one_file_for_light_and_dark_that_says_what_it_shows() -> None:
    figures = figures_of(*range(1, 200))
    text = histogram_svg(figures, label)
    root = ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert root.findtext(f"{SVG}title") == "Latency of digits:3"
    marks = figures.latency
    summary = f"p50 {label(marks.p50_us)}, p90 {label(marks.p90_us)}, p99 {label(marks.p99_us)}, max 199000 us"
    assert root.findtext(f"{SVG}desc") == summary


def test_every_measured_request_is_in_a_bar() -> None:
    root = drawn(figures_of(*(1 + number / 50 for number in range(300))))
    notes = [bar.findtext(f"{SVG}title") or "" for bar in bars(root)]
    counts = [re.search(r": ([\d,]+) requests", note) for note in notes]
    assert sum(int(found[1].replace(",", "")) for found in counts if found) == 300


def test_bars_stand_on_the_axis_within_the_picture_and_do_not_overlap() -> None:
    root = drawn(figures_of(*(1.01**number for number in range(900))))
    edges = [(float(bar.get("x", 0)), float(bar.get("width", 0))) for bar in bars(root)]
    assert all(x + width <= following for (x, width), (following, _) in pairwise(edges))
    assert all(x >= 0 and x + width <= WIDTH for x, width in edges)
    feet = {round(float(bar.get("y", 0)) + float(bar.get("height", 0)), 0) for bar in bars(root)}
    assert len(feet) == 1
    assert feet.pop() < HEIGHT


def test_the_slowest_hundredth_looks_different() -> None:
    root = drawn(figures_of(*[1.0] * 990, *[50.0] * 10))
    assert [bar.get("class") for bar in bars(root)] == ["bar", "tail"]


def test_percentiles_are_marked_as_far_as_they_are_known() -> None:
    names = [text.split()[0] for text in texts(drawn(figures_of(*range(1, 1_500)))) if text.startswith(("p", "max"))]
    assert names == ["p50", "p90", "p99", "p99.9", "max"]
    names = [text.split()[0] for text in texts(drawn(figures_of(1, 2, 3))) if text.startswith(("p", "max"))]
    assert names == ["p50", "max"]


@pytest.mark.parametrize(
    "milliseconds", [[1.0] * 2_000, [1 + number / 1e5 for number in range(2_000)], [1.002**n for n in range(5_000)]]
)
def test_no_mark_crosses_a_label_and_labels_do_not_touch(milliseconds: list[float]) -> None:
    root = ET.fromstring(histogram_svg(figures_of(*milliseconds), microseconds))
    marks = [each for each in root.iter(f"{SVG}line") if each.get("class") == "mark"]
    labels = [each for each in root.iter(f"{SVG}text") if each.find(f"{SVG}tspan") is not None]
    assert len(marks) == len(labels) == 5
    boxes = []
    for each in labels:
        left, base = float(each.get("x", 0)), float(each.get("y", 0))
        boxes.append((left, left + len("".join(each.itertext())) * CHARACTER_WIDTH, base))
    for left, right, base in boxes:
        assert right <= WIDTH
        for mark in marks:
            x, top = float(mark.get("x1", 0)), float(mark.get("y1", 0))
            assert not (left < x < right and top < base)
    rows: dict[float, list[tuple[float, float]]] = {}
    for left, right, base in boxes:
        rows.setdefault(base, []).append((left, right))
    assert all(before[1] <= after[0] for row in rows.values() for before, after in pairwise(row))


@pytest.mark.parametrize("milliseconds", [[0.001, 60_000], [0.5], [3, 3, 3], [0.2, 0.3], [10_000] * 5])
def test_the_axes_have_some_round_numbers_whatever_there_was(milliseconds: list[float]) -> None:
    found = texts(drawn(figures_of(*milliseconds)))
    ticks = [text for text in found if text.endswith(" us") and not text.startswith(("p", "max"))]
    shares = [float(text.removesuffix(" %")) for text in found if text.endswith(" %") and text[0].isdigit()]
    assert 1 <= len(ticks) <= 13
    assert shares[0] == 0
    assert 3 <= len(shares) <= 6


def test_warnings_stand_below() -> None:
    figures = report(measurement(tally=tally(busy_s=2.0)))
    root = drawn(figures)
    assert any(text.startswith("Warning: the load generator was the limit") for text in texts(root))
    assert int(root.get("height", 0)) > HEIGHT


def test_names_cannot_break_the_file() -> None:
    spec = type(SPEC)("<&>", 1, SPEC.inputs, SPEC.outputs, 1, idempotent=True)
    assert "<&>:1" in texts(drawn(figures_of(1, 2, spec=spec)))


def test_nothing_answered_is_an_empty_picture() -> None:
    root = drawn(figures_of())
    assert bars(root) == []
    assert root.findtext(f"{SVG}desc") == "no answer was measured"
