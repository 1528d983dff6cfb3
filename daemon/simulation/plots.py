"""The report's pictures: response times, what became of the requests, and throughput by replicas."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..svg import SERIES, curve, escape, line, picture, round_step, text
from .results import Summary
from .run import Report, Scaling

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
BAR_HEIGHT: Final = 26
BAR_GAP: Final = 14
NAME_WIDTH: Final = 150
TICKS: Final = 5
COLOURS: Final = len(SERIES["light"])
TAILS: Final = ((0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"))

FormatUs = Callable[[float | None], str]


def pictures(report: Report, format_us: FormatUs) -> dict[str, str]:
    """The files, by name; `format_us` writes a duration as the report's text does."""
    made = {"outcomes.svg": outcomes_svg(report.settings)}
    if any(summary.curve for summary in report.settings):
        made["latency.svg"] = latency_svg(report.settings, format_us)
    for number, scaling in enumerate(report.scaling, 1):
        made[f"scaling-{number}.svg" if len(report.scaling) > 1 else "scaling.svg"] = scaling_svg(scaling)
    return made


def latency_svg(settings: Sequence[Summary], format_us: FormatUs) -> str:
    """The response time that a fraction of the answers did not exceed; both axes logarithmic, so tails can be seen."""
    drawn = [summary for summary in settings if summary.curve]
    low_us = min(summary.curve[0][1] for summary in drawn)
    high_us = max(summary.curve[-1][1] for summary in drawn)
    bottom, top = math.floor(math.log10(max(low_us, 1e-3))), math.ceil(math.log10(max(high_us, 2e-3)))
    top = max(top, bottom + 1)
    last = max(summary.curve[-1][0] for summary in drawn)

    def x(fraction: float) -> float:
        return LEFT + PLOT_WIDTH * math.log10(1 - fraction) / min(-1.0, math.log10(1 - last))

    def y(us: float) -> float:
        return BASE - PLOT_HEIGHT * (math.log10(max(us, 10.0**bottom)) - bottom) / (top - bottom)

    parts = [text(MARGIN, 40, "Response times", "ink headline")]
    for decade in range(bottom, top + 1):
        parts.append(line(LEFT, y(10.0**decade), WIDTH - RIGHT, y(10.0**decade), "grid" if decade > bottom else "axis"))
        parts.append(text(LEFT - 10, y(10.0**decade) + 4, format_us(10.0**decade), "dim", "end"))
    for fraction, name in TAILS:
        if fraction <= last:
            parts.append(line(x(fraction), BASE, x(fraction), BASE + 5, "axis"))
            parts.append(text(x(fraction), BASE + 20, name, "dim", "middle"))
    parts.append(text(LEFT + PLOT_WIDTH / 2, BASE + 46, "of the answers came within", "dim", "middle"))
    for number, summary in enumerate(drawn):
        parts.append(curve(((x(part), y(us)) for part, us in summary.curve), f"curve s{number % COLOURS}"))
    parts += _legend([summary.setting for summary in drawn])
    said = ", ".join(f"{each.setting} p99 {format_us(_mean(each))}" for each in drawn)
    return picture(WIDTH, HEIGHT, "Response times", said, parts)


def _mean(summary: Summary) -> float | None:
    return None if summary.response.p99_us is None else summary.response.p99_us.mean


def outcomes_svg(settings: Sequence[Summary]) -> str:
    """What became of the requests of each setting, as shares of those that came to an end."""
    errors = sorted({name for summary in settings for name in summary.refused_per_s})
    names = ["in time", "late", *errors]
    height = TOP + len(settings) * (BAR_HEIGHT + BAR_GAP) + 20
    parts = [text(MARGIN, 40, "What became of the requests", "ink headline"), *_legend(names)]
    for number, summary in enumerate(settings):
        y = TOP + number * (BAR_HEIGHT + BAR_GAP)
        parts.append(text(MARGIN + NAME_WIDTH - 10, y + BAR_HEIGHT / 2 + 4, summary.setting, "ink", "end"))
        parts += _bar(summary, errors, y)
    said = "; ".join(
        f"{each.setting}: {each.goodput_per_s.mean:,.0f} of {each.offered_per_s.mean:,.0f} per second in time"
        for each in settings
    )
    return picture(WIDTH, height, "What became of the requests", said, parts)


