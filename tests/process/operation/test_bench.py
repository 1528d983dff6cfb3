"""`tensord bench` on real daemons: its figures are the daemon's own, and nothing of it stays, however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import msgspec
import pytest

from tensord.daemon.bench.arrivals import schedule
from tensord.daemon.bench.plan import Arrivals
from tensord.daemon.bench.report import Report
from tensord.daemon.exits import Exit

if TYPE_CHECKING:
    from tests.process.operation.conftest import Instance, Site

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

WATCHDOG_S: Final = 60.0
SHORT: Final = ("--seconds", "0.5", "--warmup", "0.1")
LONG: Final = ("--seconds", "3000", "--warmup", "0")
ROW_BYTES: Final = 4_096
"""Of the model `identity`."""


class Bench:
    """A run of `tensord bench`, in a session of its own, by which its processes are known."""

    def __init__(self, instance: "Instance", *arguments: str) -> None:
        self._instance = instance
        self._command = subprocess.Popen(
            [sys.executable, "-m", "tensord", "bench", *arguments],
            env={**os.environ, "TENSORD_SOCKET": str(instance.socket), "COLUMNS": "80", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """The command and its load, as far as they run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if state != "Z" and int(session) == self._command.pid:
                    found.append(int(path.parent.name))
        return found

    def wait_under_load(self) -> None:
        """Until the daemon has answered some of it."""
        before = counter(self._instance, "succeeded")
        self._instance.wait_until(lambda: counter(self._instance, "succeeded") > before + 50)

    def send(self, number: signal.Signals) -> None:
        """To the command."""
        self._command.send_signal(number)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, output and error; no process of it is left."""
        out, err = self._command.communicate(timeout=WATCHDOG_S)
        self._instance.wait_until(lambda: self.processes() == [])
        assert "Traceback" not in err, err
        return self._command.returncode, out, err

    def close(self) -> None:
        """End what a failed test has left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._command.communicate(timeout=WATCHDOG_S)


StartBench = Callable[..., Bench]


@pytest.fixture
def start() -> Iterator[StartBench]:
    """Starts a command against an instance."""
    with contextlib.ExitStack() as stack:

        def make(instance: "Instance", *arguments: str) -> Bench:
            bench = Bench(instance, *arguments)
            stack.callback(bench.close)
            return bench

        yield make


def counter(instance: "Instance", name: str, model: str = "identity") -> int:
    """A counter of a model."""
    return next(each.counters[name] for each in instance.status().models if each.name == model)


def figures_of(bench: Bench) -> Report:
    """What a run that went well has measured."""
    code, out, err = bench.ended()
    assert (code, err) == (Exit.OK, "")
    return msgspec.json.decode(out, type=Report)


def one_line(text: str) -> str:
    """The error that a command ended with."""
    (line,) = text.splitlines()
    assert line.startswith("tensord: "), line
    return line.removeprefix("tensord: ")


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_loop_adds_up_with_the_daemons_own_counters(start: StartBench, sturdy: "Instance") -> None:
    names = ("requests", "succeeded", "rows", "inline_bytes", "batches", "batch_rows")
    before = {name: counter(sturdy, name) for name in names}
    figures = figures_of(start(sturdy, "identity", "--clients", "4", "--depth", "2", "--rows", "3", *SHORT, "--json"))
    change = {name: counter(sturdy, name) - before[name] for name in names}
    requests = figures.requests
    assert requests.sent == requests.answered == change["requests"] == change["succeeded"]
    assert change["rows"] == change["batch_rows"] == 3 * requests.sent
    assert change["inline_bytes"] == 3 * requests.sent * ROW_BYTES
    assert (requests.failed, requests.others, figures.errors) == (0, 0, {})
    assert 0 < requests.measured == requests.measured_answered < requests.sent
    assert figures.batches is not None
    assert figures.batches.released is not None
    assert sum(figures.batches.released.values()) == change["batches"]
    assert sum(figures.batches.share_by_rows.values()) == pytest.approx(1, abs=0.001)
    assert {rows % 3 for rows in figures.batches.share_by_rows} == {0}
    assert (figures.load.loop, figures.load.lane, figures.load.measured_s) == ("closed", "inline", 0.5)
    assert figures.throughput.rows_per_s == pytest.approx(3 * figures.throughput.requests_per_s)


