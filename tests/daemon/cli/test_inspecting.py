import re
from typing import Any

import msgspec
import pytest

from tensord.daemon import control
from tensord.daemon.exits import Exit
from tensord.ipc.statistics import Counter

from .conftest import Command
from .fake_control import FakeControl

NO_COUNTERS = {counter.name.lower(): 0 for counter in Counter}
NO_TIMES = control.PhaseTimes(0, None, None, None)
FRONTEND = control.FrontendStatus(
    pid=31,
    generation=1,
    restarts=0,
    connections=1,
    connections_total=4,
    queued=1_200,
    running=3,
    ingest_bytes=2**28,
    ingest_used_bytes=3 * 2**20,
)
WORKER = control.WorkerStatus(
    device="cpu:0",
    cores=[0, 1, 2, 3, 8],
    state="ready",
    activity="computing",
    pid=32,
    uptime_s=61.0,
    restarts=2,
    memory_bytes=2**30,
    models_loaded=5,
)
INSTANCE = control.InstanceStatus(
    version="9.8",
    pid=30,
    uptime_s=3_700.0,
    state="ready",
    reasons=[],
    epoch=7,
    converging=[],
    pending_restart=[],
    socket="run/tensord.sock",
    arenas=2,
    arena_bytes=2**30,
    frontend=FRONTEND,
    workers=[WORKER],
    models=[],
)


def model(name: str = "digits", **fields: Any) -> control.ModelStatus:
    """A model that had no request yet."""
    usual = {
        "version": 1,
        "labels": [],
        "ready_on": ["cpu:0"],
        "broken_on": {},
        "required": True,
        "counters": NO_COUNTERS,
        "phases": {"request": NO_TIMES},
    }
    return control.ModelStatus(name=name, **{**usual, **fields})


def instance(**fields: Any) -> control.InstanceStatus:
    return msgspec.structs.replace(INSTANCE, **fields)


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def row_of(tensord: Command, operator: FakeControl, shown: control.ModelStatus) -> dict[str, str]:
    """The cells of a model's line, by their headings."""
    operator.answer = instance(models=[shown])
    ended = tensord("models", "--socket", operator.data_socket)
    assert (ended.code, ended.err) == (Exit.OK, "")
    heading, line = (re.split(r"\s{2,}", each.strip()) for each in ended.out.splitlines()[:2])
    return dict(zip(heading, line, strict=True))


def test_a_busy_model_is_told_in_one_line(tensord: Command, operator: FakeControl) -> None:
    counters = {**NO_COUNTERS, "requests": 200_000, "failed_client": 2, "failed_model": 3, "expired": 9}
    counters |= {"batches": 4, "batch_rows": 30, "padded_bytes": 10, "viewed_bytes": 20, "gathered_bytes": 10}
    shown = model(
        version=3,
        labels=["stable", "canary"],
        ready_on=["cpu:0", "cuda:0"],
        counters=counters,
        phases={"request": control.PhaseTimes(9, 850.0, 900.0, 12_345.0)},
    )
    assert row_of(tensord, operator, shown) == {
        "MODEL": "digits:3",
        "LABELS": "stable, canary",
        "READY ON": "cpu:0, cuda:0",
        "REQUESTS": "200 k",
        "FAILED": "5",
        "p50": "850 µs",
        "p99": "12.3 ms",
        "BATCH": "7.5",
        "PADDED": "25%",
    }
    assert operator.asked == [control.Status()]


def test_a_model_without_requests_has_no_times(tensord: Command, operator: FakeControl) -> None:
    cells = row_of(tensord, operator, model())
    assert [cells[heading] for heading in ("LABELS", "REQUESTS", "FAILED")] == ["–", "0", "0"]
    assert {cells[heading] for heading in ("p50", "p99", "BATCH")} == {"–"}
    assert "PADDED" not in cells, "no model pads"
    assert "HITS" not in tensord("models", "--socket", operator.data_socket).out, "no model keeps answers"


