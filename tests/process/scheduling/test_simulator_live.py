"""The simulator against the daemon: a load recorded live, replayed with the same settings."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from tensord.daemon.simulation.trace import read_trace

from .load import WATCHDOG_S, Ask, Flow, errors, nap_s, poisson, run

if TYPE_CHECKING:
    from tests.process.conftest import Connect, Daemon

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]

SECONDS: Final = 4.0
LOAD: Final = 0.6
TENSORD: Final = (sys.executable, "-m", "tensord")


@pytest.mark.parametrize("order", ["fcfs", "sjf"])
def test_a_recorded_load_takes_as_long_when_it_is_replayed(
    idle: "Daemon", join: "Connect", tmp_path: Path, order: str
) -> None:
    """Mean and p99 of the response times that the daemon saw, and of those in virtual time."""
    file = tmp_path / "trace"
    sizes = np.random.default_rng(1).choice([1, 8], 10_000, p=[0.75, 0.25])
    per_s = LOAD / (0.75 * nap_s(1) + 0.25 * nap_s(8))
    asks = poisson(per_s, SECONDS, 2, lambda at_s: Ask(at_s, int(sizes[int(at_s * 1000)])))
    with idle.knobs(nap__order=order):
        command = [*TENSORD, "record", str(file), "--seconds", str(SECONDS + 0.5), "--socket", str(idle.socket)]
        recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until(lambda: file.exists() or recorder.poll() is not None)
            assert errors(run(Flow(join(), asks))) == {}
            assert recorder.wait(WATCHDOG_S) == 0
        finally:
            recorder.kill()
            recorder.wait()
    live_us = np.array([record.response_ns for record in read_trace(file).records]) / 1e3
    command = [*TENSORD, "simulate", "--trace", str(file), "--json"]
    simulated = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=WATCHDOG_S).stdout)
    response = simulated["settings"][0]["response"]
    assert response["mean_us"]["mean"] == pytest.approx(live_us.mean(), rel=0.15)
    if order == "fcfs":  # the tail of SJF is a handful of long requests that a moment's difference lets in or not
        assert response["p99_us"]["mean"] == pytest.approx(np.quantile(live_us, 0.99), rel=0.15)


def until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline, "never so"
        time.sleep(0.005)
