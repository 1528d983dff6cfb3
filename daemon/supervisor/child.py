"""One child process: its link, its end, and what it says of itself in the statistics page."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tensord.ipc.heartbeat import Activity, Heartbeat, Pulse
from tensord.ipc.segment import Segment
from tensord.ipc.statistics import Block

from ..messages import AnyMessage, Link, LinkClosed, Message


class Child:
    """A spawned process. Its owner is told of its messages and, once, of its end; it never waits for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        received: Callable[[AnyMessage, list[int]], None],
        ended: Callable[[int], None],
    ) -> None:
        """Start `python -P -m module CONTROL_FD OUR_PID *arguments` in a session of its own.

        `-P`: a file called like a module in the working directory must not be imported. A session of its own:
        Ctrl-C on a terminal goes to the supervisor alone. Raises OSError.
        """
        ours, theirs = Link.pair()
        self.link = ours
        self._loop = loop
        self._received = received
        self._ended = ended
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()), *arguments]
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.started_s = time.monotonic()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._end)
        loop.add_reader(ours.fileno(), self._receive)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def lived_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started_s

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, without waiting; a child that is gone gets nothing, and its end is seen elsewhere."""
        try:
            self.link.send(message, fds)
        except LinkClosed:
            return
        if self.link.backlog:
            self._loop.add_writer(self.link.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self.link.flush()
        except LinkClosed:
            self._loop.remove_writer(self.link.fileno())
            return
        if not self.link.backlog:
            self._loop.remove_writer(self.link.fileno())

    def _receive(self) -> None:
        try:
            while (received := self.link.receive()) is not None:
                self._received(*received)
        except LinkClosed:
            self._loop.remove_reader(self.link.fileno())

    def kill(self) -> None:
        """SIGKILL; its end is reported when the kernel is through with it."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _end(self) -> None:
        """The process has ended: nothing of it runs or writes any more."""
        self._receive()  # its last words
        for fd in (self._pidfd, self.link.fileno()):
            self._loop.remove_reader(fd)
        self._loop.remove_writer(self.link.fileno())
        self.link.close()
        os.close(self._pidfd)
        self._ended(self._process.wait())


class Page:
    """The statistics block of one place (the front end, or one worker), kept over restarts of its process."""

    def __init__(self, models_max: int) -> None:
        """Raises NoMemory."""
        self.segment = Segment.create(Block.nbytes(models_max))
        self.block = Block.format(self.segment.view, models_max)
        self._heartbeat = Heartbeat(self.block)

    def pulse(self) -> Pulse:
        """What the process last said."""
        return self._heartbeat.read(time.monotonic_ns())

    def started(self) -> None:
        """A new process takes the block over: it beats from now on."""
        self._heartbeat.enter(Activity.STARTING, time.monotonic_ns())


def ending(returncode: int) -> str:
    """How a process ended, for a log line."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