def test_a_model_that_keeps_answers_tells_what_that_is_worth(tensord: Command, operator: FakeControl) -> None:
    counters = {**NO_COUNTERS, "cache_hits": 7, "cache_redis_hits": 2, "cache_joined": 1, "cache_misses": 5}
    keeping = model(counters={**counters, "cache_saved_ns": 1_234_000_000})
    operator.answer = instance(models=[keeping, model("faces")])
    lines = [line.split() for line in tensord("models", "--socket", operator.data_socket).out.splitlines()]
    place = lines.index(["MODEL", "HITS", "MISSES", "SAVED"])
    assert lines[place + 1] == ["digits:1", "10", "5", "1.23", "s"]
    assert lines[place + 2][:2] != ["faces:1"], "it keeps nothing"


def test_why_requests_were_refused_is_told_for_each_reason(tensord: Command, operator: FakeControl) -> None:
    counters = {**NO_COUNTERS, "refused_queue": 7, "refused_tenant_queue": 12_000, "refused_delay": 0}
    operator.answer = instance(models=[model(counters=counters), model("faces")])
    lines = [line.split() for line in tensord("models", "--socket", operator.data_socket).out.splitlines()]
    place = lines.index(["MODEL", "REFUSED", "FOR", "REQUESTS"])
    assert lines[place + 1 :] == [["digits:1", "queue", "7"], ["digits:1", "tenant", "queue", "12,000"]]


@pytest.mark.parametrize(
    ("ready_on", "told"), [([], "nowhere"), (["cpu:0", "cpu:1", "cpu:2"], "3 devices"), (["cpu:7"], "cpu:7")]
)
def test_many_devices_are_counted(tensord: Command, operator: FakeControl, ready_on: list[str], told: str) -> None:
    assert row_of(tensord, operator, model(ready_on=ready_on))["READY ON"] == told


def test_why_a_model_is_not_on_a_device_is_said_as_it_is(tensord: Command, operator: FakeControl) -> None:
    reason = "a [bold]remedy[/] " + "of many words " * 20
    operator.answer = instance(models=[model(), model("faces", ready_on=[], broken_on={"cpu:0": reason})])
    lines = tensord("models", "--socket", operator.data_socket).out.splitlines()
    assert f"faces:1 is not on cpu:0: {reason}".rstrip() in [line.rstrip() for line in lines]
    assert any(line.startswith("p50, p99: from request to reply") for line in lines)


# ── status ──────────────────────────────────────────────────────────────────────────────────────


def status_lines(tensord: Command, operator: FakeControl, shown: control.InstanceStatus) -> list[str]:
    operator.answer = shown
    ended = tensord("status", "--socket", operator.data_socket)
    assert (ended.code, ended.err) == (Exit.OK, "")
    return [line.rstrip() for line in ended.out.splitlines()]


def test_the_status_of_a_healthy_instance(tensord: Command, operator: FakeControl) -> None:
    assert status_lines(tensord, operator, INSTANCE) == [
        "ready  tensord 9.8, pid 30, up 1 h 1 min",
        "socket     run/tensord.sock",
        "front end  pid 31, 0 restarts",
        "requests   1,200 queued, 3 running, 1 connection",
        "inline     3 MiB of 256 MiB shared memory taken",
        "arenas     2 client arenas, 1 GiB",
        "knobs      epoch 7, applied by every process",
        "DEVICE  STATE             CORES  PID         UP  RESTARTS  MEMORY  MODELS",
        "cpu:0   ready, computing  0-3,8   32  1 min 1 s         2   1 GiB       5",
    ]


