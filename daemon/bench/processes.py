"""The processes of the load, as the command sees them: started, told when to begin, listened to, ended."""

import contextlib
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Final

from ..exits import Exit
from .plan import Plan
from .speech import Answer, Begin, Failed, Finished, Job, Order, Progress, Ready, Stop, decode_answer, encode
from .tally import Tally

CLIENTS_PER_PROCESS: Final = 32
RATE_PER_PROCESS: Final = 20_000.0
"""Arrivals per second that one process makes without being late; where there are cores for more, more make them."""

CHUNK_BYTES: Final = 1 << 20


class LoadFailure(Exception):
    """There was no measurement; `str()` says why, `exit` what the command ends with."""

    def __init__(self, sentence: str, code: Exit) -> None:
        super().__init__(sentence)
        self.exit = code


def shares(plan: Plan, cores: int) -> list[range]:
    """The clients of each process: few processes, for they take cores from the daemon."""
    wanted = max(plan.clients / CLIENTS_PER_PROCESS, (plan.rate_per_s or 0) / RATE_PER_PROCESS)
    number = max(1, min(plan.clients, cores, math.ceil(wanted)))
    bounds = [plan.clients * index // number for index in range(number + 1)]
    return [range(first, stop) for first, stop in pairwise(bounds)]


class Process:
    """One of them."""

    def __init__(self, job: Job) -> None:
        self.ready = False
        self.progress = Progress(0, 0)
        self.tally: Tally | None = None
        self._line = b""
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the command, which tells its processes what it means
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self.stdout = self._popen.stdin, self._popen.stdout
        self.tell(job)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def tell(self, order: Order) -> None:
        """Give an order; a process that has ended is found by who listens."""
        with contextlib.suppress(OSError):
            self._stdin.write(encode(order) + b"\n")
            self._stdin.flush()

    def hear(self) -> None:
        """Take in what it said. Raises LoadFailure when it failed, or has ended without its last word."""
        data = os.read(self.stdout.fileno(), CHUNK_BYTES)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._take(decode_answer(line))
        if not data and self.tally is None:
            raise LoadFailure(f"a process of the load ended by itself ({_ending(self._popen.wait())})", Exit.FAILED)

    def _take(self, answer: Answer) -> None:
        match answer:
            case Ready():
                self.ready = True
            case Progress():
                self.progress = answer
            case Finished():
                self.tally = answer.tally
            case Failed():
                raise LoadFailure(answer.sentence, answer.exit)

    def end(self) -> None:
        """End it, whatever it does, and reap it."""
        self._popen.kill()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.stdout.close()
        self._popen.wait()


class Processes:
    """All of them; none is left when the `with` block is."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._selector = selectors.DefaultSelector()
        self.all: list[Process] = []
        try:
            for job in jobs:
                process = Process(job)
                self.all.append(process)
                self._selector.register(process.stdout, selectors.EVENT_READ, process)
        except BaseException:
            self.end()
            raise

    def wait(self, done: Callable[[], bool], until_ns: int, each_turn: Callable[[], None]) -> bool:
        """Listen until something is so, or it is that late; returns whether it is so. Raises LoadFailure."""
        while not done():
            left_s = (until_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                return False
            for key, _ in self._selector.select(min(left_s, 0.1)):
                process: Process = key.data
                process.hear()
                if process.tally is not None:
                    self._selector.unregister(process.stdout)
            each_turn()
        return True

    @property
    def ready(self) -> bool:
        """Whether all have their connections."""
        return all(process.ready for process in self.all)

    @property
    def finished(self) -> bool:
        """Whether all have said their last word."""
        return all(process.tally is not None for process in self.all)

    @property
    def any_finished(self) -> bool:
        """Whether one has: during the run it means that the run is over."""
        return any(process.tally is not None for process in self.all)

    @property
    def progress(self) -> Progress:
        """What they have together."""
        parts = [process.progress for process in self.all]
        return Progress(sum(each.answered for each in parts), sum(each.failed for each in parts))

    def begin(self, start_ns: int) -> None:
        """At that moment, all of them."""
        for process in self.all:
            process.tell(Begin(start_ns))

    def stop(self) -> None:
        """Early, and soon."""
        for process in self.all:
            process.tell(Stop())

    def end(self) -> None:
        """End all that still run."""
        for process in self.all:
            process.end()
        self._selector.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _ending(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
