"""Pictures as SVG files: one file each, no script, light or dark as its reader likes."""

import math
from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape as _escape

LIGHT: Final = {
    "paper": "fill: #ffffff",
    "ink": "fill: #1c2330",
    "dim": "fill: #5c677a",
    "grid": "stroke: #e4e8ee",
    "axis": "stroke: #8793a6",
    "mark": "stroke: #8793a6",
    "bar": "fill: #3b7dd8",
    "tail": "fill: #e08a1e",
    "note": "fill: #b46504",
}
DARK: Final = {
    "paper": "fill: #12161d",
    "ink": "fill: #e8ecf2",
    "dim": "fill: #98a4b6",
    "grid": "stroke: #262e3a",
    "axis": "stroke: #6d7a8f",
    "mark": "stroke: #6d7a8f",
    "bar": "fill: #5b9cf2",
    "tail": "fill: #f2ab4b",
    "note": "fill: #f2ab4b",
}
"""Colours by class. Not custom properties: viewers other than browsers know none, and draw all of it black."""

SERIES: Final = {
    "light": ("#3b7dd8", "#e08a1e", "#2f9e6e", "#b4488f", "#7a6ad8", "#8a6d3b", "#5c677a", "#c8443c"),
    "dark": ("#5b9cf2", "#f2ab4b", "#4cc38f", "#d977b7", "#a094f0", "#c2a369", "#98a4b6", "#ef7770"),
}
"""Of lines (class `s0` and so on) and areas (`f0`) that are compared."""

SHAPES: Final = """\
svg { font: 12.5px ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
      font-variant-numeric: tabular-nums; }
.headline { font-size: 19px; font-weight: 600; }
.name { font-weight: 600; }
.mark { stroke-dasharray: 3 3; }
.curve { fill: none; stroke-width: 2; }
.law { fill: none; stroke-width: 1.5; stroke-dasharray: 6 4; }
"""


def picture(width: int, height: int, title: str, description: str, parts: Iterable[str]) -> str:
    """A whole file: what it is called, what it says to who cannot see it, and what is drawn."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">\n<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n'
        f'<style>\n{_style()}</style>\n<rect class="paper" width="100%" height="100%" rx="10"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def escape(words: str) -> str:
    """Words as XML, which has no place for control characters, not even escaped."""
    return _escape("".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in words))


def text(x: float, y: float, words: str, kind: str, anchor: str = "start", more: str = "") -> str:
    """`kind` is its classes, `anchor` the end that stands at x, `more` further attributes."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def curve(points: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through all points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def _style() -> str:
    def rules(colours: dict[str, str], series: tuple[str, ...]) -> str:
        named = "".join(f".{name} {{ {colour}; }}\n" for name, colour in colours.items())
        numbered = (f".s{k} {{ stroke: {each}; }}\n.f{k} {{ fill: {each}; }}\n" for k, each in enumerate(series))
        return named + "".join(numbered)

    light, dark = rules(LIGHT, SERIES["light"]), rules(DARK, SERIES["dark"])
    return f"{SHAPES}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
