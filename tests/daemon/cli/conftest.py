"""Commands as a person types them, run in this process, and the sockets that they talk to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensord.daemon.cli import app
from tensord.daemon.cli.output import console

from ...ipc.client.fake_daemon import FakeDaemon
from .fake_control import FakeControl

COLUMNS = 120


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a command that failed; it printed nothing else."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("tensord: "), line
        return line.removeprefix("tensord: ")


Command = Callable[..., Ended]


@pytest.fixture
def tensord(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command, with lines of 120 columns and no socket in the environment."""
    monkeypatch.setattr(console, "width", COLUMNS)
    monkeypatch.delenv("TENSORD_SOCKET", raising=False)

    def run(*arguments: str | Path) -> Ended:
        code = app.run([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[FakeControl]:
    """The control socket of an instance."""
    fake = FakeControl(tmp_path)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """The data socket of an instance."""
    fake = FakeDaemon(tmp_path / "tensord.sock")
    fake.start()
    yield fake
    fake.stop()
