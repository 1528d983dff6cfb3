from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from tensord.daemon.scheduling import ModelPolicy
from tensord.daemon.simulation.engine import NEVER, Engine, SimulatedModel
from tensord.daemon.simulation.replay import calibrate, replayed
from tensord.daemon.simulation.tally import Tally
from tensord.daemon.simulation.trace import Header, Record, Trace

US, MS = 1_000, 1_000_000


def record(arrival_ns: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "arrival_ns": arrival_ns, "model": "m", "bucket": "", "rows": 1, "nbytes": 8, "tenant": 0, "priority": 1,
        "session": 0, "flow": 0, "deadline_ns": 10**10, "outcome": 0, "response_ns": 0,
    }  # fmt: skip
    return Record(**values | changes)


def ran(number: int, rows: int, compute_ns: int, *, worker: int = 1, hop_ns: int = 100 * US, **changes: Any) -> Record:
    """A request that ran alone, at once, on an idle worker."""
    return record(
        number * 100 * MS, rows=rows, response_ns=50 * US + compute_ns + hop_ns, queue_ns=50 * US,
        compute_ns=compute_ns, batch=number + 1, batch_rows=rows, worker=worker, **changes,
    )  # fmt: skip


def trace(*records: Record, workers: int = 1) -> Trace:
    devices = {number: f"cpu:{number}" for number in range(1, workers + 1)}
    return Trace(Header(1, {}, {"m": {}}, devices), sorted(records, key=lambda each: each.arrival_ns), True)


def test_the_line_of_the_service_times_is_found() -> None:
    found = calibrate(trace(*(ran(k, 1 + k % 8, (1_000 + 200 * (1 + k % 8)) * US) for k in range(40))))
    line = found.services["m"].line
    assert [line.fixed_ns, line.row_ns] == pytest.approx([1 * MS, 200 * US])
    assert found.services["m"].shape.values == pytest.approx([1.0] * 40)


def test_buckets_have_lines_of_their_own() -> None:
    short = [ran(k, 1, MS, bucket="short") for k in range(5)]
    long = [ran(k, 1, 4 * MS, bucket="long") for k in range(5, 10)]
    service = calibrate(trace(*short, *long)).services["m"]
    assert (service.compute_ns("short", 1, 1.0), service.compute_ns("long", 1, 1.0)) == (MS, 4 * MS)


def test_a_worker_that_takes_half_the_time_is_twice_as_fast_as_the_other() -> None:
    slow = [ran(k, 1, 2 * MS, worker=1) for k in range(10)]
    fast = [ran(k, 1, 1 * MS, worker=2) for k in range(10, 20)]
    devices = calibrate(trace(*slow, *fast, workers=2)).devices
    assert devices[2].speed / devices[1].speed == pytest.approx(2.0)


def test_the_hop_is_what_the_way_takes_beyond_device_time() -> None:
    assert calibrate(trace(*(ran(k, 1, MS, hop_ns=90 * US) for k in range(9)))).hop.latency_ns == 45 * US


def test_a_batch_counts_once_however_many_requests_it_had() -> None:
    lone = [ran(k, 1, MS) for k in range(4)]
    together = [ran(4, 1, 3 * MS) for _ in range(30)]
    values = calibrate(trace(*lone, *together)).services["m"].shape.values
    assert len(values) == 5


def test_a_trace_without_batches_says_nothing_of_service() -> None:
    found = calibrate(trace(record(0, outcome=200), record(1, outcome=200)))
    assert found.services == {}
    assert found.devices[1].speed == 1.0


def test_every_recorded_request_comes_again_at_its_time() -> None:
    random = np.random.default_rng(1)
    times = list(accumulate(int(each) for each in random.exponential(MS, 300)))
    made = trace(*(record(at, rows=2, tenant=at % 3, session=at % 5, priority=at % 3) for at in times))
    calibration = calibrate(trace(ran(0, 2, MS)))
    model = SimulatedModel("m", ModelPolicy(), calibration.services["m"], [1])
    tally = Tally(0, NEVER)
    source = replayed(made, ["m"], [calibration.services["m"]], (1, 0))
    Engine([model], calibration.devices, [source], tally).run()
    assert (tally.arrived, tally.answered, tally.answered_rows, tally.waiting) == (300, 300, 600, 0)
    assert set(tally.tenants) == {"0", "1", "2"}
    assert tally.until_ns >= times[-1]
