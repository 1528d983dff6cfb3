"""The figures of several replications: means, each with a 95 % confidence interval where there is more than one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from tensord.ipc.errors import ERRORS

from .intervals import Estimate, estimate
from .tally import Tally, Usage

FRACTIONS: Final = (0.5, 0.9, 0.99, 0.999)
CURVE: Final = tuple(1 - 10 ** (-step / 12) for step in range(49))
"""Fractions for which the curve of response times has a point: closer together the nearer they are to 1."""


class Times(msgspec.Struct, frozen=True):
    """Durations. A percentile that one replication cannot tell from its maximum is None."""

    mean_us: Estimate | None
    p50_us: Estimate | None
    p90_us: Estimate | None
    p99_us: Estimate | None
    p999_us: Estimate | None


class Summary(msgspec.Struct, frozen=True):
    """One setting under one load."""

    setting: str
    replications: int
    window_s: float
    """Virtual time of one replication that was measured."""
    offered_per_s: Estimate
    """Requests that came,"""
    throughput_per_s: Estimate
    """that were answered,"""
    goodput_per_s: Estimate
    """and answered before their deadline."""
    rows_per_s: Estimate
    utilisation: dict[str, Estimate]
    """Share of the time that a device computed."""
    queue_length: Estimate
    """Requests that wait for a device, on average over time."""
    wait: Times
    """From arrival to the start of its batch on the device."""
    service: Times
    """Device time of its batch."""
    response: Times
    """From arrival to answer."""
    workloads: dict[str, Times]
    """Response times by workload."""
    refused_per_s: dict[str, Estimate]
    """By name of the error."""
    batch_rows: Estimate | None
    """Mean rows of a batch."""
    batches: dict[int, float]
    """Share of the batches, by rows."""
    released: dict[str, float]
    """Share of the batches, by the reason of their release."""
    models: dict[str, float]
    """Shares of all device time,"""
    tenants: dict[str, float]
    curve: list[tuple[float, float]]
    """A fraction of the answers, and the response time in microseconds that it did not exceed; all replications."""
    workload_curves: dict[str, list[tuple[float, float]]]
    """The same by workload."""


def summary(
    setting: str,
    tallies: Sequence[Tally],
    devices: Mapping[int, str],
    models: Sequence[str],
    workloads: Sequence[str],
) -> Summary:
    """The tallies are those of its replications."""

    def each(figure: Callable[[Tally], float]) -> Estimate:
        return estimate([figure(tally) for tally in tallies])

    codes = sorted({code for tally in tallies for code in tally.refused})
    batches = sum((tally.batches for tally in tallies), start=type(tallies[0].batches)())
    released = sum((tally.released for tally in tallies), start=type(tallies[0].released)())
    return Summary(
        setting=setting,
        replications=len(tallies),
        window_s=tallies[0].window_s,
        offered_per_s=each(lambda tally: tally.arrived / tally.window_s),
        throughput_per_s=each(lambda tally: tally.answered / tally.window_s),
        goodput_per_s=each(lambda tally: tally.in_time / tally.window_s),
        rows_per_s=each(lambda tally: tally.answered_rows / tally.window_s),
        utilisation={
            name: each(lambda tally, worker=worker: tally.busy_ns[worker] / 1e9 / tally.window_s)  # type: ignore[misc]
            for worker, name in devices.items()
        },
        queue_length=each(lambda tally: tally.queue_length),
        wait=_times([_joined(each.waits for each in tally.times.values()) for tally in tallies]),
        service=_times([_joined(each.services for each in tally.times.values()) for tally in tallies]),
        response=_times([_joined(each.responses for each in tally.times.values()) for tally in tallies]),
        workloads={
            name: _times([_joined(each.responses for at, each in tally.times.items() if at == k) for tally in tallies])
            for k, name in enumerate(workloads)
        },
        refused_per_s={
            ERRORS[code].__name__: each(lambda tally, code=code: tally.refused[code] / tally.window_s)  # type: ignore[misc]
            for code in codes
        },
        batch_rows=each(lambda tally: _ratio(tally.answered_rows, tally.batches.total())) if batches else None,
        batches={rows: count / batches.total() for rows, count in sorted(batches.items())},
        released={reason.value: count / released.total() for reason, count in released.most_common()},
        models=_shares([{models[key]: usage for key, usage in tally.models.items()} for tally in tallies]),
        tenants=_shares([tally.tenants for tally in tallies]),
        curve=_curve(_joined(each.responses for tally in tallies for each in tally.times.values())),
        workload_curves={
            name: _curve(_joined(tally.times[k].responses for tally in tallies if k in tally.times))
            for k, name in enumerate(workloads)
        },
    )


def _joined(arrays: Iterable[Sequence[int]]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    parts = [np.asarray(each, np.int64) for each in arrays]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _times(replications: Sequence["np.ndarray[tuple[int], np.dtype[np.int64]]"]) -> Times:
    if any(not len(times) for times in replications):
        return Times(None, None, None, None, None)
    mean = estimate([float(times.mean()) / 1e3 for times in replications])
    percentiles: list[Estimate | None] = []
    for fraction in FRACTIONS:
        if any(len(times) * (1 - fraction) < 1 - 1e-9 for times in replications):
            percentiles.append(None)
        else:
            percentiles.append(estimate([float(np.quantile(times, fraction)) / 1e3 for times in replications]))
    return Times(mean, *percentiles)


def _curve(times: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[tuple[float, float]]:
    known = [fraction for fraction in CURVE if len(times) * (1 - fraction) >= 1]
    if not known:
        return []
    return list(zip(known, (np.quantile(times, known) / 1e3).tolist(), strict=True))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _shares(tables: Sequence[Mapping[str, Usage]]) -> dict[str, float]:
    device_ns: dict[str, float] = {}
    for table in tables:
        for name, usage in table.items():
            device_ns[name] = device_ns.get(name, 0.0) + usage.device_ns
    whole = sum(device_ns.values())
    return {name: _ratio(value, whole) for name, value in sorted(device_ns.items())}
