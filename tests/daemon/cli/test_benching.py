from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from rich.console import Console

from tensord.daemon.bench.plan import Arrivals, Lane, Plan
from tensord.daemon.bench.processes import LoadFailure
from tensord.daemon.bench.report import Report, report
from tensord.daemon.bench.run import Display, Measurement
from tensord.daemon.bench.speech import Progress
from tensord.daemon.bench.tally import Errors
from tensord.daemon.bench.watch import Watch
from tensord.daemon.cli import benching
from tensord.daemon.cli.output import console
from tensord.daemon.exits import Exit
from tensord.ipc.errors import QueueFull, UnknownModel

from ...ipc.client.fake_daemon import FakeDaemon
from ..bench.measurements import durations, measurement, tally
from .conftest import Command, Ended
from .fake_control import FakeControl

OPEN = Plan("digits", seconds=2.0, rate_per_s=50.0)


class Measured:
    """Stands for the measurement: remembers what was asked for, gives what it was told to give."""

    def __init__(self) -> None:
        self.seen = measurement()
        self.error: BaseException | None = None
        self.meanwhile: Callable[[Display], None] = lambda _: None
        self.plans: list[Plan] = []
        self.sockets: list[str] = []

    def __call__(self, plan: Plan, socket: str, watch: Watch, display: Display) -> Measurement:
        self.plans.append(plan)
        self.sockets.append(socket)
        self.meanwhile(display)
        if self.error is not None:
            raise self.error
        return self.seen


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    made = Measured()
    monkeypatch.setattr(benching, "measure", made)
    return made


@pytest.fixture
def bench(tensord: Command, operator: FakeControl, measured: Measured) -> Command:
    """Runs `tensord bench digits` with whatever was measured."""

    def run(*arguments: str | Path) -> Ended:
        return tensord("bench", "digits", *arguments, "--socket", operator.data_socket)

    return run


def lines_of(ended: Ended) -> list[str]:
    """What was printed, without the space between columns."""
    return [" ".join(line.split()) for line in ended.out.splitlines()]


# ── what is asked for ───────────────────────────────────────────────────────────────────────────


def test_without_options_the_usual_load_is_measured(bench: Command, measured: Measured, operator: FakeControl) -> None:
    ended = bench()
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert measured.plans == [Plan("digits")]
    assert measured.sockets == [str(operator.data_socket)]


def test_options_make_the_plan(bench: Command, measured: Measured) -> None:
    bench(
        "--clients", "3", "--depth", "4", "--seconds", "5", "--warmup", "0.5", "--rate", "6", "--arrivals", "constant"
    )
    bench("--lane", "arena", "--rows", "7", "--timeout", "8", "--seed", "9")
    assert measured.plans == [
        Plan("digits", 3, 4, 5.0, 0.5, 6.0, Arrivals.CONSTANT),
        Plan("digits", lane=Lane.ARENA, rows=7, timeout_ms=8, seed=9),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--clients", "0"], "--clients is 0: use 1 to 10,000 connections"),
        (["--seconds", "-1"], "--seconds is -1.0: use 0.1 to 3,600 seconds"),
        (["--seconds", "nan"], "--seconds is nan: use 0.1 to 3,600 seconds"),
        (["--arrivals", "constant"], "--arrivals is constant: only an open loop has arrivals: give --rate, too"),
        (
            ["--plot", "no/such/directory.svg"],
            "--plot is no/such/directory.svg: it cannot be written there: name a file",
        ),
        (["--plot", "."], "--plot is .: it cannot be written there"),
        (["--lane", "fast"], "Invalid value for '--lane'"),
        (["--clients", "many"], "Invalid value for '--clients'"),
    ],
)
def test_a_value_that_makes_no_sense_is_a_usage_error(
    bench: Command, measured: Measured, arguments: list[str], complaint: str
) -> None:
    ended = bench(*arguments)
    assert ended.code == Exit.USAGE
    assert ended.complaint.startswith(complaint)
    assert ended.complaint.endswith("(see tensord bench --help)")
    assert measured.plans == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownModel("digits", []), Exit.FAILED),
        (LoadFailure("--clients is 9: 4 connections are open", Exit.FAILED), Exit.FAILED),
        (LoadFailure("nobody answers", Exit.UNREACHABLE), Exit.UNREACHABLE),
    ],
)
def test_a_load_that_could_not_begin_says_why(bench: Command, measured: Measured, error: Exception, code: Exit) -> None:
    measured.error = error
    ended = bench()
    assert (ended.code, ended.complaint) == (code, str(error))


