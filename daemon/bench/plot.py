"""The latency histogram as an SVG file: one file, no script, light or dark as its reader likes."""

import math
from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import Final
from xml.sax.saxutils import escape

from ..svg import line, picture, round_step, text
from .report import Column, Report

WIDTH: Final = 880
HEIGHT: Final = 470
LEFT, RIGHT, TOP, BOTTOM = 84, 100, 166, 70
PLOT_WIDTH: Final = WIDTH - LEFT - RIGHT
PLOT_HEIGHT: Final = HEIGHT - TOP - BOTTOM
BASE: Final = TOP + PLOT_HEIGHT
MARGIN: Final = 28
FLAGS_TOP: Final = 94
LINE_HEIGHT: Final = 17
FLAG_ROWS: Final = 5
CHARACTER_WIDTH: Final = 7.0
"""Of a flag's text, on average, or a little more: fonts differ, and texts must not touch."""

COLUMNS_MIN: Final = 24
"""Where latencies hardly differ, there is some space around them all the same."""

NOTE_CHARACTERS: Final = 120
"""Of a warning, in a line."""

TICKS: Final = 5
"""Steps of the y axis, at most."""

FormatUs = Callable[[float | None], str]


def histogram_svg(report: Report, format_us: FormatUs) -> str:
    """The picture; `format_us` writes a duration as the report's text does."""
    columns = _widened(report.histogram)
    scale = _Scale(columns)
    marks = _marks(report)
    notes = [line for warning in report.warnings for line in wrap(f"Warning: {warning}", NOTE_CHARACTERS)]
    parts = [
        *_head(report),
        *_y_axis(columns),
        *_x_axis(scale, format_us),
        *_bars(columns, scale, report.latency.p99_us, format_us),
        *_percentiles(marks, scale, format_us),
        *(text(MARGIN, HEIGHT + 6 + LINE_HEIGHT * number, note, "note") for number, note in enumerate(notes)),
    ]
    summary = ", ".join(f"{name} {format_us(value)}" for name, value in marks) or "no answer was measured"
    height = HEIGHT + LINE_HEIGHT * len(notes) + (8 if notes else 0)
    return picture(WIDTH, height, f"Latency of {_title(report)}", summary, parts)


def _title(report: Report) -> str:
    return f"{report.load.model}:{report.load.version}"


def _marks(report: Report) -> list[tuple[str, float]]:
    times = report.latency
    named = (
        ("p50", times.p50_us),
        ("p90", times.p90_us),
        ("p99", times.p99_us),
        ("p99.9", times.p999_us),
        ("max", times.max_us),
    )
    return [(name, value) for name, value in named if value is not None]


def _widened(columns: Sequence[Column]) -> list[Column]:
    """The columns, and empty ones around them where they are few."""
    if not columns:
        return []
    ratio = columns[0].to_us / columns[0].from_us
    made = list(columns)
    while len(made) < COLUMNS_MIN:
        first, last = made[0], made[-1]
        made = [Column(first.from_us / ratio, first.from_us, 0), *made, Column(last.to_us, last.to_us * ratio, 0)]
    return made


