"""The report's pictures: response times, what became of the requests, throughput by replicas, and all of it by load."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ..svg import curve, escape, line, picture, text
from .frame import (
    COLOURS,
    HEIGHT,
    LEFT,
    MARGIN,
    PLOT_WIDTH,
    TOP,
    WIDTH,
    axis_x,
    legend,
    linear_y,
    logarithmic_y,
)
from .plots_sweep import sweep_pictures
from .results import Summary
from .run import Report, Scaling

BAR_HEIGHT: Final = 26
BAR_GAP: Final = 14
NAME_WIDTH: Final = 150
TAILS: Final = ((0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"))

FormatUs = Callable[[float | None], str]
Curve = Sequence[tuple[float, float]]


def pictures(report: Report, format_us: FormatUs) -> dict[str, str]:
    """The files, by name; `format_us` writes a duration as the report's text does."""
    made = {"outcomes.svg": outcomes_svg(report.settings)}
    made |= _latencies(report.settings, format_us)
    for number, scaling in enumerate(report.scaling, 1):
        made[f"scaling-{number}.svg" if len(report.scaling) > 1 else "scaling.svg"] = scaling_svg(scaling)
    return made | sweep_pictures(report.sweeps, format_us)


def _latencies(settings: Sequence[Summary], format_us: FormatUs) -> dict[str, str]:
    """One picture of all requests and, where there are several workloads, one of each; none where nothing came."""
    curves = {"latency.svg": ("Response times", {each.setting: each.curve for each in settings})}
    names = list(settings[0].workload_curves)
    if len(names) > 1:
        for number, name in enumerate(names, 1):
            of_it = {each.setting: each.workload_curves[name] for each in settings}
            curves[f"latency-{number}.svg"] = f"Response times: {name}", of_it
    return {
        file: latency_svg(title, found, format_us) for file, (title, found) in curves.items() if any(found.values())
    }


def latency_svg(title: str, curves: Mapping[str, Curve], format_us: FormatUs) -> str:
    """The response time that a fraction of the answers did not exceed; both axes logarithmic, so tails can be seen."""
    drawn = {name: points for name, points in curves.items() if points}
    last = max(points[-1][0] for points in drawn.values())
    low_us, high_us = (choose(points[at][1] for points in drawn.values()) for choose, at in ((min, 0), (max, -1)))
    y, grid = logarithmic_y(max(low_us, 1e-3), max(high_us, 2e-3), format_us)

    def x(fraction: float) -> float:
        return LEFT + PLOT_WIDTH * math.log10(1 - fraction) / min(-1.0, math.log10(1 - last))

    tails = [(fraction, name) for fraction, name in TAILS if fraction <= last]
    parts = [text(MARGIN, 40, title, "ink headline"), *grid]
    parts += axis_x(x, tails, "share of the answers that came within this time")
    for number, points in enumerate(drawn.values()):
        parts.append(curve(((x(part), y(us)) for part, us in points), f"curve s{number % COLOURS}"))
    parts += legend(list(drawn))
    said = ", ".join(f"{name} at most {format_us(points[-1][1])}" for name, points in drawn.items())
    return picture(WIDTH, HEIGHT, title, said, parts)


def outcomes_svg(settings: Sequence[Summary]) -> str:
    """What became of the requests of each setting, as shares of those that came to an end."""
    errors = sorted({name for summary in settings for name in summary.refused_per_s})
    names = ["in time", "late", *errors]
    height = TOP + len(settings) * (BAR_HEIGHT + BAR_GAP) + 20
    parts = [text(MARGIN, 40, "What became of the requests", "ink headline"), *legend(names)]
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
    y, grid = linear_y(top, lambda value: f"{value:,.6g}")

    def x(replicas: float) -> float:
        return LEFT + PLOT_WIDTH * replicas / most

    parts = [text(MARGIN, 40, f"Throughput by replicas: {scaling.setting}", "ink headline"), *grid]
    ticks = [(float(replicas), f"{replicas}") for replicas in scaling.replicas]
    parts += axis_x(x, ticks, "replicas; upwards: answers per second (dashed and grey: were it proportional)")
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
    parts += legend(["simulated", *(_law(law.name, law.serial, law.coherency, law.r_squared) for law in scaling.laws)])
    said = ", ".join(f"{n}: {per_s:,.0f}/s" for n, per_s in zip(scaling.replicas, measured, strict=True))
    return picture(WIDTH, HEIGHT, f"Throughput by replicas: {scaling.setting}", said, parts)


def _law(name: str, serial: float, coherency: float, r_squared: float) -> str:
    kappa = f", κ {coherency:.2g}" if coherency else ""
    return f"{name}: σ {serial:.2g}{kappa}, R² {r_squared:.3f}"
