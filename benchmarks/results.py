"""What a run leaves behind, in results/latest.json and as the source of the tables."""

import contextlib
from collections.abc import Iterator

import msgspec

from .generator import Failed, Sample


class Point(msgspec.Struct, frozen=True):
    """One measurement of one system under one load."""

    per_s: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    cpu_us: dict[str, float]
    """CPU time per answered request of each role, in microseconds; `load` is the generator's."""
    load_cpu_share: float
    """Of one core. Near 1, the load generator is the limit."""

    @classmethod
    def of(cls, sample: Sample, cpu_s: dict[str, float]) -> "Point":
        """The figures of a sample, with the CPU seconds that the servers spent in its window."""
        latency = sample.latency_us
        cpu_us = {role: seconds / sample.measured.answered * 1e6 for role, seconds in cpu_s.items()}
        cpu_us["load"] = sample.cpu_s / sample.measured.answered * 1e6
        return cls(
            sample.per_s, latency.p50, latency.p90, latency.p99, latency.p999, latency.max, cpu_us, sample.cpu_share
        )


class Hop(msgspec.Struct):
    """One payload under one load: every system's points, a repetition each."""

    payload: str
    connections: int
    depth: int
    systems: dict[str, list[Point]]
    peer_setting: str
    in_process_us: list[float]
    """Median time of a copy of the payload, in the latency case."""


class Saturation(msgspec.Struct):
    """One model: rows per second, a repetition each."""

    model: str
    batch: int
    """The offline loop's best."""
    offline: list[float]
    served: dict[str, list[float]]
    peer: dict[str, list[float]]
    peer_settings: dict[str, str]


class Goodput(msgspec.Struct):
    """One overload: requests per second, a repetition each."""

    name: str
    peak: list[float]
    offered: list[float]
    good: list[float]
    late: list[float]
    refused: list[dict[str, int]]
    """Errors by code."""
    unsent: list[float]
    send_delay_p99_us: list[float]
    load_cpu_share: list[float]


class Idle(msgspec.Struct):
    """Nothing connected, by role."""

    seconds: float
    cpu_percent: dict[str, float]
    """Of one core."""
    own_mib: dict[str, float]
    """Proportional memory without shared memory."""


class Scale(msgspec.Struct):
    """What company costs."""

    cpu_us: dict[str, list[float]]
    """CPU time per request of the whole daemon in each company, in microseconds, a repetition each."""
    connection_bytes: float | None = None
    """Memory that an idle connection takes in the front end; without the kernel's part."""


class Policies(msgspec.Struct):
    """What policies cost."""

    cpu_us: dict[str, list[float]]
    """CPU time per request of the front end under each setting, in microseconds, a repetition each."""


class Results(msgspec.Struct):
    """A run."""

    date: str
    commit: str
    compiled: bool
    """Whether the daemon ran what mypyc makes of its sources (`make compiled`)."""
    quick: bool
    repetitions: int
    seconds: float
    cores: int
    cpu: str
    kernel: str
    peer: str
    hops: list[Hop] = []
    saturations: list[Saturation] = []
    goodputs: list[Goodput] = []
    scale: Scale | None = None
    policies: Policies | None = None
    idle: Idle | None = None
    failures: list[str] = []
    """Measurements that gave no figures, and why."""


@contextlib.contextmanager
def noted(failures: list[str], what: str) -> Iterator[None]:
    """A measurement that fails is written down, and the others go on."""
    try:
        yield
    except Failed as failure:
        failures.append(f"{what}: {failure}")