def test_an_unreachable_daemon_has_an_exit_code_of_its_own(tensord: Command, tmp_path: Path) -> None:
    ended = tensord("bench", "digits", "--socket", tmp_path / "tensord.sock")
    assert ended.code == Exit.UNREACHABLE
    assert ended.complaint.startswith("no daemon answers at")


def test_a_model_that_is_not_served_is_an_error(tensord: Command, daemon: FakeDaemon) -> None:
    ended = tensord("bench", "nope", "--socket", daemon.path)
    assert ended.code == Exit.FAILED
    assert ended.complaint.startswith("no model 'nope' is served; served models: ")


# ── what is printed ─────────────────────────────────────────────────────────────────────────────


def test_the_figures_are_printed(bench: Command) -> None:
    lines = lines_of(bench())
    assert "digits:3 closed loop, 16 clients × 1 in flight" in lines
    assert "1 row each, inline lane: 16 B there, 8 B back" in lines
    assert "throughput 50 requests/s, 50 rows/s" in lines
    assert "requests 100 answered in 2 s, none failed" in lines
    assert "LATENCY p50 p90 p99 p99.9 MAX MEAN" in lines
    assert "request 1.49 ms 1.89 ms 1.98 ms – 1.99 ms 1.5 ms" in lines
    assert "queue 200 µs 200 µs 200 µs – 200 µs 200 µs" in lines
    assert f"4 rows 100.0% {'█' * 24}" in lines
    assert "mean 4.0 rows" in lines
    assert "released because full 7%, worker idle 93%" in lines
    assert "front end 11 5 ms 0.25" in lines
    assert "worker cpu:0 12 10 ms 0.50" in lines
    assert "load generator – 200 µs 0.01" in lines


