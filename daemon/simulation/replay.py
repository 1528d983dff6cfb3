"""A trace as a load: its requests at their times, and service times as they were measured."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

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
    """What the way of a batch took beyond device time: the whole way, where it found its worker idle, and the worker's
    own part, where it waited there for the one before."""


def calibrate(trace: Trace) -> Calibration:
    """Fit a line per model and bucket, a speed per worker, and the times of the hop."""
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
    return Calibration(services, devices, _hop(list(batches.values())))


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
    factors = np.array([_factor(service, record, devices) for record in records])
    return replace(service, shape=Shape(Kind.EMPIRICAL, values=(factors / factors.mean()).tolist()))


def _hop(batches: Sequence[Record]) -> Hop:
    """Means, as sums of them make a queue: medians would leave out the machine's pauses, and so load."""
    ways = [each.way_ns - each.compute_ns for each in _trips(batches) if each.found_idle]
    way_ns = float(np.mean(ways)) if ways else 0.0
    # Who was there before the other's answer had come back, and not only on its way, has waited for the worker alone.
    own = [each.behind_ns - each.compute_ns for each in _trips(batches) if each.early_ns > way_ns]
    worker_ns = max(0.0, float(np.mean(own))) if own else 0.0
    return Hop(latency_ns=max(0, round((way_ns - worker_ns) / 2)), worker_ns=round(worker_ns))


class _Trip(NamedTuple):
    """A batch, and the answer before it of the same worker."""

    compute_ns: int
    way_ns: int
    """From its release to its answer."""
    behind_ns: int
    """From that answer to its own."""
    early_ns: int
    """From its release to that answer."""

    @property
    def found_idle(self) -> bool:
        return self.early_ns <= 0


def _trips(batches: Sequence[Record]) -> Iterator[_Trip]:
    before_ns: dict[int, int] = {}
    for record in sorted(batches, key=lambda record: record.arrival_ns + record.queue_ns):
        released_ns, answered_ns = record.arrival_ns + record.queue_ns, record.arrival_ns + record.response_ns
        last_ns = before_ns.get(record.worker, released_ns)
        yield _Trip(record.compute_ns, answered_ns - released_ns, answered_ns - last_ns, last_ns - released_ns)
        before_ns[record.worker] = max(last_ns, answered_ns)


def replayed(
    trace: Trace,
    models: Sequence[str],
    services: Sequence[Service],
    devices: Mapping[int, Device],
    seed: Sequence[int],
) -> OpenSource:
    """Its requests, in order; workload number = model number.

    Where service times are the trace's own, a request has the factor that its batch had: a machine that was slow for a
    while is slow again then, which makes longer queues than the same factors in any order. Others are drawn by seed.
    """
    return OpenSource(_requests(trace, models, services, devices, seed))


def _requests(
    trace: Trace,
    models: Sequence[str],
    services: Sequence[Service],
    devices: Mapping[int, Device],
    seed: Sequence[int],
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
        service, factor = services[number], next(factors[number])
        if service.shape.kind is Kind.EMPIRICAL and record.compute_ns:
            factor = _factor(service, record, devices)
        draw = (record.rows, record.bucket, str(record.tenant), record.priority, record.session, factor)
        deadline_ns = record.arrival_ns + record.deadline_ns
        yield SimulatedRequest(
            number, number, draw, record.arrival_ns, deadline_ns, flow=record.flow, nbytes=record.nbytes
        )


def _factor(service: Service, record: Record, devices: Mapping[int, Device]) -> float:
    """What is left of a batch's time beside line and speed."""
    speed = devices[record.worker].speed if record.worker in devices else 1.0
    return record.compute_ns / service.compute_ns(record.bucket, record.batch_rows, 1.0, speed)
