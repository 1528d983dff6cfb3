"""What the hop costs: this daemon beside the same model in-process, in one run.

    python benchmarks/roundtrip.py [--repetitions 5]

Starts an instance with one CPU device, alternates the cases, and prints medians over the repetitions. The client is
the Python one, and its time is included. Figures move with the machine; the ratios hold better. Run it on a quiet one.

* identity, inline, 4 KiB: latency of one connection, one request at a time
* identity, leased: latency at 588 KiB and 16 MiB beside a copy of the same bytes in-process (what the model does)
* digits at saturation: rows per second through the daemon beside an offline loop with the same cores and threads
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tensord import Client
from tensord.daemon import control

MODELS = Path(__file__).parents[1] / "configs" / "models"
FLOATS = 1024
WARM_UP = 50
DIGITS_ROWS = 64
OFFLINE = """
import os, sys, time
os.sched_setaffinity(0, {cores})
import torch
from pathlib import Path
from tensord.daemon.models.loader import load
from tensord.daemon.models.manifest import read_manifest
torch.set_num_threads({threads})
model = load(read_manifest(Path({models!r}) / "digits" / "1"), torch.device("cpu"))
rows = torch.rand({rows}, 1, 8, 8)
best = 0.0
for _ in range(3):
    stop, count, start = time.perf_counter() + {seconds}, 0, time.perf_counter()
    while time.perf_counter() < stop:
        model.run([rows])
        count += {rows}
    best = max(best, count / (time.perf_counter() - start))
print(best)
"""


def main() -> None:
    options = argparse.ArgumentParser(description="What the hop costs.")
    options.add_argument("--repetitions", type=int, default=5)
    repetitions = options.parse_args().repetitions
    with tempfile.TemporaryDirectory(prefix="tdb") as directory:
        daemon = start(Path(directory))
        try:
            with Client(Path(directory) / "tensord.sock") as client:
                latencies(client, repetitions)
                saturation(client, Path(directory), repetitions)
        finally:
            daemon.terminate()
            daemon.wait(30)


def start(directory: Path) -> "subprocess.Popen[bytes]":
    """An instance that is ready."""
    command = [sys.executable, "-m", "tensord", "serve", "--runtime-dir", str(directory), "--models", str(MODELS)]
    daemon = subprocess.Popen([*command, "--device", "cpu:0"], stderr=subprocess.DEVNULL)
    while daemon.poll() is None:
        try:
            if status(directory).state == "ready":
                return daemon
        except control.Unreachable:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the daemon ended with {daemon.returncode}")


def status(directory: Path) -> control.InstanceStatus:
    answer = control.ask(directory / "control.sock", control.Status())
    assert isinstance(answer, control.InstanceStatus)
    return answer


def latencies(client: Client, repetitions: int) -> None:
    """Inline and leased latencies, in microseconds."""
    small = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    results: dict[str, list[float]] = {}
    for _ in range(repetitions):
        results.setdefault("inline 4 KiB", []).append(median_us(lambda: client.infer("identity", small), 2000))
        for rows, name in ((147, "588 KiB"), (4096, "16 MiB")):
            tensor = np.random.default_rng(1).random((rows, FLOATS), dtype=np.float32)
            target = np.empty_like(tensor)
            copied = median_us(partial(np.copyto, target, tensor), 200)
            results.setdefault(f"copy {name} in-process", []).append(copied)
            with client.lease("identity", rows=rows) as slot:
                slot.input[:] = tensor
                results.setdefault(f"leased {name}", []).append(median_us(slot.infer, 200))
    for name, values in results.items():
        print(f"{name:24} p50 {statistics.median(values):8.0f} µs   (runs {min(values):.0f} to {max(values):.0f})")


def median_us(call: Callable[[], object], count: int) -> float:
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(count):
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000


def saturation(client: Client, directory: Path, repetitions: int) -> None:
    """Rows per second of a small convolutional network, served and offline."""
    worker = status(directory).workers[0]
    code = OFFLINE.format(
        cores=set(worker.cores), threads=len(worker.cores), models=str(MODELS), rows=DIGITS_ROWS, seconds=1.0
    )
    served, offline = [], []
    for _ in range(repetitions):
        served.append(served_rows_per_s(client))
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=os.environ)
        offline.append(float(child.stdout))
    ratio = statistics.median(a / b for a, b in zip(served, offline, strict=True))
    print(f"digits, {DIGITS_ROWS} rows a request: served {statistics.median(served):,.0f} rows/s, ", end="")
    print(f"offline {statistics.median(offline):,.0f} rows/s, ratio {ratio:.2f}")


def served_rows_per_s(client: Client, seconds: float = 3.0) -> float:
    """Four leased requests in flight, each submitted again as soon as it is answered."""
    slots = [client.lease("digits", rows=DIGITS_ROWS) for _ in range(4)]
    for slot in slots:
        slot.input[:] = 0.5
    in_flight = deque((slot, slot.submit()) for slot in slots)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        slot, future = in_flight.popleft()
        future.result()
        count += DIGITS_ROWS
        in_flight.append((slot, slot.submit()))
    elapsed = time.perf_counter() - started
    for slot, future in in_flight:
        future.result()
        slot.release()
    return count / elapsed


if __name__ == "__main__":
    main()
