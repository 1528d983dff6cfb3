import pytest

from tensord.daemon import control
from tensord.daemon.exits import Exit
from tensord.daemon.knob import Setting

from .conftest import Command
from .fake_control import FakeControl


def state(address: str, value: Setting, text: str, source: str = "default") -> control.KnobState:
    return control.KnobState(address, value, text, source, "live", "")


def changed(
    address: str, old: Setting, new: Setting, *, pending_restart: bool = False, keeps_own: tuple[str, ...] = ()
) -> control.Changed:
    return control.Changed(address, old, new, pending_restart, list(keeps_own))


# ── looking ─────────────────────────────────────────────────────────────────────────────────────


def test_all_knobs_are_a_table(tensord: Command, operator: FakeControl) -> None:
    knobs = [state("digits.window_us", 2000, "2ms", "admin"), state("ingest_bytes", 2**28, "256MiB")]
    operator.answer = control.Values(7, knobs)
    ended = tensord("get", "--socket", operator.data_socket)
    assert operator.asked == [control.Get([])]
    assert (ended.code, ended.err) == (Exit.OK, "")
    heading, live, restart, note = ended.out.splitlines()
    assert heading.split() == ["KNOB", "VALUE", "SET", "BY", "ALLOWED"]
    assert live.split() == ["digits.window_us", "2ms", "admin", "0us", "to", "10s"]
    assert restart.split()[:3] == ["ingest_bytes", "256MiB", "default"]
    assert restart.rstrip().endswith("1MiB to 64GiB (at a restart)")
    assert note.startswith("epoch 7 · ")


def test_a_knob_is_explained_with_what_it_trades(tensord: Command, operator: FakeControl) -> None:
    operator.answer = control.Values(7, [state("digits.max_batch", 64, "64", "manifest"), state("threads", 0, "0")])
    ended = tensord("get", "digits.max_batch", "threads", "--socket", operator.data_socket)
    assert operator.asked == [control.Get(["digits.max_batch", "threads"])]
    lines = ended.out.splitlines()
    assert lines[0] == "digits.max_batch = 64  set by manifest (default 32)"
    assert "  Allowed: 1 to 65536 rows; live." in [line.rstrip() for line in lines]
    assert "threads = 0  set by default" in lines
    when = "takes effect when the process that uses it starts next"
    assert lines[-1].rstrip() == f"  Allowed: 0 to 4096 threads; {when}."
    paragraphs = "\n".join(line.rstrip() for line in lines).split("\nthreads")
    assert [paragraph.count("\n  ") >= 3 for paragraph in paragraphs] == [True, True]


# ── turning ─────────────────────────────────────────────────────────────────────────────────────


def test_settings_are_sent_as_one_transaction(tensord: Command, operator: FakeControl) -> None:
    operator.answer = control.Applied(8, [], [])
    note = ("--why", "a larger camera", "--expected-epoch", "7")
    tensord("set", "digits.max_batch=8", "window_us=", "order=a=b", *note, "--socket", operator.data_socket)
    settings: dict[str, Setting | None] = {"digits.max_batch": "8", "window_us": None, "order": "a=b"}
    assert operator.asked == [control.Set(settings, "a larger camera", 7)]


def test_a_change_is_told_in_the_knobs_own_unit(tensord: Command, operator: FakeControl) -> None:
    changes = [changed("digits.window_us", 500, 2000), changed("arena_bytes_max", 2**30, 2**26)]
    operator.answer = control.Applied(8, changes, [])
    ended = tensord("set", "a=1", "--socket", operator.data_socket)
    assert ended.code == Exit.OK
    assert ended.out.splitlines() == [
        "digits.window_us  500us → 2ms",
        "arena_bytes_max  1GiB → 64MiB",
        "epoch 8, applied by every process",
    ]


def test_what_a_change_does_not_reach_is_said(tensord: Command, operator: FakeControl) -> None:
    changes = [
        changed("cpu:0.threads", 1, 4, pending_restart=True),
        changed("max_batch", 32, 16, keeps_own=("digits", "faces")),
    ]
    operator.answer = control.Applied(9, changes, ["worker cpu:0", "frontend"])
    assert tensord("set", "a=1", "--socket", operator.data_socket).out.splitlines() == [
        "cpu:0.threads  1 → 4  waits until the process that uses it starts next",
        "max_batch  32 → 16  not for digits, faces, set on their own",
        "epoch 9, converging: worker cpu:0, frontend",
    ]


@pytest.mark.parametrize("setting", ["max_batch", "=8", ""])
def test_a_setting_without_knob_or_value_is_not_sent(tensord: Command, operator: FakeControl, setting: str) -> None:
    ended = tensord("set", "window_us=1", setting, "--socket", operator.data_socket)
    assert ended.code == Exit.USAGE
    assert f"{setting!r} is not KNOB=VALUE" in ended.complaint
    assert operator.asked == []


@pytest.mark.parametrize("command", [("get", "max_bach"), ("set", "max_bach=1")])
def test_a_refusal_brings_its_exit_code(tensord: Command, operator: FakeControl, command: tuple[str, str]) -> None:
    operator.answer = control.Refused("max_bach: no such knob", Exit.CONFIG)
    ended = tensord(*command, "--socket", operator.data_socket)
    assert (ended.code, ended.complaint) == (Exit.CONFIG, "max_bach: no such knob")
