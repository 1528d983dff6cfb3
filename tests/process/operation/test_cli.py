"""Every command as a person types it: what it prints, that it fits 80 columns, and how it fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from tensord.daemon import control
from tensord.daemon.cli import app as cli_app
from tensord.daemon.cli import inspecting
from tensord.daemon.cli.output import count, duration, microseconds, nbytes
from tensord.daemon.exits import Exit

if TYPE_CHECKING:
    from tests.process.operation.conftest import Instance

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

CONFIGS = Path(__file__).parents[3] / "configs"
DIGIT = CONFIGS / "images" / "digits" / "09_label-9.png"
COMMANDS = ("serve", "demo", "infer", "models", "status", "get", "set", "bench", "check-config", "version")

Cli = Callable[..., str]


def one_line(text: str) -> str:
    """The error that a command ended with."""
    (line,) = text.splitlines()
    assert line.startswith("tensord: "), line
    return line.removeprefix("tensord: ")


@pytest.fixture
def cli(sturdy: "Instance") -> Cli:
    """Runs a command against the daemon; gives what it printed, or, for another exit code, its one line of error."""

    def run(*arguments: str | Path, code: Exit = Exit.OK) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "tensord", *map(str, arguments)],
            env={**os.environ, "TENSORD_SOCKET": str(sturdy.socket), "COLUMNS": "80", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ended.returncode == code, ended
        if code is not Exit.OK:
            assert ended.stdout == ""
            return one_line(ended.stderr)
        assert ended.stderr == ""
        return ended.stdout

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, output, error."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TENSORD_SOCKET", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli_app.run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Here = Callable[..., tuple[int, str, str]]


def assert_fits(text: str) -> list[str]:
    """No line is longer than the terminal, and none was cut."""
    lines = [line.rstrip() for line in text.splitlines()]
    assert [line for line in lines if len(line) > 80 or "…" in line] == []
    return lines


# ── looking ─────────────────────────────────────────────────────────────────────────────────────


def test_status_says_what_runs(cli: Cli, sturdy: "Instance") -> None:
    now = sturdy.status()
    lines = assert_fits(cli("status"))
    assert lines[0].startswith(f"ready  tensord {now.version}, pid {now.pid}, up ")
    facts = dict(line.split(maxsplit=1) for line in lines[1:] if line and not line.startswith("front end"))
    assert facts["socket"] == str(sturdy.socket)
    assert facts["knobs"] == f"epoch {now.epoch}, applied by every process"
    assert facts["requests"] == "0 queued, 0 running, 0 connections"
    assert f"front end  pid {now.frontend.pid}, " in "\n".join(lines)
    for worker in now.workers:
        assert facts[worker.device].split()[:2] == ["ready,", "idle"]
        assert str(worker.pid) in facts[worker.device]


def test_status_as_json_is_all_of_it(cli: Cli, sturdy: "Instance") -> None:
    status = msgspec.json.decode(cli("status", "--json"), type=control.InstanceStatus)
    assert (status.pid, status.state, len(status.workers)) == (sturdy.pid, "ready", 2)


def test_models_lists_every_model_in_one_line(cli: Cli, sturdy: "Instance") -> None:
    served = sturdy.status().models
    heading, *rest = assert_fits(cli("models"))
    lines, note = rest[: len(served)], rest[len(served)]
    assert heading.split() == ["MODEL", "LABELS", "READY", "ON", "REQUESTS", "FAILED", "p50", "p99", "BATCH"]
    assert [line.split()[0] for line in lines] == [f"{each.name}:{each.version}" for each in served]
    assert all("cpu:0, cpu:1" in line for line in lines)
    assert "p99: from request to reply" in note


def test_tables_of_a_large_and_troubled_instance_fit_80_columns(
    here: Here, sturdy: "Instance", monkeypatch: pytest.MonkeyPatch
) -> None:
    now = sturdy.status()
    replace = msgspec.structs.replace
    busy = dict.fromkeys(now.models[0].counters, 2_345_678_901)
    slow = dict.fromkeys(now.models[0].phases, control.PhaseTimes(9, 123_456.0, 234_567.0, 12_345_678.0))
    model = replace(now.models[0], counters=busy, phases=slow, ready_on=[f"cuda:{index}" for index in range(8)])
    broken = replace(model, name="broken", ready_on=[], broken_on={"cuda:0": "say [knobs] and [red]"})
    worker = replace(
        now.workers[0],
        device="cuda:10",
        state="backing off",
        cores=list(range(32, 64)),
        pid=4_194_303,
        uptime_s=59 * 60 + 59,
        restarts=12_345,
        memory_bytes=79_999_999_999,
        models_loaded=999,
    )
    troubled = replace(now, models=[model, broken], workers=[worker], reasons=["look into [knobs]"], state="degraded")
    monkeypatch.setattr(inspecting, "fetch_status", lambda _: troubled)
    for command in ("models", "status"):
        code, out, _ = here(command)
        assert code == Exit.OK
        assert_fits(out)
        assert ("look into [knobs]" in out) == (command == "status")
        assert ("broken:1 is not on cuda:0: say [knobs] and [red]" in out) == (command == "models")
    assert "32-63" in out
    assert "backing off" in out


def test_quantities_read_well() -> None:
    assert [microseconds(value) for value in (None, 0.5, 999.4, 1000, 99_960, 2e6)] == [
        "–",
        "0.5 µs",
        "999 µs",
        "1 ms",
        "100 ms",
        "2 s",
    ]
    assert [nbytes(value) for value in (0, 1023, 1536, 256 * 2**20, 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "256 MiB",
        "1024 GiB",
    ]
    assert [count(value) for value in (0, 99_999, 123_456, 2_000_000, 3_210_000_000)] == [
        "0",
        "99,999",
        "123 k",
        "2 M",
        "3.21 G",
    ]
    assert [duration(value) for value in (0.4, 61, 3600, 200_000)] == ["0 s", "1 min 1 s", "1 h 0 min", "2 d 7 h"]


def test_version(cli: Cli, here: Here) -> None:
    printed = cli("version")
    assert printed.startswith("tensord ")
    assert "torch" in printed
    assert here("--version") == (0, printed, "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_explains(here: Here, command: str) -> None:
    code, out, err = here(*[command] if command else [], "--help")
    assert (code, err) == (0, "")
    assert_fits(out)
    assert f"Usage: tensord {command}".rstrip() in out
    if command in ("serve", "demo", "infer", "status", "get", "set"):
        assert "Examples:" in out
        assert f"tensord {command} " in out.partition("Examples:")[2]


# ── turning knobs ───────────────────────────────────────────────────────────────────────────────


def test_get_lists_and_explains(cli: Cli) -> None:
    heading, *lines, note = assert_fits(cli("get"))
    assert heading.split() == ["KNOB", "VALUE", "SET", "BY", "ALLOWED"]
    values = {line.split()[0]: line.split()[1:] for line in lines}
    assert values["hang_timeout_s"][:2] == ["1m", "default"]
    assert values["backoff_max_s"][:2] == ["1s", "config"]
    assert values["identity.max_batch"][:2] == ["4096", "manifest"]
    assert values["ingest_bytes"][-3:] == ["(at", "a", "restart)"]
    assert "tensord set KNOB=VALUE" in note
    explained = cli("get", "digits.window_us", "ingest_bytes")
    assert "digits.window_us = 500us  set by default\n" in explained
    assert "Allowed: 0us to 10s; live." in explained
    assert "ingest_bytes = 32MiB  set by config (default 256MiB)\n" in explained
    assert "did you mean max_batch?" in cli("get", "digits.max_bach", code=Exit.CONFIG)


def test_set_takes_units_and_several_knobs_and_takes_them_back(cli: Cli, sturdy: "Instance") -> None:
    epoch = sturdy.status().epoch
    changed = cli("set", "digits.window_us=2ms", "arena_bytes_max=64MiB", "max_batch=8", "--why", "a test")
    assert changed.splitlines() == [
        "digits.window_us  500us → 2ms",
        "arena_bytes_max  1GiB → 64MiB",
        "max_batch  32 → 8  not for deadly, digits, gate, identity, once, set on their own",
        f"epoch {epoch + 1}, applied by every process",
    ]
    stale = cli("set", "max_batch=4", "--expected-epoch", str(epoch), code=Exit.CONFIG)
    assert stale.startswith(f"epoch {epoch} was expected, and {epoch + 1} is current")
    back = cli("set", "digits.window_us=", "arena_bytes_max=", "max_batch=")
    assert back.splitlines()[:2] == ["digits.window_us  2ms → 500us", "arena_bytes_max  64MiB → 1GiB"]
    assert sturdy.status().epoch == epoch + 2


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ("digits.max_batch=x", "digits.max_batch = 'x': give a whole number, 1 to 65536 rows"),
        ("digits.window_us=5MiB", 'such as "5s", or a bare number of us'),
        ("max_bach=8", "did you mean max_batch?"),
        ("digit.max_batch=8", "no model 'digit' here; known: deadly, digits"),
        ("digits.in_flight_max=8", "set it without a target, as in_flight_max"),
    ],
)
def test_set_refuses_all_for_one_that_is_wrong(here: Here, sturdy: "Instance", bad: str, part: str) -> None:
    epoch = sturdy.status().epoch
    code, out, err = here("set", "digits.queue_max=7", bad, "--socket", str(sturdy.socket))
    assert (code, out) == (Exit.CONFIG, "")
    assert part in one_line(err)
    assert sturdy.status().epoch == epoch
    answer = control.ask(sturdy.control_socket, control.Get(["digits.queue_max"]))
    assert isinstance(answer, control.Values)
    assert answer.knobs[0].value == 4096


def test_set_says_who_has_not_heard_of_it(cli: Cli, sturdy: "Instance") -> None:
    pid = sturdy.worker_pid("cpu:1")
    os.kill(pid, signal.SIGSTOP)
    try:
        changed = cli("set", "digits.window_us=1ms")
        assert changed.endswith(f"epoch {sturdy.status().epoch}, converging: worker cpu:1\n")
        assert "converging: worker cpu:1" in cli("status")
    finally:
        os.kill(pid, signal.SIGCONT)
    sturdy.wait_status(lambda now: not now.converging)
    sturdy.set(digits__window_us=None)


# ── inference ───────────────────────────────────────────────────────────────────────────────────


def test_infer_reads_and_writes_files(cli: Cli, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 1024), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    assert cli("infer", "identity", "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npz") == ""
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], x)
    assert cli("infer", "identity:1", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npy") == ""
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x)
    shown = cli("infer", "identity:stable", "-i", tmp_path / "x.npy", "--timeout", "5")
    assert shown.startswith("y float32 (3, 1024)\n[[")
    assert "answered in" in shown


def test_infer_names_the_class_of_an_image(cli: Cli) -> None:
    assert cli("infer", "digits", "-i", DIGIT).startswith("logits row 0: 9  ")


def test_infer_shows_numbers_that_look_like_markup(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 1024), np.nan, np.float32))
    assert "[nan nan nan" in cli("infer", "identity", "-i", tmp_path / "x.npy")


def test_infer_says_what_is_wrong_with_a_file(
    here: Here, sturdy: "Instance", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 1024), np.float32)
    np.save(tmp_path / "good.npy", x)
    np.savez(tmp_path / "good.npz", x=x)
    np.savez(tmp_path / "other.npz", z=x)
    np.save(tmp_path / "shape.npy", x[:, :5])
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-30])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "npz.npy").write_bytes((tmp_path / "good.npz").read_bytes())
    (tmp_path / "npy.npz").write_bytes((tmp_path / "good.npy").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORD_SOCKET", str(sturdy.socket))
    for file, part in {
        "missing.npy": "missing.npy cannot be read: No such file or directory",
        "missing.png": "missing.png cannot be read as an image: No such file or directory",
        "shape.npy": "must have shape (rows, 1024), not (1, 5)",
        "other.npz": "model 'identity' takes the inputs x; got z",
        "objects.npy": "objects.npy cannot be read as .npy",
        "text.npy": "text.npy cannot be read as .npy",
        "text.png": "text.png cannot be read as an image",
        "text.txt": "text.txt is not .npy, .npz or .png: convert it first",
        "cut.npz": "cut.npz cannot be read as .npz",
        "empty.npy": "empty.npy cannot be read as .npy",
        "npz.npy": "npz.npy holds what its name does not say",
        "npy.npz": "npy.npz holds what its name does not say",
        ".": ". is not .npy, .npz or .png",
    }.items():
        code, out, err = here("infer", "identity", "-i", file)
        assert (code, out) == (Exit.FAILED, ""), file
        assert part in one_line(err), file
    for output, part in {
        "y.txt": "outputs y go into an .npz file, a single one also into .npy",
        "no/y.npy": "no/y.npy cannot be written: No such file or directory",
    }.items():
        code, _, err = here("infer", "identity", "-i", "good.npy", "-o", output)
        assert code == Exit.FAILED
        assert part in one_line(err)
    code, _, err = here("infer", "nope", "-i", "good.npy")
    assert code == Exit.FAILED
    assert "no model 'nope' is served; served models: deadly, digits" in one_line(err)
    code, _, err = here("infer", "identity", "-i", "good.npy", "--timeout", "-1")
    assert code == Exit.FAILED
    assert one_line(err).startswith("timeout is -1.0: use seconds, more than 0")


# ── wrong commands ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["frob"], "No such command 'frob' (see tensord --help)"),
        (["status", "--bad"], "No such option: --bad (see tensord status --help)"),
        (["set"], "(see tensord set --help)"),
        (["set", "max_batch"], "'max_batch' is not KNOB=VALUE (see tensord set --help)"),
        (["set", "=8"], "'=8' is not KNOB=VALUE"),
        (["set", "a=1", "--expected-epoch", "x"], "--expected-epoch"),
        (["infer"], "(see tensord infer --help)"),
        (["infer", "digits"], "--input"),
        (["infer", "digits", "-i", "x.npy", "--timeout", "soon"], "--timeout"),
        (["check-config"], "(see tensord check-config --help)"),
        (["version", "more"], "(see tensord version --help)"),
        (["serve", "--config"], "--config"),
    ],
)
def test_usage_error_is_one_line(here: Here, arguments: list[str], part: str) -> None:
    code, out, err = here(*arguments)
    assert (code, out) == (Exit.USAGE, "")
    assert part in one_line(err)


def test_no_command_prints_the_help(here: Here) -> None:
    code, out, err = here()
    assert code == Exit.USAGE
    assert "check-config" in out
    assert one_line(err) == "name a command (see tensord --help)"


@pytest.mark.parametrize(
    "command", [["status"], ["models"], ["get"], ["set", "max_batch=8"], ["infer", "a", "-i", "b"]]
)
def test_unreachable_daemon_has_an_exit_code_of_its_own(here: Here, tmp_path: Path, command: list[str]) -> None:
    code, out, err = here(*command, "--socket", str(tmp_path / "tensord.sock"))
    assert (code, out) == (Exit.UNREACHABLE, "")
    assert one_line(err).startswith(f"no daemon answers at {tmp_path}/tensord.sock")
    assert "is `tensord serve` running?" in err


def test_check_config(cli: Cli, here: Here, tmp_path: Path) -> None:
    path = CONFIGS / "demo.toml"
    assert cli("check-config", path) == f"{path} is good: models digits, identity on cpu:0\n"
    bad = tmp_path / "bad.toml"
    bad.write_text("[knobs]\nmax_bach = 1\n")
    code, _, err = here("check-config", str(bad))
    assert code == Exit.CONFIG
    assert one_line(err).startswith(f"{bad}: knobs.max_bach = 1: ")
