from pathlib import Path

import pytest

from tensord.daemon.cli.places import control_socket
from tensord.ipc.errors import DaemonNotFound


def test_the_control_socket_is_beside_the_data_socket(tmp_path: Path) -> None:
    data = tmp_path / "any-name.sock"
    data.touch()
    assert control_socket(data) == tmp_path / "control.sock"


def test_without_a_path_it_is_looked_for_as_a_client_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensord.sock").touch()
    monkeypatch.setenv("TENSORD_SOCKET", str(tmp_path / "tensord.sock"))
    assert control_socket(None) == tmp_path / "control.sock"


def test_without_a_data_socket_there_is_no_control_socket(tmp_path: Path) -> None:
    (tmp_path / "control.sock").touch()
    with pytest.raises(DaemonNotFound, match=str(tmp_path / "tensord.sock")):
        control_socket(tmp_path / "tensord.sock")
