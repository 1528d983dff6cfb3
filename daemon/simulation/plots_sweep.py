"""Pictures of a swept load: each setting is a line over the requests that are offered."""

from collections.abc import Callable, Sequence
from typing import Final

from ..svg import curve, picture, round_step, text
from .frame import (
    COLOURS,
    HEIGHT,
    LEFT,
    MARGIN,
    PLOT_WIDTH,
    TICKS,
    WIDTH,
    Place,
    axis_x,
    legend,
    linear_y,
    logarithmic_y,
)
from .results import Summary
from .run import Sweep

Points = list[tuple[float, float]]

OFFERED: Final = "requests offered per second; upwards: "


def sweep_pictures(sweeps: Sequence[Sweep], format_us: Callable[[float | None], str]) -> dict[str, str]:
    """The files, by name; none without a sweep."""
    if not sweeps:
        return {}
    goodput = _lines(sweeps, lambda point: point.goodput_per_s.mean)
    batches = _lines(sweeps, lambda point: point.batch_rows.mean if point.batch_rows else None)
    made = {
        "sweep-goodput.svg": _linear("Answers in time by load", goodput, "answers in time per second"),
        "sweep-batches.svg": _linear("Batches by load", batches, "mean rows of a batch"),
    }
    tails = _lines(sweeps, lambda point: point.response.p99_us.mean if point.response.p99_us else None)
    if any(tails.values()):
        made["sweep-p99.svg"] = _tails(tails, format_us)
    names = sorted({name for sweep in sweeps for point in sweep.points for name in point.tenants})
    if len(names) > 1:
        made["sweep-tenants.svg"] = _tenants(sweeps, names)
    return made


def _lines(sweeps: Sequence[Sweep], value: Callable[[Summary], float | None]) -> dict[str, Points]:
    """By setting: what was offered, and the value there, where there is one."""
    return {
        sweep.setting: [
            (point.offered_per_s.mean, found) for point in sweep.points if (found := value(point)) is not None
        ]
        for sweep in sweeps
    }


def _tenants(sweeps: Sequence[Sweep], names: Sequence[str]) -> str:
    """The time of all devices that each tenant had: shares of it, idle time included."""
    found: dict[str, Points] = {}
    for sweep in sweeps:
        for name in names:
            label = f"{name}, {sweep.setting}" if len(sweeps) > 1 else name
            found[label] = [
                (point.offered_per_s.mean, 100 * point.tenants.get(name, 0.0) * _busy(point)) for point in sweep.points
            ]
    return _linear("Device time of tenants by load", found, "percent of all device time")


def _busy(point: Summary) -> float:
    return sum(each.mean for each in point.utilisation.values()) / len(point.utilisation)


def _linear(title: str, lines: dict[str, Points], unit: str) -> str:
    y, grid = linear_y(max(value for points in lines.values() for _, value in points), lambda value: f"{value:,.6g}")
    return _drawn(title, lines, y, grid, unit, lambda value: f"{value:,.3g}")


def _tails(lines: dict[str, Points], format_us: Callable[[float | None], str]) -> str:
    values = [value for points in lines.values() for _, value in points]
    y, grid = logarithmic_y(min(values), max(values), format_us)
    return _drawn("Slow answers by load", lines, y, grid, "99 % of the answers came within", format_us)


def _drawn(
    title: str, lines: dict[str, Points], y: Place, grid: list[str], unit: str, format_value: Callable[[float], str]
) -> str:
    most = max(offered for points in lines.values() for offered, _ in points)
    step = round_step(most / TICKS)

    def x(offered: float) -> float:
        return LEFT + PLOT_WIDTH * offered / most

    ticks = [(number * step, f"{number * step:,.6g}") for number in range(int(most / step * (1 + 1e-9)) + 1)]
    parts = [text(MARGIN, 40, title, "ink headline"), *grid, *axis_x(x, ticks, OFFERED + unit)]
    for number, points in enumerate(lines.values()):
        parts.append(curve(((x(offered), y(value)) for offered, value in points), f"curve s{number % COLOURS}"))
        parts += [_dot(x(offered), y(value), f"f{number % COLOURS}") for offered, value in points]
    said = "; ".join(
        f"{name}: {', '.join(format_value(value) for _, value in points)}" for name, points in lines.items()
    )
    return picture(WIDTH, HEIGHT, title, said, [*parts, *legend(list(lines))])


def _dot(x: float, y: float, kind: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