def test_the_status_of_a_troubled_instance_says_why(tensord: Command, operator: FakeControl) -> None:
    shown = instance(
        state="degraded",
        reasons=["model [digits] is nowhere", "no worker"],
        converging=["frontend", "worker cpu:0"],
        pending_restart=["ingest_bytes", "threads"],
        frontend=msgspec.structs.replace(FRONTEND, pid=None, restarts=1),
        workers=[msgspec.structs.replace(WORKER, state="backing off", pid=None, cores=[])],
    )
    lines = status_lines(tensord, operator, shown)
    assert lines[0].startswith("degraded  ")
    assert lines[1:3] == ["  because model [digits] is nowhere", "  because no worker"]
    assert "front end  pid –, 1 restart" in lines
    assert "knobs      epoch 7, converging: frontend, worker cpu:0" in lines
    assert "           waiting for a restart: ingest_bytes, threads" in lines
    assert lines[-1].split()[:5] == ["cpu:0", "backing", "off", "any", "–"]


def test_a_state_that_is_new_to_this_command_is_shown(tensord: Command, operator: FakeControl) -> None:
    assert status_lines(tensord, operator, instance(state="pondering"))[0].startswith("pondering  ")


@pytest.mark.parametrize(
    ("cores", "told"), [([3], "3"), ([0, 1], "0-1"), ([0, 2, 4], "0,2,4"), ([1, 2, 3, 7, 9, 10], "1-3,7,9-10")]
)
def test_cores_are_told_as_ranges(tensord: Command, operator: FakeControl, cores: list[int], told: str) -> None:
    shown = instance(workers=[msgspec.structs.replace(WORKER, cores=cores)])
    assert status_lines(tensord, operator, shown)[-1].split()[3] == told


def test_the_memory_of_a_gpu_and_what_to_know_of_it_are_told(tensord: Command, operator: FakeControl) -> None:
    memory = control.DeviceMemory(3 * 2**29, 20 * 2**30, 24 * 2**30, 300 * 2**20, 0)
    slow = msgspec.structs.replace(memory, unpinned_bytes=2**20)
    workers = [
        msgspec.structs.replace(WORKER, device="cuda:0", device_memory=memory),
        msgspec.structs.replace(WORKER, device="cuda:1", device_memory=slow, notes=["copies are [slow]"]),
    ]
    assert status_lines(tensord, operator, instance(workers=workers))[-3:] == [
        "cuda:0: 1.5 GiB in tensors, 20 GiB of 24 GiB free; 300 MiB of shared memory pinned",
        "cuda:1: 1.5 GiB in tensors, 20 GiB of 24 GiB free; 300 MiB of shared memory pinned, 1 MiB not",
        "cuda:1: copies are [slow]",
    ]


def test_what_to_know_of_the_front_end_is_told(tensord: Command, operator: FakeControl) -> None:
    shown = instance(frontend=msgspec.structs.replace(FRONTEND, notes=["the tier is [down]"]))
    assert "front end: the tier is [down]" in status_lines(tensord, operator, shown)


def test_json_is_the_whole_answer(tensord: Command, operator: FakeControl) -> None:
    operator.answer = instance(models=[model()])
    ended = tensord("status", "--json", "--socket", operator.data_socket)
    assert msgspec.json.decode(ended.out, type=control.InstanceStatus) == operator.answer


@pytest.mark.parametrize("command", ["models", "status"])
def test_a_daemon_that_refuses_is_quoted(tensord: Command, operator: FakeControl, command: str) -> None:
    operator.answer = control.Refused("operators only")
    ended = tensord(command, "--socket", operator.data_socket)
    assert (ended.code, ended.complaint) == (Exit.FAILED, "operators only")


# ── version ─────────────────────────────────────────────────────────────────────────────────────


def test_the_version_names_what_it_stands_on(tensord: Command) -> None:
    ended = tensord("version")
    assert (ended.code, ended.err) == (Exit.OK, "")
    first, second = ended.out.splitlines()
    assert first.split()[0] == "tensord"
    assert [part.split()[0] for part in second.split(", ")] == ["python", "torch", "numpy"]
