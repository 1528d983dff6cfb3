import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensord.daemon.scheduling import Batch, ModelPolicy
from tensord.daemon.simulation.engine import NEVER, Device, Engine, Hop, SimulatedModel
from tensord.daemon.simulation.replay import calibrate, replayed
from tensord.daemon.simulation.request import SimulatedRequest
from tensord.daemon.simulation.service import Line, Service
from tensord.daemon.simulation.shapes import Kind, Shape
from tensord.daemon.simulation.sources import OpenSource, source_of
from tensord.daemon.simulation.tally import Tally
from tensord.daemon.simulation.trace import Header, Record, Recorder, Trace, read_trace
from tensord.daemon.simulation.workload import Choice, Workload

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


def test_the_worker_s_own_time_is_what_it_takes_from_answer_to_answer_beyond_device_time() -> None:
    """Ten batches that were released together: each answer comes a batch and 30 us after the one before."""
    lone = [ran(k, 1, MS, hop_ns=130 * US) for k in range(9)]
    row = [
        record(
            2_000 * MS, response_ns=(number + 1) * (MS + 30 * US) + 100 * US, compute_ns=MS, batch=100 + number,
            batch_rows=1, worker=1,
        )
        for number in range(10)
    ]  # fmt: skip
    hop = calibrate(trace(*lone, *row)).hop
    assert (hop.latency_ns, hop.worker_ns) == (50 * US, 30 * US)


def test_who_comes_when_the_answer_before_is_on_its_way_back_tells_nothing_of_the_worker() -> None:
    lone = [ran(k, 1, MS, hop_ns=100 * US) for k in range(9)]
    late = record(
        800 * MS + 50 * US + MS + 60 * US, response_ns=MS + 100 * US, compute_ns=MS, batch=100, batch_rows=1, worker=1
    )
    assert calibrate(trace(*lone, late)).hop == Hop(latency_ns=50 * US)


def test_a_batch_that_took_long_takes_long_again() -> None:
    """At its time, however often it is replayed: slow batches in a row make a queue, here and there they do not."""
    recorded = trace(*(ran(k, 1, (4 if k >= 30 else 1) * MS) for k in range(40)))
    calibration = calibrate(recorded)
    for seed in range(2):
        source = replayed(recorded, ["m"], [calibration.services["m"]], calibration.devices, (1, seed))
        tally = Tally(0, NEVER)
        Engine(
            [SimulatedModel("m", ModelPolicy(), calibration.services["m"], [1])], calibration.devices, [source], tally
        ).run()
        assert [round(each / MS) for each in tally.times[0].services] == [1] * 30 + [4] * 10


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
    source = replayed(made, ["m"], [calibration.services["m"]], calibration.devices, (1, 0))
    Engine([model], calibration.devices, [source], tally).run()
    assert (tally.arrived, tally.answered, tally.answered_rows, tally.waiting) == (300, 300, 600, 0)
    assert set(tally.tenants) == {"0", "1", "2"}
    assert tally.until_ns >= times[-1]


class RecordingTally(Tally):
    """Writes a trace, as the front end does."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(0, NEVER)
        self._recorder = recorder

    def answer(self, batch: Batch[SimulatedRequest], begun_ns: int, ended_ns: int, replied_ns: int) -> None:
        super().answer(batch, begun_ns, ended_ns, replied_ns)
        for each in batch.requests:
            self._recorder.record(each, "m", replied_ns, batch=batch, compute_ns=ended_ns - begun_ns)


def test_a_recorded_load_behaves_the_same_when_it_is_replayed(tmp_path: Path) -> None:
    """Two devices of different speed, batches, a hop, a shape of the service times: all of it found in the trace."""
    service = Service(Line(2 * MS, 0.5 * MS), shape=Shape(Kind.LOGNORMAL, 0.2))
    workload = Workload(0, rate_per_s=1_500, rows=Choice([1, 4], [3.0, 1.0]))
    devices = {1: Device("cpu:0"), 2: Device("cpu:1", 2.0)}
    file = io.BytesIO()
    recorder = Recorder(file, 0, 10**8, {}, {"m": {}}, {1: "cpu:0", 2: "cpu:1"})
    live = RecordingTally(recorder)
    requests = (request for request, _ in zip(endless(workload, service.shape), range(15_000), strict=False))
    model = SimulatedModel("m", ModelPolicy(), service, [1, 2])
    Engine([model], devices, [OpenSource(requests)], live, hop=Hop(latency_ns=80 * US)).run()
    recorder.close()
    path = tmp_path / "load.trace"
    path.write_bytes(file.getvalue())
    recorded = read_trace(path)

    calibration = calibrate(recorded)
    again = Tally(0, NEVER)
    model = SimulatedModel("m", ModelPolicy(), calibration.services["m"], [1, 2])
    source = replayed(recorded, ["m"], [calibration.services["m"]], calibration.devices, (5, 0))
    Engine([model], calibration.devices, [source], again, hop=calibration.hop).run()
    assert calibration.hop.latency_ns == pytest.approx(80 * US, rel=0.05)
    assert calibration.devices[2].speed / calibration.devices[1].speed == pytest.approx(2.0, rel=0.05)
    before, after = np.array(live.times[0].responses), np.array(again.times[0].responses)
    assert after.mean() == pytest.approx(before.mean(), rel=0.05)
    assert np.quantile(after, 0.99) == pytest.approx(np.quantile(before, 0.99), rel=0.15)


def endless(workload: Workload, shape: Shape) -> Iterator[SimulatedRequest]:
    source = source_of(0, replace(workload, deadline_ns=10**10), shape, (1, 0))
    (request,) = source.first()
    while True:
        yield request
        following = source.after(request)
        assert following is not None
        request = following
