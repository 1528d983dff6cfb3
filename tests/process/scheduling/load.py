"""Load on a real daemon, and what became of each request of it.

The model `nap` sleeps as long as its rows say, so the device time of everything here is known: see `nap_s`. Whatever is
asserted of it is a ratio of two figures of the same run.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tensord.ipc.errors import TensordError
from tensord.ipc.wire import FrameType

if TYPE_CHECKING:
    from tests.process.conftest import RawClient, Received

WATCHDOG_S: Final = 30.0
"""Longest wait for something that must happen; a limit against hanging, not a measurement."""

FIXED_S: Final = 0.001
ROW_S: Final = 0.0005
"""As in tests/process/models/nap.py."""


def nap_s(rows: int) -> float:
    """How long a batch of `nap` takes."""
    return FIXED_S + ROW_S * rows


@dataclass(frozen=True)
class Ask:
    """A request to be sent."""

    at_s: float = 0.0
    """After the start, in an open loop."""
    rows: int = 1
    deadline_s: float = 0.0
    """From when it is sent; 0 for none."""
    session: int = 0
    latest: bool = False
    priority: int = 1


@dataclass(frozen=True)
class Ended:
    """What became of it; times as of time.monotonic()."""

    ask: Ask
    due_s: float
    """When it should have been sent: what it waited for its own client counts."""
    ended_s: float
    error: TensordError | None
    batch_rows: int
    queue_s: float
    device: int

    @property
    def response_s(self) -> float:
        """From when it should have been sent to its answer."""
        return self.ended_s - self.due_s

    @property
    def met(self) -> bool:
        """It was answered, and in time."""
        return self.error is None and (not self.ask.deadline_s or self.response_s <= self.ask.deadline_s)


class Flow(threading.Thread):
    """One connection: an open loop that sends each Ask at its time, or, with a depth, as many as that at once."""

    def __init__(self, client: "RawClient", asks: Iterable[Ask], depth: int = 0, model: str = "nap") -> None:
        super().__init__(name="flow")
        self.ended: list[Ended] = []
        self.failure: BaseException | None = None
        self._client = client
        self._asks = iter(asks)
        self._depth = depth
        self._model = model
        self._open: dict[int, tuple[Ask, float, Any]] = {}
        self._over = threading.Event()
        client.open(model)

    def run(self) -> None:
        """Until nothing is left to ask, or finish() was called, and every answer is there."""
        try:
            self._run()
        except BaseException as failure:
            self.failure = failure

    def _run(self) -> None:
        start_s = time.monotonic()
        ask = next(self._asks, None)
        while ask is not None or self._open:
            if self._over.is_set():
                ask = None
            now = time.monotonic()
            wait_s = WATCHDOG_S
            if ask is not None and self._depth:
                if len(self._open) < self._depth:
                    self._send(ask, now)
                    ask = next(self._asks, None)
                    continue
            elif ask is not None:
                wait_s = start_s + ask.at_s - now
                if wait_s <= 0:
                    self._send(ask, start_s + ask.at_s)
                    ask = next(self._asks, None)
            if self._client.ready(wait_s):
                self._take(self._client.receive())
            else:
                assert wait_s < WATCHDOG_S, f"{len(self._open)} requests without an answer"

    def _send(self, ask: Ask, due_s: float) -> None:
        request_id = self._client.new_id()
        x = np.array([[request_id % 2**24, row] for row in range(ask.rows)], np.float32)
        self._open[request_id] = ask, due_s, x
        deadline_ns = int((due_s + ask.deadline_s) * 1e9) if ask.deadline_s else 0
        fields = {"deadline_ns": deadline_ns, "session": ask.session, "latest": ask.latest, "priority": ask.priority}
        self._client.send(self._client.request(self._model, x, request_id=request_id, **fields))

    def _take(self, answer: "Received") -> None:
        ended_s = time.monotonic()
        ask, due_s, x = self._open.pop(answer.request_id)
        if answer.frame_type == FrameType.ERROR:
            self.ended.append(Ended(ask, due_s, ended_s, answer.error(), 0, 0.0, -1))
            return
        head, _ = answer.result()
        y = np.frombuffer(answer.payload, np.float32).reshape(ask.rows, 3)
        np.testing.assert_array_equal(y[:, :2], x)
        self.ended.append(Ended(ask, due_s, ended_s, None, head.batch_rows, head.queue_us / 1e6, int(y[0, 2])))

    def stop(self) -> None:
        """Ask nothing more."""
        self._over.set()

    def finish(self) -> list[Ended]:
        """Wait for the end: every request has got exactly one answer, and every result is right."""
        self.join(WATCHDOG_S)
        assert not self.is_alive()
        assert self.failure is None, repr(self.failure)
        assert not self._open
        return self.ended


def run(*flows: Flow, seconds: float = 0.0, meanwhile: Callable[[], object] = lambda: None) -> list[Ended]:
    """All of these at once, for so long or as long as they have something to ask; what became of all, by their ends."""
    for flow in flows:
        flow.start()
    try:
        meanwhile()
        if seconds:
            time.sleep(seconds)
    finally:
        if seconds:
            for flow in flows:
                flow.stop()
        for flow in flows:
            flow.join(WATCHDOG_S)
    return sorted((ended for flow in flows for ended in flow.finish()), key=lambda ended: ended.ended_s)


def poisson(per_s: float, seconds: float, seed: int, make: Callable[[float], Ask]) -> Iterator[Ask]:
    """Arrivals that know nothing of each other."""
    generator = np.random.default_rng(seed)
    at_s = generator.exponential(1 / per_s)
    while at_s < seconds:
        yield make(at_s)
        at_s += generator.exponential(1 / per_s)


def errors(ended: Sequence[Ended]) -> dict[str, int]:
    """How many got which error."""
    names = [type(each.error).__name__ for each in ended if each.error is not None]
    return {name: names.count(name) for name in sorted(set(names))}
