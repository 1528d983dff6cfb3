import os
import signal
import time
from itertools import chain
from pathlib import Path

import pytest

from tensord.daemon.bench.plan import Form, Lane, Plan
from tensord.daemon.bench.processes import LoadFailure, Processes, shares
from tensord.daemon.bench.speech import Job
from tensord.daemon.exits import Exit

from ...ipc.client.fake_daemon import WATCHDOG_S, FakeDaemon, ignore

PLAN = Plan("double", clients=3, seconds=0.1, warmup_s=0.0)
FORM = Form(Lane.INLINE, 2, 16, 16, 0)


def deadline_ns() -> int:
    """A limit against hanging."""
    return time.monotonic_ns() + int(WATCHDOG_S * 1e9)


def nothing() -> None:
    """Nobody looks."""


def jobs(socket: Path, plan: Plan = PLAN) -> list[Job]:
    """Two clients for one process, and one for another."""
    return [Job(str(socket), plan, FORM, 0, 2), Job(str(socket), plan, FORM, 2, 3)]


def gone(pid: int) -> bool:
    """Whether a process was ended and reaped."""
    return not Path(f"/proc/{pid}").exists()


# ── how many ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("clients", "rate_per_s", "cores", "number"),
    [
        (1, None, 8, 1),
        (32, None, 8, 1),
        (33, None, 8, 2),
        (10_000, None, 8, 8),
        (64, None, 1, 1),
        (16, 20_001.0, 8, 2),
        (2, 1e6, 8, 2),
    ],
)
def test_there_are_as_many_processes_as_the_load_needs_and_no_more_than_cores(
    clients: int, rate_per_s: float | None, cores: int, number: int
) -> None:
    made = shares(Plan("digits", clients=clients, rate_per_s=rate_per_s), cores)
    assert len(made) == number
    assert list(chain(*made)) == list(range(clients))
    assert max(map(len, made)) - min(map(len, made)) <= 1


# ── what they do ────────────────────────────────────────────────────────────────────────────────


def test_they_put_load_on_a_daemon_and_say_what_came_of_it(daemon: FakeDaemon) -> None:
    with Processes(jobs(daemon.path)) as processes:
        assert processes.wait(lambda: processes.ready, deadline_ns(), nothing)
        assert len(daemon.connections) == 3
        assert daemon.requests == []
        processes.begin(time.monotonic_ns())
        assert processes.wait(lambda: processes.finished, deadline_ns(), nothing)
        tallies = [process.tally for process in processes.all]
        pids = [process.pid for process in processes.all]
    assert sum(tally.sent for tally in tallies if tally is not None) == len(daemon.requests)
    assert [tally.answered > 0 for tally in tallies if tally is not None] == [True, True]
    assert all(map(gone, pids))


def test_they_say_how_far_they_are(daemon: FakeDaemon) -> None:
    with Processes(jobs(daemon.path, Plan("double", clients=3, seconds=3_600.0))) as processes:
        processes.wait(lambda: processes.ready, deadline_ns(), nothing)
        processes.begin(time.monotonic_ns())
        turns = []
        assert processes.wait(
            lambda: processes.progress.answered > 100, deadline_ns(), lambda: turns.append(processes.progress.failed)
        )
        assert set(turns) == {0}
        processes.stop()
        assert processes.wait(lambda: processes.finished, deadline_ns(), nothing)


def test_one_that_waits_in_vain_is_told_so(daemon: FakeDaemon) -> None:
    with Processes(jobs(daemon.path)) as processes:
        assert not processes.wait(lambda: processes.finished, time.monotonic_ns(), nothing)


def test_what_a_daemon_refuses_is_why_there_is_no_load(daemon: FakeDaemon) -> None:
    daemon.models.clear()
    with Processes(jobs(daemon.path)) as processes, pytest.raises(LoadFailure) as caught:
        processes.wait(lambda: processes.ready, deadline_ns(), nothing)
    assert str(caught.value) == "no model 'double' is served; served models: none"
    assert caught.value.exit is Exit.FAILED
    assert all(gone(process.pid) for process in processes.all)


def test_a_limit_that_so_many_clients_reach_is_told_with_their_number(daemon: FakeDaemon) -> None:
    daemon.arenas_max = 0
    arena = Form(Lane.ARENA, 1, 16, 16, 4_096)
    with Processes([Job(str(daemon.path), PLAN, arena, 0, 3)]) as processes, pytest.raises(LoadFailure) as caught:
        processes.wait(lambda: processes.ready, deadline_ns(), nothing)
    assert str(caught.value).startswith("--clients is 3: 4096 bytes of client arenas asked for")


def test_a_daemon_that_is_gone_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    with Processes(jobs(tmp_path / "tensord.sock")) as processes, pytest.raises(LoadFailure) as caught:
        processes.wait(lambda: processes.ready, deadline_ns(), nothing)
    assert caught.value.exit is Exit.UNREACHABLE


def test_one_that_is_killed_ends_the_others(daemon: FakeDaemon) -> None:
    daemon.on_infer = ignore
    with Processes(jobs(daemon.path)) as processes:
        processes.wait(lambda: processes.ready, deadline_ns(), nothing)
        os.kill(processes.all[1].pid, signal.SIGKILL)
        with pytest.raises(LoadFailure) as caught:
            processes.wait(lambda: processes.finished, deadline_ns(), nothing)
    assert str(caught.value) == "a process of the load ended by itself (signal 9)"
    assert all(gone(process.pid) for process in processes.all)
