"""The Python client, one request at a time: what its users wait for."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from tensord import Client
from tensord.ipc.errors import TensordError

from .generator import Counts, Durations, Failed, Lane, Sample
from .request import Array
from .timing import Window

NO_TIME: Final = Durations(0, 0, 0, 0, 0, 0, 0)


def run(socket: Path, model: str, floats: int, lane: Lane, window: Window, look: Callable[[], None]) -> Sample:
    """Latencies of one connection with one request in flight. Raises Failed."""
    tensor = np.random.default_rng(1).random((1, floats), np.float32)
    try:
        with Client(socket) as client:
            if lane == "inline":
                return _measured(lambda: client.infer(model, tensor), tensor, window, look)
            with client.lease(model) as slot:
                slot.input[:] = tensor
                return _measured(slot.infer, tensor, window, look)
    except TensordError as error:
        raise Failed(str(error)) from error


def _measured(infer: Callable[[], Any], expected: Array, window: Window, look: Callable[[], None]) -> Sample:
    seconds, warmup_s = window
    _call_for(infer, warmup_s)
    if not np.array_equal(infer(), expected):
        raise Failed("the Python client got a wrong answer")
    look()
    cpu_s, started = time.process_time(), time.perf_counter()
    times_us = np.array(_call_for(infer, seconds)) / 1000
    elapsed, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    look()
    count = len(times_us)
    answered = Counts(count, 0, 0, 0, 0, 0, {})
    p50, p90, p99, p999 = (float(each) for each in np.percentile(times_us, (50, 90, 99, 99.9)))
    latency = Durations(p50, p90, p99, p999, float(times_us.max()), float(times_us.mean()), count)
    nbytes = expected.nbytes
    return Sample(
        1, 1, nbytes, nbytes, 0, 0, count, 1, answered, answered, latency, NO_TIME, elapsed, count / elapsed, cpu_s
    )


def _call_for(infer: Callable[[], Any], seconds: float) -> list[int]:
    """Durations in nanoseconds of one call after the other, one at least."""
    times: list[int] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or not times:
        started = time.perf_counter_ns()
        infer()
        times.append(time.perf_counter_ns() - started)
    return times
