"""A trace as a load: its requests at their times, and service times as they were measured."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .engine import Device, Hop
from .request import SimulatedRequest
from .service import Line, Service
from .shapes import Kind, Shape
from .sources import OpenSource
from .trace import Record, Trace
from .workload import streams

ROWS_DIFFER: Final = 0.01
"""Variance / mean² of the batches' rows above which a fixed part and one per row can be told apart."""


@dataclass(frozen=True)
class Calibration:
    """What a trace says of the machine that it was recorded on."""

    services: Mapping[str, Service]
    """By model, for those of which a batch ran."""
    devices: Mapping[int, Device]
    """By worker, with the speed that it showed in comparison with all."""
    hop: Hop
    """From the batches that found their worker idle: what their way took beyond device time."""


def calibrate(trace: Trace) -> Calibration:
    """Fit a line per model and bucket, a speed per worker, and the latency of the hop."""
    batches: dict[int, Record] = {}
    for record in trace.records:
        if record.batch and record.compute_ns:
            first = batches.get(record.batch)
            if first is None or record.response_ns + record.arrival_ns < first.response_ns + first.arrival_ns:
                batches[record.batch] = record
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in batches.values():
        by_model[record.model].append(record)
    services = {model: _service(records) for model, records in by_model.items()}
    devices = {}
    for worker, name in trace.header.workers.items():
        ran = [record for record in batches.values() if record.worker == worker]
        devices[worker] = Device(name, _speed(ran, services))
    services = {model: _with_shape(services[model], records, devices) for model, records in by_model.items()}
    return Calibration(services, devices, Hop(latency_ns=_latency_ns(list(batches.values()))))


def _service(records: Sequence[Record]) -> Service:
    by_bucket: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_bucket[record.bucket].append(record)
    return Service(_line(records), {bucket: _line(some) for bucket, some in by_bucket.items()})


def _line(records: Sequence[Record]) -> Line:
    """Least squares with neither part below 0."""
    rows = np.array([record.batch_rows for record in records], float)
    times = np.array([record.compute_ns for record in records], float)
    mean_rows, mean_ns = float(rows.mean()), float(times.mean())
    variance = float(rows.var())
    if variance <= ROWS_DIFFER * mean_rows**2:
        return Line(mean_ns, 0.0)
    row_ns = float(((rows - mean_rows) * (times - mean_ns)).mean()) / variance
    if row_ns <= 0:
        return Line(mean_ns, 0.0)
    fixed_ns = mean_ns - row_ns * mean_rows
    return Line(fixed_ns, row_ns) if fixed_ns >= 0 else Line(0.0, float((rows * times).mean() / np.square(rows).mean()))


def _speed(ran: Sequence[Record], services: Mapping[str, Service]) -> float:
    expected_ns = sum(services[record.model].compute_ns(record.bucket, record.batch_rows, 1.0) for record in ran)
    return expected_ns / sum(record.compute_ns for record in ran) if ran else 1.0


def _with_shape(service: Service, records: Sequence[Record], devices: Mapping[int, Device]) -> Service:
    """What is left beside line and speed, as it was: its mean is 1."""
    factors = np.array(
        [
            record.compute_ns / service.compute_ns(record.bucket, record.batch_rows, 1.0, devices[record.worker].speed)
            for record in records
        ]
    )
    return replace(service, shape=Shape(Kind.EMPIRICAL, values=(factors / factors.mean()).tolist()))


def _latency_ns(batches: Sequence[Record]) -> int:
    """The median of half of what a batch's way took, of those whose worker had nothing else."""
    ways: list[int] = []
    free_ns: dict[int, int] = {}
    for record in sorted(batches, key=lambda record: record.arrival_ns + record.queue_ns):
        released_ns, answered_ns = record.arrival_ns + record.queue_ns, record.arrival_ns + record.response_ns
        if released_ns >= free_ns.get(record.worker, 0):
            ways.append(answered_ns - released_ns - record.compute_ns)
        free_ns[record.worker] = max(free_ns.get(record.worker, 0), answered_ns)
    return max(0, int(np.median(ways)) // 2) if ways else 0


def replayed(trace: Trace, models: Sequence[str], services: Sequence[Service], seed: Sequence[int]) -> OpenSource:
    """Its requests, in order; workload number = model number. Factors of service times are drawn by seed."""
    return OpenSource(_requests(trace, models, services, seed))


def _requests(
    trace: Trace, models: Sequence[str], services: Sequence[Service], seed: Sequence[int]
) -> Iterator[SimulatedRequest]:
    number_of = {model: number for number, model in enumerate(models)}
    generators = [generator for _, generator in zip(models, streams(seed), strict=False)]
    count_of = [sum(record.model == model for record in trace.records) for model in models]
    factors = [
        iter(service.shape.draw(generator, count).tolist())
        for service, generator, count in zip(services, generators, count_of, strict=True)
    ]
    for record in trace.records:
        number = number_of[record.model]
        draw = (
            record.rows, record.bucket, str(record.tenant), record.priority, record.session, next(factors[number])
        )  # fmt: skip
        deadline_ns = record.arrival_ns + record.deadline_ns
        yield SimulatedRequest(
            number, number, draw, record.arrival_ns, deadline_ns, flow=record.flow, nbytes=record.nbytes
        )