def _bar(summary: Summary, errors: Sequence[str], y: float) -> Iterator[str]:
    late = summary.throughput_per_s.mean - summary.goodput_per_s.mean
    refused = [summary.refused_per_s[name].mean if name in summary.refused_per_s else 0.0 for name in errors]
    values = [summary.goodput_per_s.mean, late, *refused]
    whole = sum(values)
    left, width = float(MARGIN + NAME_WIDTH), WIDTH - 2 * MARGIN - NAME_WIDTH
    for number, (name, value) in enumerate(zip(["in time", "late", *errors], values, strict=True)):
        if value > 0:
            share = value / whole
            note = f"{name}: {value:,.1f} per second, {share:.1%}"
            yield (
                f'<rect class="f{number % COLOURS}" x="{left:.1f}" y="{y}" width="{width * share:.1f}" '
                f'height="{BAR_HEIGHT}"><title>{escape(note)}</title></rect>'
            )
            left += width * share


def scaling_svg(scaling: Scaling) -> str:
    """Measured throughput with its intervals, the three laws, and a straight line through the first."""
    most = scaling.replicas[-1]
    measured = [each.mean for each in scaling.throughput_per_s]
    ideal = measured[0] / scaling.replicas[0]
    top = max(measured) * 1.25
    step = round_step(top / TICKS)
    top = math.ceil(top / step) * step

    def x(replicas: float) -> float:
        return LEFT + PLOT_WIDTH * replicas / most

    def y(per_s: float) -> float:
        return BASE - PLOT_HEIGHT * min(per_s, top) / top

    parts = [text(MARGIN, 40, f"Throughput by replicas: {scaling.setting}", "ink headline")]
    for number in range(round(top / step) + 1):
        parts.append(line(LEFT, y(number * step), WIDTH - RIGHT, y(number * step), "grid" if number else "axis"))
        parts.append(text(LEFT - 10, y(number * step) + 4, f"{number * step:,.6g}", "dim", "end"))
    for replicas in scaling.replicas:
        parts.append(line(x(replicas), BASE, x(replicas), BASE + 5, "axis"))
        parts.append(text(x(replicas), BASE + 20, f"{replicas}", "dim", "middle"))
    parts.append(text(LEFT + PLOT_WIDTH / 2, BASE + 46, "replicas; requests/s above", "dim", "middle"))
    parts.append(line(x(0), y(0), x(min(most, top / ideal)), y(ideal * min(most, top / ideal)), "mark"))
    fine = [most * share / 100 for share in range(1, 101)]
    for number, law in enumerate(scaling.laws, 1):
        parts.append(curve(((x(n), y(law.at(n))) for n in fine if n >= 1 or most == 1), f"law s{number}"))
    for replicas, each in zip(scaling.replicas, scaling.throughput_per_s, strict=True):
        reach = each.half_width or 0.0
        parts.append(line(x(replicas), y(each.mean - reach), x(replicas), y(each.mean + reach), "s0"))
        note = f"{replicas} replicas: {each.mean:,.1f} requests/s"
        parts.append(
            f'<circle class="f0" cx="{x(replicas):.1f}" cy="{y(each.mean):.1f}" r="4"><title>{note}</title></circle>'
        )
    parts += _legend(["simulated", *(_law(law.name, law.serial, law.coherency, law.r_squared) for law in scaling.laws)])
    said = ", ".join(f"{n}: {per_s:,.0f}/s" for n, per_s in zip(scaling.replicas, measured, strict=True))
    return picture(WIDTH, HEIGHT, f"Throughput by replicas: {scaling.setting}", said, parts)


def _law(name: str, serial: float, coherency: float, r_squared: float) -> str:
    kappa = f", κ {coherency:.2g}" if coherency else ""
    return f"{name}: σ {serial:.2g}{kappa}, R² {r_squared:.3f}"


def _legend(names: Sequence[str]) -> Iterator[str]:
    """In lines from the left, as many as it takes: two fit above the plot."""
    x, y = float(MARGIN), LEGEND_TOP
    for number, name in enumerate(names):
        width = 24 + (len(name) + 2) * CHARACTER_WIDTH
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LEGEND_LINE
        yield f'<rect class="f{number % COLOURS}" x="{x:.1f}" y="{y - 10}" width="11" height="11" rx="2"/>'
        yield text(x + 17, y, name, "dim")
        x += width