def test_latencies_are_in_order_and_their_parts_are_smaller(start: StartBench, sturdy: "Instance") -> None:
    figures = figures_of(start(sturdy, "identity", "--clients", "4", *SHORT, "--json"))
    latency = figures.latency
    ordered = [latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us]
    known = [value for value in ordered if value is not None]
    assert known == sorted(known)
    assert sum(column.count for column in figures.histogram) == latency.count == figures.requests.measured_answered
    assert list(figures.phases) == ["queue", "compute", "elsewhere"]
    means = [times.mean_us for times in figures.phases.values() if times.mean_us is not None]
    assert latency.mean_us == pytest.approx(sum(means), rel=0.01)


def test_every_process_of_the_daemon_has_its_cpu_time(start: StartBench, sturdy: "Instance") -> None:
    now = sturdy.status()
    figures = figures_of(start(sturdy, "identity", *SHORT, "--json"))
    assert [(each.name, each.pid) for each in figures.cpu] == [
        ("supervisor", now.pid),
        ("front end", now.frontend.pid),
        *((f"worker {worker.device}", worker.pid) for worker in now.workers),
        ("load generator", None),
    ]
    assert all(each.cores >= 0 for each in figures.cpu)
    assert figures.cpu[-1].cores > 0


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_an_open_loop_sends_exactly_what_is_due(start: StartBench, sturdy: "Instance", arrivals: str) -> None:
    before = counter(sturdy, "requests")
    options = ("--rate", "300", "--arrivals", arrivals, "--seed", "5", "--clients", "3")
    figures = figures_of(start(sturdy, "identity", *options, *SHORT, "--json"))
    due_ns = list(takewhile(lambda at: at < 600_000_000, schedule(300, Arrivals(arrivals), 5, range(3), 3)))
    assert figures.requests.sent == figures.requests.answered == len(due_ns) == counter(sturdy, "requests") - before
    assert figures.requests.measured == sum(at >= 100_000_000 for at in due_ns)
    assert figures.open_loop is not None
    assert figures.open_loop.held == 0
    assert figures.open_loop.send_delay.count == figures.requests.measured
    assert (figures.load.loop, figures.load.arrivals, figures.load.depth) == ("open", arrivals, 1_024)


def test_the_arena_lane_goes_through_shared_memory(start: StartBench, sturdy: "Instance") -> None:
    before = counter(sturdy, "arena_bytes")
    options = ("--rows", "5", "--lane", "arena", "--clients", "2", "--depth", "3")
    figures = figures_of(start(sturdy, "identity", *options, *SHORT, "--json"))
    assert counter(sturdy, "arena_bytes") - before == figures.requests.sent * 5 * ROW_BYTES
    assert figures.requests.sent == figures.requests.answered
    assert figures.load.lane == "arena"
    assert figures.phases["copy_in"].count == figures.latency.count > 0


def test_a_large_request_takes_the_lane_that_clients_take(start: StartBench, sturdy: "Instance") -> None:
    figures = figures_of(start(sturdy, "identity", "--rows", "65", "--clients", "1", *SHORT, "--json"))
    assert (figures.load.lane, figures.load.request_bytes) == ("arena", 65 * ROW_BYTES)


def test_many_clients_are_shared_by_several_processes(start: StartBench, sturdy: "Instance") -> None:
    figures = figures_of(start(sturdy, "identity", "--clients", "80", *SHORT, "--json"))
    assert figures.load.load_processes == min(3, len(os.sched_getaffinity(0)))
    assert figures.requests.sent == figures.requests.answered >= 80


def test_requests_that_are_refused_are_errors_by_class(start: StartBench, sturdy: "Instance") -> None:
    sturdy.set(identity__queue_max=1)
    try:
        figures = figures_of(start(sturdy, "identity", "--clients", "4", "--depth", "8", *SHORT, "--json"))
    finally:
        sturdy.set(identity__queue_max=None)
    assert list(figures.errors) == ["QueueFull"]
    assert figures.errors["QueueFull"].fault == "operator"
    assert "its knob queue_max" in figures.errors["QueueFull"].sentence
    assert figures.requests.sent == figures.requests.answered + figures.requests.failed
    assert figures.requests.measured == figures.requests.measured_answered + figures.errors["QueueFull"].count


