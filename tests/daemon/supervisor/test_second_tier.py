from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tensord.daemon.exits import Exit
from tensord.daemon.frontend.cache.key import SECRET_BYTES
from tensord.daemon.supervisor.failures import InstanceFailure
from tensord.daemon.supervisor.second_tier import second_tier


@dataclass
class Config:
    redis: Path | None
    key_file: Path | None


def told(key_file: Path) -> tuple[str, bytes]:
    config: Any = Config(Path("/run/r.sock"), key_file)
    return second_tier(config)


def refusal(key_file: Path) -> str:
    with pytest.raises(InstanceFailure) as caught:
        told(key_file)
    assert caught.value.exit is Exit.CONFIG
    return str(caught.value)


def test_without_a_socket_there_is_nothing() -> None:
    config: Any = Config(None, None)
    assert second_tier(config) == ("", b"")


def test_the_first_start_makes_the_secret_and_the_next_finds_it(tmp_path: Path) -> None:
    socket, secret = told(tmp_path / "key")
    assert (socket, len(secret)) == ("/run/r.sock", SECRET_BYTES)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert told(tmp_path / "key") == (socket, secret)
    assert told(tmp_path / "other")[1] != secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_use_is_none(tmp_path: Path, mode: int) -> None:
    told(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    assert "chmod 0600" in refusal(tmp_path / "key")


@pytest.mark.parametrize("nbytes", [0, SECRET_BYTES - 1, SECRET_BYTES + 1])
def test_a_file_of_another_length_is_no_secret(tmp_path: Path, nbytes: int) -> None:
    (tmp_path / "key").write_bytes(bytes(nbytes))
    (tmp_path / "key").chmod(0o600)
    assert f"has not {SECRET_BYTES} bytes" in refusal(tmp_path / "key")


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "missing" / "key")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensord.daemon.supervisor.second_tier.find_spec", lambda _name: None)
    assert "pip install 'tensord[redis]'" in refusal(tmp_path / "key")
