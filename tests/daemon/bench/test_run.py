import os
import resource
import signal
from pathlib import Path

import pytest

from tensord.daemon.bench import run
from tensord.daemon.bench.plan import BadOption, Form, Lane, Plan
from tensord.daemon.bench.run import Interruption, measure
from tensord.daemon.bench.speech import Job, Progress
from tensord.daemon.bench.watch import Watch
from tensord.ipc.errors import UnknownModel

from ...ipc.client.fake_daemon import FakeDaemon, Infer
from ..cli.fake_control import FakeControl
from .measurements import status

PLAN = Plan("double", clients=2, seconds=0.2, warmup_s=0.1)


class Shown:
    """What the one who waits sees."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, stage: str, done_s: float, total_s: float, progress: Progress) -> None:
        assert done_s >= 0
        if stage not in self.stages:
            self.stages.append(stage)


# ── a measurement ───────────────────────────────────────────────────────────────────────────────


def test_a_measurement_is_all_that_was_seen(daemon: FakeDaemon, operator: FakeControl) -> None:
    operator.answer = status()
    shown = Shown()
    seen = measure(PLAN, str(daemon.path), Watch(operator.data_socket.parent / "control.sock"), shown)
    assert seen.plan == PLAN
    assert seen.form == Form(Lane.INLINE, 1, 16, 16, 0)
    assert seen.spec == daemon.models["double"].spec
    assert seen.processes == 1
    assert seen.tally.sent == seen.tally.answered == len(daemon.requests)
    assert seen.tally.window_s == 0.2
    assert seen.before == seen.after == operator.answer
    assert (seen.silence, seen.interrupted) == ("", False)
    stages = ["connecting", "warming up", "measuring", "draining"]  # on a busy machine a short one may go by unseen
    assert shown.stages == [stage for stage in stages if stage in shown.stages]
    assert shown.stages[0] == stages[0]


def test_a_daemon_without_a_control_socket_is_measured_all_the_same(daemon: FakeDaemon, tmp_path: Path) -> None:
    seen = measure(PLAN, str(daemon.path), Watch(tmp_path / "control.sock"), Shown())
    assert seen.tally.answered > 0
    assert (seen.before, seen.after, seen.usages) == (None, None, {})
    assert seen.silence.startswith("no daemon answers")


def test_a_daemon_that_goes_away_ends_the_measurement(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.on_infer = Infer.drop
    plan = Plan("double", clients=2, seconds=3_600.0)
    seen = measure(plan, str(daemon.path), Watch(tmp_path / "control.sock"), Shown())
    assert seen.tally.lost == "the daemon closed it"


def test_ctrl_c_ends_the_measurement_and_keeps_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    def show(stage: str, done_s: float, total_s: float, progress: Progress) -> None:
        if stage == "measuring" and progress.answered > 10 and not interrupted:
            interrupted.append(stage)
            os.kill(os.getpid(), signal.SIGINT)

    interrupted: list[str] = []
    plan = Plan("double", clients=2, seconds=3_600.0, warmup_s=0.0)
    seen = measure(plan, str(daemon.path), Watch(tmp_path / "control.sock"), show)
    assert seen.interrupted
    assert 0 < seen.tally.window_s < 3_600
    assert seen.tally.sent == seen.tally.answered == len(daemon.requests)


def test_ctrl_c_before_it_begins_is_raised(daemon: FakeDaemon, tmp_path: Path) -> None:
    def show(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure(PLAN, str(daemon.path), Watch(tmp_path / "control.sock"), show)


# ── before it begins ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("plan", "option"),
    [
        (Plan("double", clients=0), "--clients"),
        (Plan("double", rows=1_025), "--rows"),
        (Plan("double", depth=1_025), "--depth"),
        (Plan("image", rows=64, lane=Lane.INLINE), "--lane"),
    ],
)
def test_what_makes_no_sense_is_refused_before_there_is_load(
    daemon: FakeDaemon, tmp_path: Path, plan: Plan, option: str
) -> None:
    with pytest.raises(BadOption, match=f"^{option} is "):
        measure(plan, str(daemon.path), Watch(tmp_path / "control.sock"), Shown())
    assert daemon.requests == []


def test_an_unknown_model_is_the_daemons_error(daemon: FakeDaemon, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        measure(Plan("nope"), str(daemon.path), Watch(tmp_path / "control.sock"), Shown())


def test_more_clients_than_a_process_may_have_descriptors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 100))
    job = Job("a.sock", PLAN, Form(Lane.INLINE, 1, 16, 16, 0), 0, 68)
    run._check_descriptors([job])
    with pytest.raises(BadOption, match=r"^--clients is 69: .* 100 descriptors open, and 101 are needed: raise"):
        run._check_descriptors([Job("a.sock", PLAN, job.form, 0, 69)])


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────


def test_an_interruption_is_noticed_and_the_next_one_raised() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.happened
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
    assert not interruption.happened