def test_text_and_picture_are_for_people(start: StartBench, sturdy: "Instance", tmp_path: Path) -> None:
    picture = tmp_path / "latency.svg"
    code, out, err = start(sturdy, "digits", *SHORT, "--plot", str(picture)).ended()
    assert (code, err) == (Exit.OK, "")
    lines = out.splitlines()
    assert lines[0].startswith("digits:1 ")
    assert [line for line in lines if len(line.rstrip()) > 80 and not line.startswith("warning")] == []
    for heading in ("LATENCY", "BATCHES", "CPU TIME"):
        assert any(line.startswith(heading) for line in lines)
    root = ET.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "digits:1" in "".join(root.itertext())


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nope"], Exit.FAILED, "no model 'nope' is served; served models: deadly, digits"),
        (["identity", "--clients", "0"], Exit.USAGE, "--clients is 0: use 1 to 10,000 connections"),
        (["identity", "--rows", "5000"], Exit.USAGE, "--rows is 5,000: model 'identity' takes 1 to 4,096"),
        (["identity", "--depth", "2000"], Exit.USAGE, "--depth is 2,000: the daemon takes 1,024 in flight"),
        (["identity", "--rows", "300", "--lane", "inline"], Exit.USAGE, "--lane is inline: 300 rows have 1,228,800"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_an_exit_code(
    start: StartBench, sturdy: "Instance", arguments: list[str], code: Exit, sentence: str
) -> None:
    returned, out, err = start(sturdy, *arguments).ended()
    assert (returned, out) == (code, "")
    assert one_line(err).startswith(sentence)


def test_more_clients_than_the_daemon_takes_are_refused_with_its_knob(start: StartBench, sturdy: "Instance") -> None:
    sturdy.set(connections_max=4)
    try:
        code, out, err = start(sturdy, "identity", "--clients", "8", *SHORT).ended()
    finally:
        sturdy.set(connections_max=None)
    assert (code, out) == (Exit.FAILED, "")
    assert one_line(err) == "--clients is 8: 4 connections are open, the knob connections_max: close some, or raise it"


# ── ends ────────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_ends_it_with_what_was_measured(start: StartBench, sturdy: "Instance") -> None:
    bench = start(sturdy, "identity", "--clients", "40", *LONG, "--json")
    bench.wait_under_load()
    bench.send(signal.SIGINT)
    code, out, err = bench.ended()
    assert code == Exit.INTERRUPTED
    assert one_line(err).startswith("interrupted after ")
    figures = msgspec.json.decode(out, type=Report)
    assert figures.interrupted
    assert figures.requests.sent == figures.requests.answered >= figures.requests.measured > 0
    assert 0 < figures.load.measured_s < 3_000


def test_a_command_that_is_killed_leaves_no_process(start: StartBench, sturdy: "Instance") -> None:
    bench = start(sturdy, "identity", "--clients", "40", *LONG)
    bench.wait_under_load()
    bench.send(signal.SIGKILL)
    assert bench.ended() == (-signal.SIGKILL, "", "")


def test_a_load_process_that_is_killed_ends_the_command(start: StartBench, sturdy: "Instance") -> None:
    bench = start(sturdy, "identity", "--clients", "4", *LONG)
    bench.wait_under_load()
    (load,) = [pid for pid in bench.processes() if b"tensord.daemon.bench" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(load, signal.SIGKILL)
    code, out, err = bench.ended()
    assert (code, out) == (Exit.FAILED, "")
    assert one_line(err) == "a process of the load ended by itself (signal 9)"


@pytest.mark.parametrize("load", [(), ("--rate", "500")])
def test_a_daemon_that_is_killed_ends_the_command(start: StartBench, site: "Site", load: tuple[str, ...]) -> None:
    site.models.add_shipped("identity")
    site.write_config()
    instance = site.serve().wait_ready()
    bench = start(instance, "identity", "--clients", "40", *load, *LONG)
    bench.wait_under_load()
    instance.signal(signal.SIGKILL)
    code, out, err = bench.ended()
    assert code == Exit.UNREACHABLE
    assert one_line(err).startswith("the daemon went away after ")
    assert "throughput" in out
    assert instance.wait_end() == -signal.SIGKILL


def test_a_daemon_that_is_stopped_answers_what_is_in_flight(start: StartBench, site: "Site") -> None:
    site.models.add_shipped("identity")
    site.write_config()
    instance = site.serve().wait_ready()
    bench = start(instance, "identity", "--clients", "4", *LONG, "--json")
    bench.wait_under_load()
    instance.signal(signal.SIGTERM)
    code, out, err = bench.ended()
    assert (code, one_line(err).split(" after ")[0]) == (Exit.UNREACHABLE, "the daemon went away")
    figures = msgspec.json.decode(out, type=Report)
    assert figures.lost == "it is shutting down"
    assert figures.requests.answered > 50
    assert set(figures.errors) <= {"ShuttingDown", "ConnectionLost"}, "which was sent before the end was known"
