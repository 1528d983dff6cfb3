"""The load generator: its figures add up, and it notices every kind of wrong answer."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from benchmarks import generator, inprocess, served
from benchmarks.cases import SATURATED
from benchmarks.generator import Failed, Lane, Sample
from benchmarks.request import Request, identity
from benchmarks.saturation import request_of

from tensord.ipc.wire import HEADER

from .servers import AT_ID, Answer, echo, http, stall_once

pytestmark = [pytest.mark.process, pytest.mark.timeout(60), pytest.mark.usefixtures("programs")]

FLOATS: Final = 1000
"""Not a power of two, and more bytes than a small buffer would hold."""

IDENTITY: Final = identity("identity-small", FLOATS)
EXIT_WRONG: Final = 3
WATCHDOG_S: Final = 30.0


def load(*options: object, request: Request = IDENTITY) -> "subprocess.CompletedProcess[str]":
    """Run the load generator with these options."""
    command = [str(generator.HERE / "build" / "load"), *request.arguments, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)


def figures(ended: "subprocess.CompletedProcess[str]") -> Sample:
    """What it printed."""
    assert ended.returncode in (0, EXIT_WRONG), ended.stderr
    return msgspec.json.decode(ended.stdout, type=Sample)


def check_counted_run(sample: Sample, requests: int) -> None:
    """A run of so many requests, all of them answered and right."""
    assert sample.sent == requests
    assert sample.total == sample.measured
    assert (sample.total.answered, sample.total.late, sample.total.unsent, sample.total.failed) == (requests, 0, 0, 0)
    assert (sample.total.wrong, sample.total.lost, sample.total.errors) == (0, 0, {})
    latency = sample.latency_us
    assert latency.samples == requests
    assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.p999 <= latency.max
    assert 0 < latency.mean <= latency.max
    assert sample.per_s == pytest.approx(requests / sample.seconds, rel=1e-3)


# ── against the echo ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def echo_socket(tmp_path: Path) -> Iterator[Path]:
    with generator.start_echo(tmp_path / "echo") as running:
        yield running.socket


@pytest.mark.parametrize(("connections", "depth"), [(1, 1), (3, 1), (1, 7), (5, 16)])
@pytest.mark.parametrize("lane", ["inline", "arena"])
def test_echo_answers_every_request(echo_socket: Path, lane: Lane, connections: int, depth: int) -> None:
    options = ("--lane", lane, "--connections", connections, "--depth", depth, "--requests", 700)
    sample = figures(load("--to", "echo", "--socket", echo_socket, *options))
    check_counted_run(sample, 700)
    assert (sample.connections, sample.depth) == (connections, depth)
    assert (sample.request_bytes, sample.answer_bytes) == (4 * FLOATS, 4 * FLOATS)
    assert sample.checked == (connections if lane == "inline" else 0), "an echo has no arena to look at"


def test_frames_larger_than_every_buffer_come_back(echo_socket: Path) -> None:
    large = identity("any", 3_000_001)
    options = ("--to", "echo", "--socket", echo_socket, "--depth", 3, "--requests", 9, "--check-every", 1)
    sample = figures(load(*options, request=large))
    check_counted_run(sample, 9)
    assert sample.checked == 9


def test_every_nth_answer_of_a_connection_is_compared_whole(echo_socket: Path) -> None:
    options = ("--connections", 2, "--requests", 400, "--check-every", 50)
    sample = figures(load("--to", "echo", "--socket", echo_socket, *options))
    check_counted_run(sample, 400)
    assert 8 <= sample.checked <= 9  # ⌈n / 50⌉ and ⌈(400 − n) / 50⌉


def test_window_begins_after_the_warm_up(echo_socket: Path) -> None:
    sample = generator.run("echo", echo_socket, IDENTITY, "inline", 2, 2, 0.2, 0.2)
    assert sample.seconds == pytest.approx(0.2)
    assert sample.total.answered == sample.sent
    assert 0 < sample.measured.answered < sample.total.answered
    assert sample.latency_us.samples == sample.measured.answered
    assert 0 < sample.cpu_share < 1.2, "one thread, and the clock of the kernel"


def test_servers_can_be_looked_at_when_the_window_begins_and_ends(echo_socket: Path) -> None:
    looks: list[float] = []
    generator.run("echo", echo_socket, IDENTITY, "inline", 1, 1, 0.2, 0.1, look=lambda: looks.append(time.monotonic()))
    began, ended = looks
    assert ended - began > 0.1


# ── wrong answers ───────────────────────────────────────────────────────────────────────────────


def against(path: Path, answer: Answer, *options: object) -> "subprocess.CompletedProcess[str]":
    """A run of 20 requests against an echo that may lie."""
    with echo(path, answer):
        return load("--to", "echo", "--socket", path, "--requests", 20, "--patience", 0.3, *options)


def flip(frame: bytearray, at: int) -> bytearray:
    frame[at] ^= 1
    return frame


def test_honest_answers_of_the_small_echo_pass(tmp_path: Path) -> None:
    check_counted_run(figures(against(tmp_path / "s", lambda number, frame: frame)), 20)


def test_one_wrong_byte_in_an_answer_that_is_compared_is_seen(tmp_path: Path) -> None:
    ended = against(tmp_path / "s", lambda number, frame: flip(frame, -1) if number == 0 else frame)
    sample = figures(ended)
    assert ended.returncode == EXIT_WRONG
    assert (sample.total.wrong, sample.total.answered, sample.latency_us.samples) == (1, 19, 19)
    assert "a wrong answer" in ended.stderr


def test_one_wrong_byte_in_the_middle_is_seen(tmp_path: Path) -> None:
    ended = against(tmp_path / "s", lambda number, frame: flip(frame, len(frame) // 2), "--check-every", 1)
    assert figures(ended).total.wrong == 20


def test_the_first_bytes_of_every_answer_are_looked_at(tmp_path: Path) -> None:
    payload = 4 * FLOATS
    ended = against(tmp_path / "s", lambda number, frame: flip(frame, -payload) if number == 13 else frame)
    assert figures(ended).total.wrong == 1


def test_the_answer_of_another_request_is_seen(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def answer(number: int, frame: bytearray) -> bytearray:
        seen.append(bytes(frame))
        return frame[: -4 * FLOATS] + seen[0][-4 * FLOATS :]

    assert figures(against(tmp_path / "s", answer)).total.wrong == 19


def test_an_answer_of_another_size_is_seen(tmp_path: Path) -> None:
    def answer(number: int, frame: bytearray) -> bytearray:
        magic, kind, flags, meta_bytes, request_id, payload_bytes = HEADER.unpack_from(frame)
        HEADER.pack_into(frame, 0, magic, kind, flags, meta_bytes, request_id, payload_bytes - 4)
        return frame[:-4]

    assert figures(against(tmp_path / "s", answer)).total.wrong == 20


def test_an_answer_to_nothing_that_was_asked_ends_the_run(tmp_path: Path) -> None:
    def answer(number: int, frame: bytearray) -> bytearray:
        frame[AT_ID + 2] += 1  # as if it were an earlier or later one of the same slot
        return frame

    ended = against(tmp_path / "s", answer)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "an answer to nothing that was asked" in ended.stderr


def test_an_answer_that_comes_twice_ends_the_run(tmp_path: Path) -> None:
    ended = against(tmp_path / "s", lambda number, frame: frame + frame)
    assert "an answer to nothing that was asked" in ended.stderr


def test_missing_answers_are_lost(tmp_path: Path) -> None:
    ended = against(tmp_path / "s", lambda number, frame: b"" if number == 4 else frame, "--depth", 2)
    sample = figures(ended)
    assert ended.returncode == EXIT_WRONG
    assert (sample.total.answered, sample.total.lost, sample.sent) == (19, 1, 20)


def test_a_stream_that_is_none_of_frames_ends_the_run(tmp_path: Path) -> None:
    ended = against(tmp_path / "s", lambda number, frame: flip(frame, 0))
    assert "the stream is not one of frames" in ended.stderr


def test_a_wrong_answer_fails_a_measurement(tmp_path: Path) -> None:
    with (
        echo(tmp_path / "s", lambda number, frame: flip(frame, -1)),
        pytest.raises(Failed, match="a wrong answer"),
    ):
        generator.run("echo", tmp_path / "s", IDENTITY, "inline", 1, 1, 0.1, 0.0)


# ── the open loop ───────────────────────────────────────────────────────────────────────────────


def open_loop(socket: Path, *options: object) -> Sample:
    pace = ("--rate", 2000, "--seconds", 0.5, "--connections", 2, "--depth", 64, "--patience", 0.5)
    return figures(load("--to", "echo", "--socket", socket, *pace, *options))


def test_arrivals_are_those_of_the_seed(echo_socket: Path) -> None:
    first, again, other = (open_loop(echo_socket, "--seed", seed) for seed in (1, 1, 2))
    assert first.offered == again.offered
    assert first.offered != other.offered
    assert 850 < first.offered < 1150  # 1,000 and five times its root


def test_every_arrival_is_accounted_for(echo_socket: Path) -> None:
    sample = open_loop(echo_socket, "--warmup", 0.1, "--deadline-ms", 1000)
    counts = sample.measured
    assert sample.offered == counts.answered + counts.late + counts.wrong + counts.lost + counts.unsent + counts.failed
    assert counts.answered == sample.offered
    assert sample.send_delay_us.samples == sample.offered


def test_a_stall_makes_all_that_arrive_meanwhile_late(tmp_path: Path) -> None:
    with echo(tmp_path / "s", stall_once(0.25)):
        sample = open_loop(tmp_path / "s", "--deadline-ms", 100)
    assert sample.measured.late >= 100, "some 150 ms of 2,000 arrivals per second"
    assert sample.latency_us.max >= 250_000
    counts = sample.measured
    assert sample.offered == counts.answered + counts.late + counts.unsent
    assert counts.unsent > 0, "with 128 in flight there was no room for what came after 64 ms"


def test_latency_counts_from_the_scheduled_arrival(tmp_path: Path) -> None:
    with echo(tmp_path / "s", stall_once(0.25)):
        options = ("--rate", 400, "--seconds", 0.5, "--connections", 1, "--depth", 1)
        sample = figures(load("--to", "echo", "--socket", tmp_path / "s", *options))
    assert sample.measured.answered == sample.offered
    assert sample.latency_us.p90 > 100_000, "half of the requests arrived in the stall, and waited for its end"
    assert sample.send_delay_us.p90 > 100_000


# ── HTTP ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("local", [True, False])
def test_http_answers_every_request(tmp_path: Path, local: bool) -> None:
    with http(tmp_path / "s" if local else None) as where:
        ended = load("--to", "http", "--socket", where, "--connections", 4, "--requests", 200)
    sample = figures(ended)
    check_counted_run(sample, 200)
    assert sample.checked == 4


def test_http_errors_are_counted_by_code(tmp_path: Path) -> None:
    with http(tmp_path / "s", lambda number: 503 if number % 4 == 3 else 200) as where:
        sample = figures(load("--to", "http", "--socket", where, "--requests", 20))
    assert (sample.total.answered, sample.total.failed, sample.total.errors) == (15, 5, {"503": 5})


# ── against a daemon ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="td", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def daemon(directory: Path) -> Iterator[served.Daemon]:
    served.write_identity(directory / "models", IDENTITY.model, FLOATS, 8)
    served.copy_model(directory / "models", "digits")
    with served.serve(directory, {"digits": {"max_batch": 32}}) as running:
        yield running


@pytest.fixture(scope="module")
def offline(directory: Path) -> Iterator[inprocess.InProcess]:
    with inprocess.offline(served.MODELS, directory, served.device_cores()) as running:
        yield running


@pytest.fixture(scope="module")
def digits(offline: inprocess.InProcess) -> Request:
    return request_of(SATURATED[0], 3, offline)


@pytest.mark.parametrize(("connections", "depth"), [(1, 1), (4, 8)])
@pytest.mark.parametrize("lane", ["inline", "arena"])
def test_daemon_answers_every_request(daemon: served.Daemon, lane: Lane, connections: int, depth: int) -> None:
    options = ("--lane", lane, "--connections", connections, "--depth", depth, "--requests", 500, "--check-every", 100)
    sample = figures(load("--socket", daemon.socket, *options))
    check_counted_run(sample, 500)
    assert sample.checked >= 5


@pytest.mark.parametrize("lane", ["inline", "arena"])
def test_daemon_answers_as_the_model_does_in_process(daemon: served.Daemon, digits: Request, lane: Lane) -> None:
    assert [each.shape for each in (*digits.inputs, *digits.outputs)] == [(3, 1, 8, 8), (3, 10)]
    options = ("--lane", lane, "--depth", 4, "--requests", 200, "--check-every", 1)
    sample = figures(load("--socket", daemon.socket, *options, request=digits))
    check_counted_run(sample, 200)
    assert sample.checked == 200


@pytest.mark.parametrize("lane", ["inline", "arena"])
def test_other_answers_than_expected_are_wrong(
    daemon: served.Daemon, digits: Request, lane: Lane, tmp_path: Path
) -> None:
    assert digits.expected_file is not None
    expected = np.fromfile(digits.expected_file, np.float32)
    expected[-1] += 0.1
    other = tmp_path / "expected"
    expected.tofile(other)
    request = replace(digits, expected_file=other)
    ended = load("--socket", daemon.socket, "--lane", lane, "--requests", 1, request=request)
    assert ended.returncode == EXIT_WRONG
    assert figures(ended).total.wrong == 1


def test_refusals_are_counted_by_code(daemon: served.Daemon, offline: inprocess.InProcess) -> None:
    request = request_of(SATURATED[0], 4097, offline)  # more than rows_max
    sample = figures(load("--socket", daemon.socket, "--requests", 10, request=request))
    assert (sample.total.answered, sample.total.failed, sample.total.errors) == (0, 10, {"109": 10})
    with pytest.raises(Failed, match="'109'"):
        generator.run("tensord", daemon.socket, request, "inline", 1, 1, 0.1, 0.0)


def test_unknown_model_is_named(daemon: served.Daemon) -> None:
    ended = load("--socket", daemon.socket, "--requests", 1, request=identity("nobody", FLOATS))
    assert ended.returncode == 1
    assert "refused with error 104" in ended.stderr


def test_roles_of_a_daemon_are_known(daemon: served.Daemon) -> None:
    pids = daemon.pids
    assert {"supervisor", "frontend", "worker"} <= set(pids)
    status = daemon.status()
    assert pids["supervisor"] == [status.pid]
    assert pids["frontend"] == [status.frontend.pid]
    assert pids["worker"] == [worker.pid for worker in status.workers]


def test_offline_loop_counts_rows(offline: inprocess.InProcess, digits: Request) -> None:
    assert offline.rows_per_s(digits, 0.05) > 3
    assert offline.copy_us(FLOATS, 0.01) > 0


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give --socket, --input and --output"),
        (("--socket", "s", "--lane", "air"), "air is not one of the choices"),
        (("--socket", "s", "--connections", "0"), "0 is not a number from 1"),
        (("--socket", "s", "--to", "http", "--depth", "2"), "HTTP has one request in flight"),
        (("--socket", "s", "--rate", "5", "--requests", "5"), "an open loop runs for a time"),
        (("--socket", "/nowhere/at/all"), "cannot connect to /nowhere/at/all"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], complaint: str) -> None:
    ended = load(*options)
    assert ended.returncode == 1
    assert complaint in ended.stderr


def test_output_is_one_json_object(echo_socket: Path) -> None:
    printed: dict[str, Any] = json.loads(load("--to", "echo", "--socket", echo_socket, "--requests", 5).stdout)
    assert set(printed) == {field.name for field in msgspec.structs.fields(Sample)}
