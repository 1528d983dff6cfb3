"""Where a client looks for the daemon."""

import socket
from pathlib import Path

import pytest

from tensord.ipc.client import discovery
from tensord.ipc.client.discovery import candidates, connect_socket, find_socket
from tensord.ipc.errors import DaemonNotFound
from tensord.ipc.limits import SOCKET_PATH_BYTES_MAX


def test_a_path_that_was_given_is_the_only_candidate() -> None:
    environ = {"TENSORD_SOCKET": "/a", "XDG_RUNTIME_DIR": "/b"}
    assert candidates("/given", environ) == ["/given"]
    assert candidates(Path("/given"), environ) == ["/given"]


def test_the_environment_variable_is_the_only_candidate_where_it_is_set() -> None:
    assert candidates(None, {"TENSORD_SOCKET": "/a", "XDG_RUNTIME_DIR": "/b"}) == ["/a"]


def test_otherwise_the_services_places_are_candidates() -> None:
    assert candidates(None, {"XDG_RUNTIME_DIR": "/b"}) == ["/run/tensord/tensord.sock", "/b/tensord/tensord.sock"]
    assert candidates(None, {}) == ["/run/tensord/tensord.sock"]
    assert candidates(None, {"TENSORD_SOCKET": "", "XDG_RUNTIME_DIR": ""}) == ["/run/tensord/tensord.sock"]


def test_the_first_that_exists_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SYSTEM_SOCKET", str(tmp_path / "system"))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    users = tmp_path / "tensord" / "tensord.sock"
    users.parent.mkdir()
    with pytest.raises(DaemonNotFound, match="none of them exists") as caught:
        find_socket(None, environ)
    assert caught.value.tried == [str(tmp_path / "system"), str(users)]
    users.touch()
    assert find_socket(None, environ) == str(users)
    (tmp_path / "system").touch()
    assert find_socket(None, environ) == str(tmp_path / "system")


def test_a_path_longer_than_a_socket_may_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("x" * SOCKET_PATH_BYTES_MAX)
    with pytest.raises(DaemonNotFound, match=f"at most {SOCKET_PATH_BYTES_MAX}"):
        find_socket(path)


def test_a_file_that_is_no_socket_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DaemonNotFound, match="connection refused") as caught:
        connect_socket(str(tmp_path / "file"))
    assert caught.value.retry_after_ms is None


def test_a_full_backlog_is_worth_another_try(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        waiting.append(connect_socket(path))  # the one that a backlog of 0 holds
        try:
            with pytest.raises(DaemonNotFound, match="too many others") as caught:
                connect_socket(path)
        finally:
            waiting[0].close()
    assert caught.value.retry_after_ms is not None


def test_a_connected_socket_does_not_block_and_is_not_inherited(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with connect_socket(path) as connected:
            assert not connected.getblocking()
            assert not connected.get_inheritable()
