import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tensord.daemon.exits import Exit
from tensord.daemon.scheduling import Batch, ModelPolicy, ReleaseReason, Request
from tensord.daemon.scheduling.model import ModelQueue
from tensord.daemon.simulation.trace import Recorder

from .conftest import Command

MS = 1_000_000
SCENARIO = """
duration_s = 0.5
warmup_s = 0.1
replications = 2
[[devices]]
count = 3
[models.m]
row_us = 900
[[workloads]]
name = "few"
model = "m"
rate_per_s = 500
tenants = [["red", 1], ["blue", 1]]
[[workloads]]
name = "many"
model = "m"
rate_per_s = 1000
deadline_ms = 20
[[settings]]
name = "one at a time"
knobs = { max_batch = 1, queue_max = 20, tenant_queue_percent = 100, deadline_check = false }
replicas = 1
[[settings]]
name = "together"
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Ten requests of 2 ms each, recorded with max_batch = 4."""
    file = io.BytesIO()
    recorder = Recorder(file, 0, 10**6, {"max_batch": 4}, {"m": {}}, {1: "cpu:0"})
    queue = ModelQueue(0, "m", ModelPolicy(), idempotent=True)
    for number in range(10):
        at = number * 10 * MS
        request = Request(0, "", "t", 1, 1, at, at + 1_000 * MS)
        batch = Batch(number + 1, queue, "", 1, [request], 1, ReleaseReason.IDLE, at, 0, 1)
        recorder.record(request, "m", at + 2 * MS, batch=batch, compute_ns=2 * MS)
    recorder.close()
    path = tmp_path / "load.trace"
    path.write_bytes(file.getvalue())
    return path


def test_settings_stand_side_by_side(tensord: Command, scenario: Path) -> None:
    ended = tensord("simulate", scenario)
    assert (ended.code, ended.err) == (Exit.OK, "")
    headings = ("SETTING", "RESPONSE TIME", "WORKLOAD", "DEVICE TIME", "REFUSED")
    assert [line.split("  ")[0] for line in ended.out.splitlines() if line.startswith(headings)] == list(headings)
    assert "one at a time" in ended.out
    assert "blue" in ended.out
    assert "QueueFull" in ended.out


def test_json_has_everything(tensord: Command, scenario: Path) -> None:
    ended = tensord("simulate", scenario, "--json")
    report = json.loads(ended.out)
    assert [each["setting"] for each in report["settings"]] == ["one at a time", "together"]
    assert report["settings"][0]["refused_per_s"]["QueueFull"]["mean"] > 0
    assert set(report["settings"][0]["workloads"]) == {"few", "many"}


def test_a_knob_is_set_in_every_setting(tensord: Command, scenario: Path) -> None:
    ended = tensord("simulate", scenario, "--json", "--set", "m.max_batch=1", "--set", "window_us=0")
    assert [each["batch_rows"]["mean"] for each in json.loads(ended.out)["settings"]] == [1.0, 1.0]


def test_pictures_are_drawn(tensord: Command, scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(SCENARIO + "[scaling]\nreplicas = [1, 2, 3]\n")
    ended = tensord("simulate", scenario, "--plot", tmp_path / "pictures")
    assert ended.code == Exit.OK
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    scalings = {"scaling-1.svg", "scaling-2.svg"}
    assert names == {"latency.svg", "latency-1.svg", "latency-2.svg", "outcomes.svg", *scalings}
    for path in (tmp_path / "pictures").iterdir():
        ET.fromstring(path.read_text())
    assert "Amdahl: σ" in ended.out


def test_a_swept_load_is_a_table_and_pictures(tensord: Command, scenario: Path, tmp_path: Path) -> None:
    scenario.write_text(SCENARIO + "[sweep]\nload = [0.5, 1]\n")
    ended = tensord("simulate", scenario, "--plot", tmp_path)
    lines = [line.split() for line in ended.out.splitlines()]
    place = lines.index(["SETTING", "LOAD", "OFFERED/S", "IN", "TIME/S", "p99"])
    assert [line[line.index("×") + 1] for line in lines[place + 1 : place + 5]] == ["0.5", "1", "0.5", "1"]
    assert (tmp_path / "sweep-goodput.svg").exists()


def test_a_trace_is_replayed_with_its_settings(tensord: Command, trace: Path) -> None:
    (setting,) = json.loads(tensord("simulate", "--trace", trace, "--json").out)["settings"]
    assert setting["setting"] == "as recorded"
    assert setting["response"]["mean_us"]["mean"] == pytest.approx(2_000)


def test_a_trace_that_stops_early_is_said_to(tensord: Command, trace: Path) -> None:
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join(lines[:-1]))
    ended = tensord("simulate", "--trace", trace)
    assert (ended.code, "the trace stops before" in ended.out) == (Exit.OK, True)


def test_without_scenario_and_trace_it_is_a_usage_error(tensord: Command) -> None:
    ended = tensord("simulate")
    assert (ended.code, ended.complaint) == (
        Exit.USAGE,
        "name a scenario or a --trace (see tensord simulate --help)",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--set", "max_batch"], Exit.USAGE, "--set max_batch: write it as KNOB=VALUE"),
        (["--set", "max_batch=0"], Exit.CONFIG, "--set: max_batch = '0': give a whole number"),
        (["--set", "n.max_batch=1"], Exit.CONFIG, "--set: n.max_batch = '1': there is no model n; known: m"),
        (["--trace", "no.trace"], Exit.CONFIG, "no.trace: cannot be read (No such file or directory)"),
        (["--plot", "no/such/directory"], Exit.USAGE, "--plot is no/such/directory: No such file or directory"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    tensord: Command, scenario: Path, arguments: list[str], code: Exit, complaint: str
) -> None:
    ended = tensord("simulate", scenario, *arguments)
    assert ended.code == code
    assert ended.complaint.startswith(complaint)


def test_a_broken_scenario_is_a_configuration_error(tensord: Command, scenario: Path) -> None:
    scenario.write_text("seeds = 1")
    ended = tensord("simulate", scenario)
    assert (ended.code, ended.complaint) == (Exit.CONFIG, f"{scenario}: seeds = 1: no such key; did you mean seed?")


def test_a_file_that_is_no_trace_is_a_configuration_error(tensord: Command, scenario: Path) -> None:
    ended = tensord("simulate", "--trace", scenario)
    assert ended.code == Exit.CONFIG
    assert ended.complaint.startswith(f"{scenario}: line 1: no header")
