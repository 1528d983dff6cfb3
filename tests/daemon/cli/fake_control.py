"""A control socket for tests of commands: a real one, that answers every request as it is told to."""

import contextlib
import socket
import threading
from pathlib import Path

from tensord.daemon import control


class FakeControl:
    """Listens beside a data socket that nobody serves."""

    def __init__(self, directory: Path) -> None:
        self.data_socket = directory / "tensord.sock"
        self.answer: control.Answer = control.Refused("nothing was told to be answered")
        self.asked: list[control.Request] = []
        self._path = directory / "control.sock"
        self._listening = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve, name="fake-control")

    def start(self) -> None:
        """Listen."""
        self.data_socket.touch()
        self._listening.bind(str(self._path))
        self._listening.listen()
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            with accepted, accepted.makefile("rb") as lines, contextlib.suppress(OSError):
                self.asked.append(control.decode_request(lines.readline()))
                accepted.sendall(control.encode(self.answer) + b"\n")