def test_the_latencies_are_drawn_in_one_line(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(tally=tally(latency=durations(*[1.01] * 16, *[1.5] * 2)))
    assert "1 ms █       ▁ 1.54 ms" in bench().out.splitlines()


def test_an_open_loop_shows_what_was_offered_and_how_late_it_was_sent(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(plan=OPEN, tally=tally(send_delay=durations(*[0.05] * 100)))
    lines = lines_of(bench())
    assert "digits:3 open loop, poisson arrivals, 16 clients" in lines
    assert "throughput 50 requests/s of 50 offered, 50 rows/s" in lines
    assert "sent late by 50 µs 50 µs 50 µs – 50 µs 50 µs" in lines


def test_errors_are_listed_by_class_the_most_frequent_first(bench: Command, measured: Measured) -> None:
    errors = {"Cancelled": Errors(1, "client", "cancelled"), "QueueFull": Errors(99, "operator", "say [knobs]")}
    measured.seen = measurement(tally=tally(sent=220, failed=100, errors=errors))
    ended = bench()
    listed = [line for line in lines_of(ended) if line.split(" ")[0] in errors]
    assert listed == ["QueueFull 99 49.50% say [knobs]", "Cancelled 1 0.50% cancelled"]
    assert ended.code == Exit.OK


def test_many_sizes_of_batches_are_put_together(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(tally=tally(batches=dict.fromkeys((1, 2, 3, 5, 6, 20, 31, 1_000), 1.0)))
    names = [line.split("rows")[0].strip() for line in bench().out.splitlines() if " rows  " in line and "%" in line]
    assert names == ["2–3", "5–6", "20–31", "1,000"]


def test_warnings_stand_at_the_end_each_in_one_line(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(plan=OPEN, tally=tally(late=20, held=90, unanswered=2))
    ended = bench()
    warnings = [line for line in ended.out.splitlines() if line.startswith("warning  ")]
    assert len(warnings) == 3
    assert ended.out.splitlines()[-3:] == warnings


def test_json_is_all_of_it_and_nothing_else(bench: Command, measured: Measured) -> None:
    ended = bench("--json")
    assert msgspec.json.decode(ended.out, type=Report) == report(measured.seen)
    assert ended.err == ""


def test_a_picture_is_drawn_when_asked_for(bench: Command, tmp_path: Path) -> None:
    path = tmp_path / "latency.svg"
    assert bench("--plot", path).code == Exit.OK
    root = ET.fromstring(path.read_text())
    assert "1.49 ms" in "".join(root.itertext())


def test_the_figures_fit_a_terminal_of_80_columns(
    bench: Command, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    slow = durations(0.001, *[123_456.0] * 2_000)
    changes: dict[str, Any] = dict.fromkeys(("latency", "queue", "compute", "elsewhere", "copy_in"), slow)
    errors = {"DeadlineExceeded": Errors(2_000_000, "client", "the deadline passed 123.4 ms ago " * 3)}
    changes |= {"errors": errors, "send_delay": slow, "batches": {2**bits: 1.0 for bits in range(17)}}
    measured.seen = measurement(
        plan=Plan("digits", 10_000, 65_536, 2.0, 1.0, 1_000_000.0, rows=65_536), tally=tally(**changes)
    )
    lines = bench().out.splitlines()
    assert [line for line in lines if len(line.rstrip()) > 80 and not line.startswith("warning")] == []
    assert not any("…" in line for line in lines)


# ── how it ends ─────────────────────────────────────────────────────────────────────────────────


def test_a_daemon_that_went_away_is_told_after_what_was_measured(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(tally=tally(window_s=0.5, lost="the daemon closed it"))
    ended = bench("--json")
    assert ended.code == Exit.UNREACHABLE
    assert ended.err == "tensord: the daemon went away after 0.5 s of 10 s (the daemon closed it): see tensord status\n"
    assert msgspec.json.decode(ended.out)["lost"] == "the daemon closed it"


def test_one_that_went_away_before_has_no_figures(bench: Command, measured: Measured) -> None:
    nothing = tally(window_s=0.0, latency=durations(), batches={}, parts=[0, 0, 0], lost="the daemon closed it")
    measured.seen = measurement(tally=nothing)
    ended = bench()
    assert (ended.code, ended.complaint) == (
        Exit.UNREACHABLE,
        "the daemon went away before anything was measured (the daemon closed it): see tensord status",
    )


def test_ctrl_c_ends_it_with_what_there_is(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(interrupted=True, tally=tally(window_s=1.25))
    ended = bench()
    assert (ended.code, ended.err) == (Exit.INTERRUPTED, "tensord: interrupted after 1.25 s of 10 s\n")
    assert "80 requests/s" in ended.out


def test_nothing_answered_is_a_failure_that_names_the_first_error(bench: Command, measured: Measured) -> None:
    errors = {"QueueFull": Errors(3, "operator", str(QueueFull("digits", 4)))}
    measured.seen = measurement(tally=tally(latency=durations(), batches={}, parts=[0, 0, 0], errors=errors))
    ended = bench()
    assert ended.code == Exit.FAILED
    assert ended.err == f"tensord: none of 3 requests was answered: {QueueFull('digits', 4)}\n"
    assert "QueueFull" in ended.out


def test_nothing_begun_is_a_failure(bench: Command, measured: Measured) -> None:
    measured.seen = measurement(tally=tally(latency=durations(), batches={}, parts=[0, 0, 0]))
    ended = bench()
    assert ended.code == Exit.FAILED
    assert ended.complaint.startswith("no request began within 10 s: ")


def test_a_picture_that_cannot_be_written_is_a_failure_after_the_figures(
    bench: Command, measured: Measured, tmp_path: Path
) -> None:
    directory = tmp_path / "pictures"
    directory.mkdir()
    measured.meanwhile = lambda _: directory.rmdir()
    ended = bench("--plot", directory / "latency.svg")
    assert (ended.code, ended.err) == (
        Exit.FAILED,
        f"tensord: {directory}/latency.svg cannot be written: No such file or directory\n",
    )
    assert "requests/s" in ended.out


# ── while it runs ───────────────────────────────────────────────────────────────────────────────


def test_a_terminal_shows_how_far_it_is(bench: Command, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr(benching, "errors", Console(file=screen, force_terminal=True, width=100))

    def show(display: Display) -> None:
        display("connecting", 0.1, 0.0, Progress(0, 0))
        display("measuring", 2.0, 10.0, Progress(100, 0))
        display("measuring", 3.0, 10.0, Progress(500, 7))

    measured.meanwhile = show
    ended = bench()
    assert "requests/s" not in ended.err
    assert "measuring" in screen.getvalue()
    assert "3 of 10 s" in screen.getvalue()
    assert "7 failed" in screen.getvalue()


def test_nothing_is_shown_where_nobody_looks(bench: Command, measured: Measured) -> None:
    measured.meanwhile = lambda display: display("measuring", 2.0, 10.0, Progress(100, 0))
    assert bench().err == ""
