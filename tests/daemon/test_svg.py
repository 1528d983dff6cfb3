from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.svg import SERIES, curve, line, picture, round_step, text

SVG = "{http://www.w3.org/2000/svg}"


def test_a_picture_is_one_file_for_light_and_dark() -> None:
    content = picture(100, 50, "a < b", "says & means", [line(0, 0, 9, 9, "axis"), curve([(0, 0), (1, 2)], "curve s0")])
    root = ET.fromstring(content)
    assert (root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")) == ("a < b", "says & means")
    assert "prefers-color-scheme: dark" in content
    assert "http" not in content.replace("http://www.w3.org/2000/svg", "")


def test_words_cannot_break_the_file() -> None:
    assert ET.fromstring(text(0, 0, "<&>\x01", "ink")).text == "<&>\N{REPLACEMENT CHARACTER}"


def test_every_series_has_a_colour_in_both() -> None:
    assert len(set(SERIES["light"])) == len(set(SERIES["dark"])) == len(SERIES["light"])


@pytest.mark.parametrize(("least", "step"), [(1.0, 1.0), (1.1, 2.0), (2.2, 2.5), (3, 5), (7, 10), (0.03, 0.05)])
def test_steps_are_round(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)
