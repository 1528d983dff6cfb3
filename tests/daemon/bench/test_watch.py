import os
from pathlib import Path

import msgspec

from tensord.daemon import control
from tensord.daemon.bench.watch import Watch, usages

from ..cli.fake_control import FakeControl
from .measurements import status

NOBODY = 2**22 + 1
"""No process has this id: it is beyond pid_max."""


def test_a_supervisor_is_asked(operator: FakeControl) -> None:
    operator.answer = status(requests=3)
    watch = Watch(operator.data_socket.parent / "control.sock")
    assert watch.status() == operator.answer
    assert (operator.asked, watch.silence) == ([control.Status()], "")


def test_one_that_does_not_answer_is_not_asked_again(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "control.sock")
    assert watch.status() is None
    assert watch.silence.startswith("no daemon answers")
    (tmp_path / "control.sock").mkdir()
    assert watch.status() is None
    assert "No such file" in watch.silence


def test_one_that_refuses_says_why(operator: FakeControl) -> None:
    operator.answer = control.Refused("your user may not ask")
    watch = Watch(operator.data_socket.parent / "control.sock")
    assert watch.status() is None
    assert watch.silence == "your user may not ask"


def test_usage_is_known_of_processes_that_run() -> None:
    here = msgspec.structs.replace(status(), pid=os.getpid())
    gone = msgspec.structs.replace(here.frontend, pid=NOBODY)
    none = [msgspec.structs.replace(here.workers[0], pid=None)]
    found = usages(msgspec.structs.replace(here, frontend=gone, workers=none))
    assert list(found) == ["supervisor"]
    assert found["supervisor"].pid == os.getpid()
    assert 0 < found["supervisor"].cpu_s <= usages(here)["supervisor"].cpu_s


def test_nothing_is_known_of_nobody() -> None:
    assert usages(None) == {}