class _Scale:
    """Durations on the x axis."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.low_us = columns[0].from_us if columns else 100.0
        self.high_us = columns[-1].to_us if columns else 10_000.0

    def x(self, us: float) -> float:
        """Where it is, in pixels."""
        share = math.log(us / self.low_us) / math.log(self.high_us / self.low_us)
        return LEFT + PLOT_WIDTH * min(1.0, max(0.0, share))

    def ticks_us(self) -> list[float]:
        """Round durations, not too many."""
        decades = range(math.floor(math.log10(self.low_us)), math.ceil(math.log10(self.high_us)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            inside = [each for each in ticks if self.low_us <= each <= self.high_us]
            if len(inside) <= PLOT_WIDTH // 64:
                break
        return inside


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


def _head(report: Report) -> Iterator[str]:
    load, throughput = report.load, report.throughput
    rows = "1 row" if load.rows_per_request == 1 else f"{load.rows_per_request:,} rows"
    if load.rate_per_s is None:
        shape = f"closed loop, {load.clients:,} clients × {load.depth:,} in flight"
    else:
        shape = f"open loop, {load.rate_per_s:,.6g} {load.arrivals} arrivals/s, {load.clients:,} clients"
    yield text(MARGIN, 40, _title(report), "ink headline")
    yield text(WIDTH - MARGIN, 40, f"{throughput.requests_per_s:,.0f} requests/s", "ink headline", "end")
    yield text(MARGIN, 62, f"{shape}, {rows} each, {load.lane} lane", "dim")
    failed = report.requests.measured - report.requests.measured_answered
    answers = f"{report.latency.count:,} answered, {failed:,} failed in {load.measured_s:,.4g} s"
    yield text(WIDTH - MARGIN, 62, answers, "dim", "end")


def _y_axis(columns: Sequence[Column]) -> Iterator[str]:
    top = _top_share(columns)
    step = round_step(top / TICKS)
    for number in range(round(top / step) + 1):
        y = BASE - PLOT_HEIGHT * number * step / top
        yield line(LEFT, y, WIDTH - RIGHT, y, "grid" if number else "axis")
        yield text(LEFT - 10, y + 4, f"{number * step:.3g} %", "dim", "end")
    x, middle = MARGIN + 4, TOP + PLOT_HEIGHT / 2
    yield text(x, middle, "share of the requests", "dim", "middle", f' transform="rotate(-90 {x} {middle:.1f})"')


def _top_share(columns: Sequence[Column]) -> float:
    """The top of the y axis, in percent: at least the highest column."""
    total = sum(column.count for column in columns)
    highest = max((column.count for column in columns), default=0) / total * 100 if total else 1.0
    step = round_step(highest / TICKS)
    return math.ceil(highest / step - 1e-9) * step


def _x_axis(scale: _Scale, format_us: FormatUs) -> Iterator[str]:
    for tick in scale.ticks_us():
        x = scale.x(tick)
        yield line(x, BASE, x, BASE + 5, "axis")
        yield text(x, BASE + 20, format_us(tick), "dim", "middle")
    yield text(LEFT + PLOT_WIDTH / 2, BASE + 48, "latency, on a logarithmic axis", "dim", "middle")
    x = WIDTH - RIGHT - 96
    yield f'<rect class="tail" x="{x}" y="{BASE + 38}" width="11" height="11" rx="2"/>'
    yield text(x + 17, BASE + 48, "the slowest 1 %", "dim")


def _bars(columns: Sequence[Column], scale: _Scale, p99_us: float | None, format_us: FormatUs) -> Iterator[str]:
    total = sum(column.count for column in columns)
    top = _top_share(columns)
    for column in columns:
        if not column.count:
            continue
        share = 100 * column.count / total
        height = max(1.0, PLOT_HEIGHT * share / top)
        left, right = scale.x(column.from_us), scale.x(column.to_us)
        kind = "tail" if p99_us is not None and column.from_us >= p99_us else "bar"
        note = f"{format_us(column.from_us)} to {format_us(column.to_us)}: {column.count:,} requests, {share:.2g} %"
        yield (
            f'<rect class="{kind}" x="{left + 0.5:.1f}" y="{BASE - height:.1f}" width="{right - left - 1:.1f}" '
            f'height="{height:.1f}" rx="1.5"><title>{escape(note)}</title></rect>'
        )


def _percentiles(marks: Sequence[tuple[str, float]], scale: _Scale, format_us: FormatUs) -> Iterator[str]:
    """A line for each, and a flag at its upper end.

    A flag flies to the right, as high as it may: neither its row nor one below, where its line passes, has another
    flag there. So no line ever crosses a label.
    """
    ends = [-math.inf] * FLAG_ROWS
    for name, value in marks:
        x = scale.x(value)
        shown = format_us(value)
        row = FLAG_ROWS - 1
        while row > 0 and ends[row - 1] < x:
            row -= 1
        ends[row] = x + (len(name) + len(shown) + 2) * CHARACTER_WIDTH
        y = FLAGS_TOP + row * LINE_HEIGHT
        yield line(x, y - 10, x, BASE, "mark")
        yield (
            f'<text class="ink" x="{x + 5:.1f}" y="{y:.1f}"><tspan class="name">{escape(name)}</tspan> '
            f"{escape(shown)}</text>"
        )
