"""A queue in equilibrium: the scheduling core under theory's assumptions, and its means with 99 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from tensord.daemon.scheduling import GlobalPolicy, ModelPolicy
from tensord.daemon.simulation.engine import Device, Engine, SimulatedModel
from tensord.daemon.simulation.intervals import Estimate, controlled
from tensord.daemon.simulation.service import Line, Service
from tensord.daemon.simulation.shapes import Kind, Shape
from tensord.daemon.simulation.sources import source_of
from tensord.daemon.simulation.tally import Tally
from tensord.daemon.simulation.workload import Choice, Rows, Workload, arrivals_ns, draws

SERVICE_NS = 1_000_000
"""Mean service time."""

YEAR_NS = 365 * 86_400 * 10**9
UNBOUNDED: dict[str, Any] = {
    "queue_max": 10**9,
    "queue_rows_max": 10**12,
    "queue_bytes_max": 10**15,
    "tenant_queue_percent": 100,
    "deadline_check": False,
}


@dataclass(frozen=True)
class Observation:
    """What one replication showed."""

    wait_s: float
    length: float
    controls: list[float]


@dataclass(frozen=True)
class Equilibrium:
    """A queue with Poisson arrivals, observed in replications of about `requests` each, after a warm-up."""

    load: float
    requests: int
    shape: Shape = field(default_factory=lambda: Shape(Kind.EXPONENTIAL))
    servers: int = 1
    rows: Choice | Rows = field(default_factory=lambda: Choice([1]))
    row_ns: float = SERVICE_NS
    square: float = 0.0
    """Mean of the squared service times in units of the mean's square; 0: that of the shape."""
    order: str = "fcfs"
    max_batch: int = 1
    pipeline_depth: int = 1
    warmup: int = 600
    """Requests before those: many times the relaxation time, E[S]/(1−√ρ)²."""
    replications: int = 40
    blocks: tuple[int, ...] = (10, 100)
    """Lengths of the controls' blocks, in service times."""

    @property
    def rate_per_s(self) -> float:
        return self.load * self.servers * 1e9 / SERVICE_NS

    @cached_property
    def observations(self) -> list[Observation]:
        return [self._replicate(number) for number in range(self.replications)]

    @cached_property
    def wait(self) -> Estimate:
        """Mean wait in seconds."""
        return self._estimate([each.wait_s for each in self.observations])

    @cached_property
    def length(self) -> Estimate:
        """Mean number that waits."""
        return self._estimate([each.length for each in self.observations])

    def _estimate(self, values: Sequence[float]) -> Estimate:
        return controlled(values, [each.controls for each in self.observations], confidence=0.99)

    def _replicate(self, number: int) -> Observation:
        policy = ModelPolicy(**UNBOUNDED, order=self.order, max_batch=self.max_batch)
        service = Service(Line(0.0, self.row_ns), shape=self.shape)
        workload = Workload(0, rate_per_s=self.rate_per_s, rows=self.rows, deadline_ns=YEAR_NS)
        seed = (1, number)
        workers = range(1, self.servers + 1)
        from_ns = round(self.warmup / self.rate_per_s * 1e9)
        until_ns = from_ns + round(self.requests / self.rate_per_s * 1e9)
        tally = Tally(from_ns, until_ns)
        engine = Engine(
            [SimulatedModel("m", policy, service, workers, splits=False)],
            {worker: Device(f"cpu:{worker}") for worker in workers},
            [source_of(0, workload, self.shape, seed)],
            tally,
            GlobalPolicy(self.pipeline_depth, ageing_ns=0),
        )
        engine.run(until_ns)
        assert tally.refused == {}
        wait_s = float(np.mean(tally.times[0].waits)) / 1e9
        return Observation(wait_s, tally.queue_length, self._controls(workload, seed, from_ns, until_ns))

    def _controls(self, workload: Workload, seed: tuple[int, ...], from_ns: int, until_ns: int) -> list[float]:
        """What the arrivals of this replication differ in from the expected ones. No theory of queues is in it:

        the number of arrivals, the work that they bring, and the square of the latter's deviation in blocks of time.
        Arrivals are Poisson and service times independent, so the work of a block of length t has the mean λt·E[S]
        and the variance λt·E[S²] (compound Poisson).
        """
        arrivals = takewhile(lambda at: at < until_ns, arrivals_ns(workload, (*seed, 0)))
        times = np.fromiter(arrivals, np.float64)
        drawn = draws(workload, self.shape, (*seed, 0))
        work = np.fromiter(
            (rows * factor * self.row_ns for (rows, *_, factor), _ in zip(drawn, times, strict=False)), np.float64
        )
        seen = times >= from_ns
        times, work = times[seen] - from_ns, work[seen] / SERVICE_NS
        length = (until_ns - from_ns) / SERVICE_NS
        rate = self.load * self.servers
        square = self.square or self.shape.square
        controls = [len(times) / length - rate, float(work.sum()) / length - rate]
        for block in self.blocks:
            count = math.floor(length / block)
            sums = np.bincount((times // (block * SERVICE_NS)).astype(int), work, count + 1)[:count]
            controls.append(float(np.square(sums - rate * block).mean()) / block - rate * square)
        return controls
