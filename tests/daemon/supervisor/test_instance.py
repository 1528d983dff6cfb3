import fcntl
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensord.daemon.exits import Exit
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.daemon.supervisor.instance import RuntimeDirectory, raise_descriptor_limit
from tensord.ipc.limits import SOCKET_PATH_BYTES_MAX


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rt"


@pytest.fixture
def runtime(path: Path) -> Iterator[RuntimeDirectory]:
    directory = RuntimeDirectory(path)
    directory.take()
    yield directory
    directory.leave()


def take_failure(path: Path) -> InstanceFailure:
    with pytest.raises(InstanceFailure) as caught:
        RuntimeDirectory(path).take()
    return caught.value


def listen_failure(runtime: RuntimeDirectory, path: Path) -> InstanceFailure:
    with pytest.raises(InstanceFailure) as caught:
        runtime.listen(path)
    return caught.value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ── the directory and its lock ──────────────────────────────────────────────────────────────────


def test_the_directory_is_made_for_owner_and_group(runtime: RuntimeDirectory) -> None:
    assert mode(runtime.path) == 0o750
    assert mode(runtime.path / "lock") == 0o600
    assert (runtime.path / "lock").read_text() == f"{os.getpid()}\n"


def test_one_instance_at_a_time(runtime: RuntimeDirectory) -> None:
    failure = take_failure(runtime.path)
    assert failure.exit is Exit.RUNNING
    assert str(failure) == (
        f"another tensord (pid {os.getpid()}) runs in {runtime.path}: stop it, or set another runtime_dir"
    )


def test_the_next_instance_can_have_it(path: Path) -> None:
    for _ in range(3):
        directory = RuntimeDirectory(path)
        directory.take()
        directory.leave()


def test_a_lock_that_a_killed_instance_left_is_free(path: Path) -> None:
    path.mkdir(mode=0o750)
    (path / "lock").write_text("4194304 and what else stood there\n")
    directory = RuntimeDirectory(path)
    directory.take()
    assert (path / "lock").read_text() == f"{os.getpid()}\n"
    directory.leave()


def test_who_was_refused_leaves_the_holders_lock_alone(runtime: RuntimeDirectory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    refused = RuntimeDirectory(runtime.path)
    with pytest.raises(InstanceFailure):
        refused.take()
    refused.leave()
    assert (runtime.path / "lock").exists()
    assert len(os.listdir("/proc/self/fd")) == before
    take_failure(runtime.path)


def test_the_lock_of_one_that_just_left_is_not_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened, and then its file was removed: whoever comes next would make and lock another."""
    leaving, coming, third = (RuntimeDirectory(path) for _ in range(3))
    leaving.take()
    flock = fcntl.flock

    def flock_late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        leaving.leave()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    coming.take()
    with pytest.raises(InstanceFailure):
        third.take()
    coming.leave()


def test_leaving_twice_and_leaving_what_was_never_taken_is_nothing(path: Path) -> None:
    directory = RuntimeDirectory(path)
    directory.leave()
    directory.take()
    directory.leave()
    directory.leave()


@pytest.mark.parametrize("writable", [0o777, 0o757, 0o702])
def test_a_directory_that_all_may_write_is_refused(path: Path, writable: int) -> None:
    path.mkdir()
    path.chmod(writable)
    failure = take_failure(path)
    assert failure.exit is Exit.CONFIG
    assert str(failure) == f"runtime_dir {path} can be written by other users: chown it to yourself and chmod 0750"


def test_somebody_elses_directory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(mode=0o750)
    other = path.stat().st_uid + 1
    os.chown(path, other, -1) if os.getuid() == 0 else monkeypatch.setattr(os, "getuid", lambda: other)
    if os.getuid() == 0 or path.stat().st_uid != 0:
        assert take_failure(path).exit is Exit.CONFIG


def test_a_directory_that_cannot_be_made_is_refused(path: Path) -> None:
    path.write_text("a file")
    failure = take_failure(path)
    assert failure.exit is Exit.CONFIG
    assert str(failure).startswith(f"runtime_dir {path}: ")


def test_a_link_is_no_lock(path: Path) -> None:
    path.mkdir(mode=0o750)
    (path / "precious").write_text("kept")
    (path / "lock").symlink_to(path / "precious")
    assert take_failure(path).exit is Exit.CONFIG
    assert (path / "precious").read_text() == "kept"


# ── sockets ─────────────────────────────────────────────────────────────────────────────────────


def test_a_socket_listens_for_owner_and_group(runtime: RuntimeDirectory) -> None:
    umask = os.umask(0o022)
    with runtime.listen(runtime.path / "s") as listener, socket.socket(socket.AF_UNIX) as client:
        assert mode(runtime.path / "s") == 0o660
        client.connect(str(runtime.path / "s"))
        listener.accept()[0].close()
    assert os.umask(umask) == 0o022


def test_our_sockets_are_gone_when_we_are(path: Path) -> None:
    directory = RuntimeDirectory(path)
    directory.take()
    listeners = [directory.listen(path / name) for name in ("a", "b")]
    directory.leave()
    for listener in listeners:
        listener.close()
    assert list(path.iterdir()) == []


def test_what_took_the_place_of_our_socket_stays(path: Path) -> None:
    directory = RuntimeDirectory(path)
    directory.take()
    listener = directory.listen(path / "s")
    (path / "s").rename(path / "moved")
    (path / "s").write_text("somebody else's")
    directory.leave()
    listener.close()
    assert (path / "s").read_text() == "somebody else's"


def test_a_socket_that_nobody_listens_on_is_replaced(runtime: RuntimeDirectory) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime.path / "s"))
    runtime.listen(runtime.path / "s").close()


def test_a_socket_in_use_is_left_to_its_owner(runtime: RuntimeDirectory) -> None:
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(runtime.path / "s"))
        owner.listen()
        failure = listen_failure(runtime, runtime.path / "s")
    assert failure.exit is Exit.RUNNING
    assert "is in use by another program" in str(failure)
    assert (runtime.path / "s").is_socket()


def test_a_socket_whose_owner_is_busy_is_left_alone(runtime: RuntimeDirectory) -> None:
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as waiting:
        owner.bind(str(runtime.path / "s"))
        owner.listen(0)
        waiting.connect(str(runtime.path / "s"))
        failure = listen_failure(runtime, runtime.path / "s")
    assert failure.exit is Exit.RUNNING
    assert (runtime.path / "s").is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_not_removed(runtime: RuntimeDirectory, kind: str) -> None:
    place = runtime.path / "s"
    match kind:
        case "file":
            place.write_text("precious")
        case "directory":
            place.mkdir()
        case _:
            place.symlink_to("nowhere")
    failure = listen_failure(runtime, place)
    assert failure.exit is Exit.RUNNING
    assert str(failure) == f"{place} exists and is not a socket: remove it, or set another runtime_dir"
    assert os.path.lexists(place)


def test_a_path_longer_than_the_kernel_takes_is_refused(runtime: RuntimeDirectory) -> None:
    failure = listen_failure(runtime, runtime.path / ("s" * SOCKET_PATH_BYTES_MAX))
    assert failure.exit is Exit.CONFIG
    assert f"longer than {SOCKET_PATH_BYTES_MAX} bytes" in str(failure)


def test_a_socket_that_cannot_be_bound_is_a_failure(runtime: RuntimeDirectory) -> None:
    assert listen_failure(runtime, runtime.path / "no" / "such").exit is Exit.RUNNING


def test_the_descriptor_limit_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
