"""What the simulator's pictures have in common: their size, axes, and the names of what is compared."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..svg import SERIES, line, round_step, text

WIDTH: Final = 880
HEIGHT: Final = 470
LEFT, RIGHT, TOP, BOTTOM = 84, 36, 110, 64
PLOT_WIDTH: Final = WIDTH - LEFT - RIGHT
PLOT_HEIGHT: Final = HEIGHT - TOP - BOTTOM
BASE: Final = TOP + PLOT_HEIGHT
MARGIN: Final = 28
LEGEND_TOP: Final = 66
LEGEND_LINE: Final = 18
CHARACTER_WIDTH: Final = 7.0
COLOURS: Final = len(SERIES["light"])
TICKS: Final = 5

Place = Callable[[float], float]
"""From a value to where it stands in the picture."""


def legend(names: Sequence[str]) -> Iterator[str]:
    """In lines from the left, as many as it takes: two fit above the plot."""
    x, y = float(MARGIN), LEGEND_TOP
    for number, name in enumerate(names):
        width = 24 + (len(name) + 2) * CHARACTER_WIDTH
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LEGEND_LINE
        yield f'<rect class="f{number % COLOURS}" x="{x:.1f}" y="{y - 10}" width="11" height="11" rx="2"/>'
        yield text(x + 17, y, name, "dim")
        x += width


def linear_y(most: float, format_value: Callable[[float], str]) -> tuple[Place, list[str]]:
    """An axis from 0 to somewhat beyond `most`, with its grid; more than that is cut off."""
    step = round_step(max(most, 1e-9) / TICKS)
    top = math.ceil(most / step * (1 - 1e-9)) * step or step

    def y(value: float) -> float:
        return BASE - PLOT_HEIGHT * min(value, top) / top

    return y, list(_grid(y, [number * step for number in range(round(top / step) + 1)], format_value))


def logarithmic_y(least: float, most: float, format_value: Callable[[float], str]) -> tuple[Place, list[str]]:
    """An axis of whole decades, at least one, with its grid."""
    bottom, top = math.floor(math.log10(least)), math.ceil(math.log10(most))
    top = max(top, bottom + 1)

    def y(value: float) -> float:
        return BASE - PLOT_HEIGHT * (math.log10(max(value, 10.0**bottom)) - bottom) / (top - bottom)

    return y, list(_grid(y, [10.0**decade for decade in range(bottom, top + 1)], format_value))


def _grid(y: Place, values: Sequence[float], format_value: Callable[[float], str]) -> Iterator[str]:
    for number, value in enumerate(values):
        yield line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid" if number else "axis")
        yield text(LEFT - 10, y(value) + 4, format_value(value), "dim", "end")


def axis_x(x: Place, ticks: Sequence[tuple[float, str]], name: str) -> Iterator[str]:
    """Ticks with their words, and what is drawn from left to right, and upwards."""
    for value, words in ticks:
        yield line(x(value), BASE, x(value), BASE + 5, "axis")
        yield text(x(value), BASE + 20, words, "dim", "middle")
    yield text(LEFT + PLOT_WIDTH / 2, BASE + 46, name, "dim", "middle")
