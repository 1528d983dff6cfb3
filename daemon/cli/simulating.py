"""`tensord simulate`: what would these settings do under that load? In virtual time; no daemon is asked."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from ..exits import Exit
from ..simulation.intervals import Estimate
from ..simulation.plots import pictures
from ..simulation.results import Times
from ..simulation.run import Display, Report, Scaling, Sweep, compare
from ..simulation.scenario import Scenario, of_trace
from ..simulation.scenario_file import load_scenario, parse_knobs
from ..simulation.trace import BadTrace, Trace, read_trace
from .output import Failure, Refusal, console, errors, examples, microseconds, table

BAR_WIDTH: Final = 24
EXAMPLES = examples(
    "tensord simulate configs/simulations/orders.toml",
    "tensord simulate configs/simulations/scaling.toml --plot pictures",
    "tensord simulate configs/simulations/overload.toml --set digits.queue_max=64 --json | jq .settings",
    "tensord simulate --trace monday.trace --set window_us=0",
)


def simulate(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="SCENARIO", help="What to simulate, as TOML.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Replay a recorded load, with its settings if alone.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[MODEL.]KNOB=VALUE", help="A knob, in every setting.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw pictures into this directory.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> int:
    """Run the scheduler in virtual time, under a load that is made up or recorded.

    Settings are compared side by side, each with the very same requests. Figures
    are means over replications; ± is the 95 % confidence interval.
    """
    if scenario is None and trace is None:
        raise Refusal("name a scenario or a --trace (see tensord simulate --help)", Exit.USAGE)
    recorded = None if trace is None else _read(trace)
    if scenario is not None:
        plan = load_scenario(scenario, recorded)
    else:
        assert recorded is not None
        plan = of_trace(recorded)
    plan = _with_knobs(plan, settings or [])
    if plot is not None:
        _make_directory(plot)
    with _display() as display:
        report = compare(plan, display)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        sys.stdout.buffer.flush()
    else:
        console.print(_text(report))
        if recorded is not None and not recorded.complete:
            console.print("\n[yellow]warning[/]  the trace stops before the recording was ended", soft_wrap=True)
    if plot is not None:
        _draw(plot, report)
    return Exit.OK


def _read(path: Path) -> Trace:
    try:
        return read_trace(path)
    except BadTrace as error:
        raise Refusal(str(error), Exit.CONFIG) from error
    except OSError as error:
        raise Refusal(f"{path}: cannot be read ({error.strerror}): check the path", Exit.CONFIG) from error


def _with_knobs(plan: Scenario, pairs: list[str]) -> Scenario:
    given = {}
    for pair in pairs:
        address, sign, value = pair.partition("=")
        if not sign:
            raise Refusal(f"--set {pair}: write it as KNOB=VALUE (see tensord simulate --help)", Exit.USAGE)
        given[address] = value
    return plan.with_knobs(parse_knobs("--set", "", given, plan.targets))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise Refusal(f"--plot is {path}: {error.strerror}: name a directory of yours", Exit.USAGE) from error


def _draw(directory: Path, report: Report) -> None:
    for name, content in pictures(report, microseconds).items():
        try:
            (directory / name).write_text(content)
        except OSError as error:
            raise Failure(f"{directory / name} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _display() -> Iterator[Display]:
    """A line on standard error that says how far it is, if somebody looks."""
    if not errors.is_terminal:
        yield lambda *_: None
        return
    bar = Progress(TextColumn("{task.description}"), BarColumn(BAR_WIDTH), console=errors, transient=True)
    with bar:
        task = bar.add_task("simulating", total=None)
        yield lambda setting, done, runs: bar.update(task, description=escape(setting), completed=done, total=runs)


# ── the figures as text ─────────────────────────────────────────────────────────────────────────


def _text(report: Report) -> RenderableType:
    several = any(len(summary.workloads) > 1 for summary in report.settings)
    sections: list[RenderableType] = [_rates(report), _responses(report)]
    if several:
        sections.append(_workloads(report))
    sections.append(_use(report))
    if any(summary.refused_per_s for summary in report.settings):
        sections.append(_refusals(report))
    sections += [_scaling(scaling) for scaling in report.scaling]
    if report.sweeps:
        sections.append(_sweeps(report.sweeps))
    spaced = [part for section in sections for part in ("", section)][1:]
    return Group(*spaced)


def _rates(report: Report) -> RenderableType:
    rows = table("SETTING", right=("OFFERED/S", "ANSWERED/S", "IN TIME/S", "WAITING", "BATCH ROWS"))
    for each in report.settings:
        rows.add_row(
            f"[bold]{escape(each.setting)}[/]",
            _number(each.offered_per_s),
            _number(each.throughput_per_s),
            _number(each.goodput_per_s),
            _number(each.queue_length),
            _number(each.batch_rows),
        )
    return rows


def _responses(report: Report) -> RenderableType:
    rows = table("RESPONSE TIME", right=("MEAN", "p50", "p90", "p99", "p99.9"))
    for each in report.settings:
        rows.add_row(f"[bold]{escape(each.setting)}[/]", *_times(each.response))
        rows.add_row("  [dim]waiting[/]", *_times(each.wait), style="dim")
    return rows


def _workloads(report: Report) -> RenderableType:
    rows = table("WORKLOAD", "SETTING", right=("MEAN", "p50", "p90", "p99", "p99.9"))
    for name in report.settings[0].workloads:
        for each in report.settings:
            rows.add_row(escape(name), escape(each.setting), *_times(each.workloads[name]))
    return rows


def _use(report: Report) -> RenderableType:
    """Devices and, where several share them, who had how much."""
    rows = table("DEVICE TIME", "BUSY")
    rows.add_column("BY MODEL")
    rows.add_column("BY TENANT")
    rows.add_column("RELEASED BECAUSE")
    for each in report.settings:
        busy = [value.mean for value in each.utilisation.values()]
        spread = f"{min(busy):.0%}" if len(busy) == 1 else f"{min(busy):.0%} to {max(busy):.0%}"
        rows.add_row(
            escape(each.setting), spread, _parts(each.models), _parts(each.tenants), _parts(each.released)
        )  # fmt: skip
    return rows


def _parts(shares: dict[str, float]) -> str:
    return ", ".join(f"{escape(name)} {share:.0%}" for name, share in shares.items()) if len(shares) > 1 else "–"


def _refusals(report: Report) -> RenderableType:
    rows = table("REFUSED", "SETTING", right=("PER SECOND", "SHARE"))
    for each in report.settings:
        for name, per_s in each.refused_per_s.items():
            share = per_s.mean / each.offered_per_s.mean if each.offered_per_s.mean else 0.0
            rows.add_row(f"[red]{name}[/]", escape(each.setting), _number(per_s), f"{share:.1%}")
    return rows


def _scaling(scaling: Scaling) -> RenderableType:
    names = [f"{replicas}" for replicas in scaling.replicas]
    rows = table("REPLICAS", right=tuple(names))
    rows.add_row(f"[bold]{escape(scaling.setting)}[/]/s", *map(_number, scaling.throughput_per_s))
    for law in scaling.laws:
        values = [f"{law.at(replicas):,.0f}" for replicas in scaling.replicas]
        rows.add_row(f"  [dim]{law.name}[/]", *values, style="dim")
    notes = []
    for law in scaling.laws:
        kappa = f", κ = {law.coherency:.3g}" if law.coherency else ""
        best = "" if law.best is None else f", best at {law.best:.0f}"
        notes.append(f"[dim]{law.name}: σ = {law.serial:.3g}{kappa}{best}, R² = {law.r_squared:.4f}[/]")
    return Group(rows, *notes)


def _sweeps(sweeps: list[Sweep]) -> RenderableType:
    """A line for each setting at each load: as many loads as columns would fit no terminal."""
    rows = table("SETTING", right=("LOAD", "OFFERED/S", "IN TIME/S", "p99"))
    for sweep in sweeps:
        for factor, point in zip(sweep.load, sweep.points, strict=True):
            tail = point.response.p99_us
            rows.add_row(
                f"[bold]{escape(sweep.setting)}[/]" if factor == sweep.load[0] else "",
                f"× {factor:g}",
                f"{point.offered_per_s.mean:,.0f}",
                f"{point.goodput_per_s.mean:,.0f}",
                "–" if tail is None else microseconds(tail.mean),
            )
    return rows


def _times(times: Times) -> list[str]:
    named = (times.mean_us, times.p50_us, times.p90_us, times.p99_us, times.p999_us)
    return [_duration(value) for value in named]


def _duration(value: Estimate | None) -> str:
    if value is None:
        return "–"
    reach = f" ±{value.relative:.0%}" if value.half_width and value.mean else ""
    return f"{microseconds(value.mean)}{reach}"


def _number(value: Estimate | None) -> str:
    if value is None:
        return "–"
    shown = f"{value.mean:,.0f}" if value.mean >= 100 else f"{value.mean:.3g}"
    return f"{shown} ±{value.relative:.0%}" if value.half_width and value.mean else shown
